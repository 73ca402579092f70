"""Commands that run all of Callboard on this machine: `up` and `demo`."""

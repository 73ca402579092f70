"""A delivered message becomes an attempt at its item: whether it may run, when, and with which outcome it ends."""

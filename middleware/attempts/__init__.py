"""A delivered message becomes an attempt at its item: whether it may run, when, and what its end means."""

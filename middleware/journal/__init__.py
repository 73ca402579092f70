"""Commits outcomes and plain sends in groups, then acknowledges their messages; never before the commit."""

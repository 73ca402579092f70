"""Outcomes and plain sends are committed in groups; then, and only then, messages are acknowledged."""

"""Statements that only read, and the values that are derived from their rows."""

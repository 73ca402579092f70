"""Statements that only read, and what is derived from the rows they give."""

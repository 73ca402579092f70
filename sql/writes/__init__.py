"""Statements that change rows, one function each, by topic. The caller passes the connection, and opens a transaction
around several functions.
"""

"""Statements that change rows, one function each, by topic; a caller passes the connection, and a transaction where
several belong together.
"""

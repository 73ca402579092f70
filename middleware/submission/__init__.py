"""Stores items as rows: bulk submissions, plain sends, the encoding of items, and the lookup of actors."""

"""An item becomes a row: bulk submissions, plain sends, and what both need to encode an item and to find its actor."""

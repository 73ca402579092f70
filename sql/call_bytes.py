"""The arguments of an item as its row stores them: without the 20 bytes that are equal in every row.

The app's encoder writes ``{"args": […], "kwargs": {…}}``. A mark of one byte replaces the JSON around arguments that
are all by position, or all by keyword. Other bytes stay unchanged; if they begin with a mark, the mark OTHER is put
before them. So a row always decodes to exactly the bytes that the encoder wrote.
"""

#: The marks: before bytes that begin with a mark; before arguments by position; before arguments by keyword.
OTHER, BY_POSITION, BY_KEYWORD = b"\x00", b"\x01", b"\x02"
#: The JSON before and after arguments by position, and by keyword.
POSITION_AROUND = b'{"args":[', b'],"kwargs":{}}'
KEYWORD_AROUND = b'{"args":[],"kwargs":{', b"}}"

_AROUND = {OTHER: (b"", b""), BY_POSITION: POSITION_AROUND, BY_KEYWORD: KEYWORD_AROUND}


def packed(encoded: bytes) -> bytes:
    """Convert the bytes of the app's encoder to the bytes that a row stores."""
    for mark, (before, behind) in _AROUND.items():
        if mark != OTHER and encoded.startswith(before) and encoded.endswith(behind):
            return mark + encoded[len(before) : -len(behind)]
    return OTHER + encoded if encoded[:1] in _AROUND else encoded


def unpacked(stored: bytes) -> bytes:
    """Convert the bytes that a row stores to the bytes of the app's encoder."""
    around = _AROUND.get(stored[:1])
    return stored if around is None else stored[1:].join(around)


def seems_json(stored: bytes) -> bool:
    """Return whether the bytes that a row stores look like a call in JSON, by their first and last bytes."""
    return stored[:1] in (BY_POSITION, BY_KEYWORD) or (stored.startswith(b"{") and stored.endswith(b"}"))

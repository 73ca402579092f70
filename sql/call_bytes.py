"""The arguments of an item as its row keeps them: without the words that are the same in each row, 20 bytes of it.

The app's encoder writes ``{"args": […], "kwargs": {…}}``. A mark, which is one byte, stands for what JSON has around
arguments that are all by position, or all by keyword. Other bytes stay as they are; if they begin with a mark, another
mark stands before them. So each row reads again as what the encoder wrote, whatever that was.
"""

#: Before bytes that begin with a mark themselves; before arguments by position; before those by keyword.
OTHER, BY_POSITION, BY_KEYWORD = b"\x00", b"\x01", b"\x02"
#: What stands before and behind both.
POSITION_AROUND = b'{"args":[', b'],"kwargs":{}}'
KEYWORD_AROUND = b'{"args":[],"kwargs":{', b"}}"

_AROUND = {OTHER: (b"", b""), BY_POSITION: POSITION_AROUND, BY_KEYWORD: KEYWORD_AROUND}


def packed(encoded: bytes) -> bytes:
    """Return the bytes that the app's encoder wrote as a row keeps them."""
    for mark, (before, behind) in _AROUND.items():
        if mark != OTHER and encoded.startswith(before) and encoded.endswith(behind):
            return mark + encoded[len(before) : -len(behind)]
    return OTHER + encoded if encoded[:1] in _AROUND else encoded


def unpacked(stored: bytes) -> bytes:
    """Return the bytes that the app's encoder wrote, of those that a row keeps."""
    around = _AROUND.get(stored[:1])
    return stored if around is None else stored[1:].join(around)


def seems_json(stored: bytes) -> bool:
    """Return whether bytes that a row keeps are of a call in JSON, by how they begin and end."""
    return stored[:1] in (BY_POSITION, BY_KEYWORD) or (stored.startswith(b"{") and stored.endswith(b"}"))

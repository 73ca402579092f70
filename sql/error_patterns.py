"""The pattern of an error's message: the message, with the parts replaced that vary from item to item."""

import re

#: The most characters of a message that are read, and of its pattern: an index contains it.
LOOKED_AT_CHARS = 500
PATTERN_CHARS = 200
#: The pattern of an empty message. The empty pattern is for messages beyond a job's most groups of errors.
NO_TEXT = "(no text)"

#: An HTTP error status. It distinguishes causes, so it stays.
_STATUS = r"(?:4(?:0\d|1[0-8]|2[1-689]|31|51)|5(?:0[0-8]|1[01]|2[0-7]))"
_VARYING = re.compile(
    rf"""
      (?P<kept>
          \A{_STATUS}(?=\W*\Z|[,:;\])]|\s(?:[A-Z]|for\b|from\b))     # at the beginning, before what it means
        | (?i:http(?:/[\d.]+)?|status|code|error)\W{{1,3}}{_STATUS}\b  # "HTTP 404", "status_code=404"
        | (['"]){_STATUS}\ [A-Z][^'"]{{1,40}}\2                      # '404 Not Found'
      )
    | (?P<url>   \b[a-zA-Z][\w+.-]*://[^\s'"<>)\]}}]+ )
    | (?P<text>  (?<!\w)[bru]{{0,2}}(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`)(?!\w) | “[^”]*” | «[^»]*» )
    | (?P<email> [\w.+-]+@[\w.-]+\w )
    | (?P<path>  (?<![\w.])(?:/[\w.@~+-]+){{2,}}/? | \b[A-Za-z]:\\\S+ )
    | (?P<id>    \b[0-9a-fA-F]{{8}}(?:-[0-9a-fA-F]{{4}}){{3}}-[0-9a-fA-F]{{12}}\b | \b[0-9a-fA-F]{{8,}}\b
                 | (?<![\w.])[+-]?\w*\d\w*(?:[-.:,/+]\w*\d\w*)* )
    """,
    re.VERBOSE,
)
#: Lists of replaced values have any length, so they are reduced to one.
_REPEATED = re.compile(r"(#|<\w+>)(?:[\s,;]+\1)+")
#: A quotation without its end.
_CUT_QUOTE = re.compile(r"""(?<!\w)['"`“«][^'"`”»]*\Z""")


def pattern(message: str) -> str:
    """Return a message with its numbers, ids, URLs, paths, e-mail addresses and quoted values replaced; never empty.

    Messages with the same cause have the same pattern for all items. The status of an HTTP answer stays.
    """
    text = " ".join(message[:LOOKED_AT_CHARS].split())
    text = _VARYING.sub(_replacement, text)
    if len(message) > LOOKED_AT_CHARS:
        text = _CUT_QUOTE.sub("<text>", text)
    return _REPEATED.sub(r"\1", text)[:PATTERN_CHARS] or NO_TEXT


def _replacement(found: re.Match[str]) -> str:
    kind = found.lastgroup
    return found[0] if kind == "kept" else "#" if kind == "id" else f"<{kind}>"

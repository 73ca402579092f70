"""The README as tests read it: its blocks of code, its tables, the commands and the links in it."""

import re

from tests.support.paths import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The fenced blocks in a language."""
    return [text for kind, text in _BLOCK.findall(TEXT) if kind == language]


def block(language: str, with_: str) -> str:
    """The one block of a language that has this in it."""
    [found] = [text for text in blocks(language) if with_ in text]
    return found


def first_column(heading: str) -> list[str]:
    """The words between backquotes in the first column of the table whose heading row begins so."""
    rows = TEXT.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = (re.split(r"(?<!\\)\|", row)[1] for row in rows)
    return [word.replace("\\|", "|") for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


def commands() -> list[str]:
    """Whatever the README has anybody type that begins with `callboard`."""
    prose = _BLOCK.sub("", TEXT).replace("\\|", "|")
    lines = re.findall(r"`(callboard [^`]+)`", prose) + [
        line.partition("#")[0] for text in blocks("sh") for line in text.splitlines()
    ]
    return [
        f"callboard {rest.strip()}"
        for line in lines
        for rest in re.findall(r"(?:^|[|\s])callboard ((?!\.)[^|]*(?:\|-\].*)?)", line)
    ]


def links() -> list[str]:
    """The targets of its links that lead into this repository."""
    return [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]

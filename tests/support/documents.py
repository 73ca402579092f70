"""The README and the guides in docs/ as tests read them: blocks of code, tables, commands and links."""

import re

from tests.support.paths import ROOT

#: The text of each page, by its path in the repository.
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
TEXT = "\n".join(PAGES.values())
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str, page: str | None = None) -> list[str]:
    """The fenced blocks in a language, of a page or of all pages."""
    text = TEXT if page is None else PAGES[page]
    return [text for kind, text in _BLOCK.findall(text) if kind == language]


def block(language: str, with_: str) -> str:
    """The one block of a language that has this in it."""
    [found] = [text for text in blocks(language) if with_ in text]
    return found


def lines() -> list[str]:
    """The lines of all shell blocks."""
    return [line for text in blocks("sh") for line in text.splitlines()]


def files() -> dict[str, str]:
    """The Python files that a reader saves, by name: the blocks whose first line is their name as a comment."""
    named = [(re.match(r"# ([\w/]+\.py)\n", text), text) for text in blocks("python")]
    return {name[1]: text for name, text in named if name}


def table(heading: str) -> list[list[str]]:
    """The cells of each row of the one table whose heading row begins so."""
    [rows] = re.findall(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows.splitlines()]
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in cells]


def first_column(heading: str) -> list[str]:
    """The words between backquotes in the first column of the one table whose heading row begins so."""
    return [word for row in table(heading) for word in re.findall(r"`([^`]+)`", row[0])]


def commands() -> list[str]:
    """Each command line that begins with `callboard`, in prose, in tables or in a shell block."""
    prose = _BLOCK.sub("", TEXT).replace("\\|", "|")
    found = re.findall(r"`(callboard [^`]+)`", prose) + [line.partition("#")[0] for line in lines()]
    return [
        f"callboard {rest.strip()}"
        for line in found
        for rest in re.findall(r"(?:^|[|\s(])callboard ((?!\.)[^|)]*(?:\|-\].*)?)", line)
    ]


def links() -> list[tuple[str, str]]:
    """The links that lead into this repository: the page each stands on, and its target."""
    found = [(page, target) for page, text in PAGES.items() for target in re.findall(r"\]\(([^)]+)\)", text)]
    return [(page, target) for page, target in found if "://" not in target]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", PAGES[page]), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

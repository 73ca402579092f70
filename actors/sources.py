"""An actor that measures Python sources: what `callboard demo` runs over a standard library."""

import ast
import io
import re
import stat
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import dramatiq

import callboard

#: What a Python source is called.
SUFFIXES = (".py", ".pyi", ".pyw")
#: Bytes; a syntax tree takes about a hundred times its source.
LARGEST = 8 * 1024 * 1024

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
BLOCKS = (*DEFINITIONS, *LOOPS, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
BRANCHES = (*LOOPS, ast.If, ast.IfExp, ast.ExceptHandler, ast.BoolOp, ast.comprehension, ast.Match)
IMPORTS = (ast.Import, ast.ImportFrom)
# Most of a tree, with nothing below them: to leave them out makes it three times as fast.
LEAVES = {ast.Name, ast.Constant, ast.Load, ast.Store, ast.Del, ast.alias}

# A comment or a string: ten times as fast as the tokenizer, which shows when there are thousands of files.
STRING = re.compile(
    r"""#[^\n]*|(\"{3}|'{3})(?:\\.|.)*?\1|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL
)

# The compiler warns of what it reads; that is the source's matter, and no line for a worker's log.
UNNAMED = "callboard-measures"
warnings.filterwarnings("ignore", module=UNNAMED)


@dramatiq.actor(queue_name="callboard", max_retries=0)
def measure_source(path: str) -> dict[str, Any]:
    """Measure one Python source: see `measure` for the result.

    Skipped is what claims to be no Python source, or is too large. What claims to be one and isn't fails, with a
    SyntaxError or UnicodeDecodeError; so does a path that doesn't exist (FileNotFoundError), since a wrong path must
    not look like work done.
    """
    return measure(read(Path(path)), Path(path).name)


def read(path: Path) -> bytes:
    """A source's bytes; raises Skip for what is none, OSError for what can't be read."""
    if path.suffix.lower() not in SUFFIXES:
        raise callboard.Skip(f"not a Python source: its name ends in none of {', '.join(SUFFIXES)}")
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise callboard.Skip("not a file")
    if found.st_size > LARGEST:
        raise callboard.Skip(f"{found.st_size:,} bytes, and {LARGEST:,} are measured at most")
    return path.read_bytes()


def measure(source: bytes, name: str) -> dict[str, Any]:
    """Figures of a source: `lines` = `code` + `comments` + `blank`; `functions`, `classes`, `depth` of nested blocks;
    cyclomatic `complexity` of all and of the `highest` function; the modules it `imports`.

    Raises SyntaxError (with `name` as the file), or UnicodeDecodeError.
    """
    text = decode(source, name)
    code = Structure().walk(parse(text, name))
    return {"bytes": len(source), **lines(text), **code.figures()}


def decode(source: bytes, name: str) -> str:
    """The text, by the encoding that the source itself declares."""
    if b"\0" in source:
        raise SyntaxError("null bytes: binary data, or UTF-16", (name, 1, 0, None))
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return io.TextIOWrapper(io.BytesIO(source), encoding).read()


def parse(text: str, name: str) -> ast.Module:
    """The syntax tree."""
    try:
        return ast.parse(text, UNNAMED)
    except SyntaxError as error:
        error.filename = name
        raise


def lines(text: str) -> dict[str, int]:
    """How many lines there are of each kind. A line of a string that spans many is code, also when it looks blank."""
    stripped = [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []
    for line in inside_strings(text):
        stripped[line] = "code"
    blank = stripped.count("")
    comments = sum(line.startswith("#") for line in stripped)
    return {
        "lines": len(stripped),
        "code": len(stripped) - comments - blank,
        "comments": comments,
        "blank": blank,
    }


def inside_strings(text: str) -> Iterator[int]:
    """The lines, from 0, that hold a part of a string that spans many."""
    line = at = 0
    for found in STRING.finditer(text):
        spans = found[0].count("\n")
        if spans:
            line += text.count("\n", at, found.start())
            yield from range(line, line + spans + 1)
            line += spans
            at = found.end()


@dataclass(slots=True)
class Structure:
    """What a syntax tree holds. A function's complexity is one and its decisions, without those of functions in it;
    decisions outside any function are the module's.
    """

    classes: int = 0
    depth: int = 0
    imports: set[str] = field(default_factory=set)
    functions: dict[str, int] = field(default_factory=dict)  # complexity by "qualified.name:line"
    outside: int = 1

    def walk(self, tree: ast.Module) -> Self:
        """Take in a whole tree; without recursion, since sources nest deeper than Python's stack."""
        todo: list[tuple[ast.AST, Place]] = [(tree, Place())]
        while todo:
            node, place = todo.pop()
            if isinstance(node, BLOCKS):
                place = self._enter(node, place)
            elif isinstance(node, IMPORTS):
                self.imports.update(imported(node))
            if isinstance(node, BRANCHES):
                self._decide(decisions(node), place)
            children = [child for child in ast.iter_child_nodes(node) if type(child) not in LEAVES]
            if isinstance(node, ast.If) and is_chained(node):
                # An `elif` is an `if` in an `else`, and no deeper than the one it belongs to.
                todo.append((children.pop(), place._replace(depth=place.depth - 1)))
            todo += [(child, place) for child in children]
        return self

    def _enter(self, node: ast.AST, place: "Place") -> "Place":
        self.classes += isinstance(node, ast.ClassDef)
        within = place.within(node)
        self.depth = max(self.depth, within.depth)
        if isinstance(node, FUNCTIONS) and within.function:
            self.functions.setdefault(within.function, 1)
        return within

    def _decide(self, ways: int, place: "Place") -> None:
        if place.function is None:
            self.outside += ways
        else:
            self.functions[place.function] += ways

    def figures(self) -> dict[str, Any]:
        """As `measure` gives them."""
        highest = max(self.functions, key=self.functions.__getitem__, default=None)
        return {
            "functions": len(self.functions),
            "classes": self.classes,
            "depth": self.depth,
            "complexity": self.outside + sum(self.functions.values()),
            "highest": highest and {"function": highest, "complexity": self.functions[highest]},
            "imports": sorted(self.imports),
        }


class Place(NamedTuple):
    """Where a node stands: the names around it, the function it belongs to, how many blocks deep."""

    name: str = ""
    function: str | None = None
    depth: int = 0

    def within(self, block: ast.AST) -> "Place":
        """The place of what a block holds that stands here."""
        if not isinstance(block, DEFINITIONS):
            return self._replace(depth=self.depth + 1)
        name = f"{self.name}.{block.name}".lstrip(".")
        function = f"{name}:{block.lineno}" if isinstance(block, FUNCTIONS) else self.function
        return Place(name, function, self.depth + 1)


def is_chained(node: ast.If) -> bool:
    """Whether an `elif` follows; it is the last of the node's children."""
    match node.orelse:
        case [ast.If(col_offset=column)]:
            return column == node.col_offset
    return False


def decisions(node: ast.AST) -> int:
    """The ways that a node adds to those through its function."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return len(node.cases) if isinstance(node, ast.Match) else 1


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that a node imports; a relative one begins with its dots."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield "." * node.level + (node.module or "")

"""Converts rows to arrays: a statement takes many rows at once, as one array per column.

The columns of a row class are its fields whose annotation names a PostgreSQL type. A nested row's columns have the name
of its field as a prefix, as in `failure_kind`. The parameters, and the table that ``{Event}`` includes in a statement,
are made from these columns, so a new field is declared once.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import cache
from operator import attrgetter
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

#: Types whose values are finite numbers.
NUMBERS = ("bigint", "int", "float8")
#: PostgreSQL's type oids of bytea and bytea[].
BYTEA, BYTEA_ARRAY = 17, 1001
#: The binary header of an array: its dimensions, whether it has a NULL, the type of its elements; and for one dimension
#: their number and the first index. Third: the length of an element.
_NONE, _SOME, _LENGTH = struct.Struct("!iii"), struct.Struct("!iiiii"), struct.Struct("!i")


@cache
def columns(row: type) -> dict[str, Any]:
    """Return, for each field with columns, the name of its PostgreSQL type, or the class of its nested row."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(row, include_extras=True).items():
        for part in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
            if get_origin(part) is Annotated:
                found[name] = part.__metadata__[0]
            elif isinstance(part, type) and columns(part):
                found[name] = part
    return found


def table(row: type) -> str:
    """Return the SQL of a table of such rows, with their columns and their position `nth`, from 1."""
    names, arrays = [], []
    for name, kind in _flat(row):
        names.append(name)
        # Binary, because in text each byte would become two characters.
        format_ = "b" if kind == "bytea" else "s"
        arrays.append(f"%({row.__name__}_{name}){format_}::{kind}[]")
    values, heads = ", ".join(arrays), ", ".join(names)  # no user input
    return f"(SELECT * FROM unnest({values}) WITH ORDINALITY AS r ({heads}, nth))"  # noqa: S608


def parameters(row: type, rows: Sequence[Any]) -> dict[str, Any]:
    """Return the parameters of a statement with a table of these rows."""
    return {f"{row.__name__}_{name}": array for name, array in _arrays(row, rows)}


def _flat(row: type) -> Iterator[tuple[str, str]]:
    for name, kind in columns(row).items():
        if isinstance(kind, str):
            yield name, kind
        else:
            yield from ((f"{name}_{inner}", of) for inner, of in _flat(kind))


def _arrays(row: type, rows: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for name, kind in columns(row).items():
        values = list(map(attrgetter(name), rows))
        if isinstance(kind, str):
            yield name, array(kind, values)
        else:
            absent = SimpleNamespace(**dict.fromkeys(columns(kind)))
            within = [value or absent for value in values] if any(values) else ()
            yield from ((f"{name}_{inner}", written) for inner, written in _arrays(kind, within))


def array(kind: str, values: Sequence[Any]) -> Any:
    """Return an array in PostgreSQL's format, because psycopg is slow with lists. An array with only None, or only
    False, becomes empty: unnest fills it with NULL.
    """
    absent = values.count(None)
    if absent == len(values) or (kind == "bool" and not any(values)):
        return _Bytes() if kind == "bytea" else "{}"
    if kind == "bytea":
        return _Bytes(values)
    if kind in NUMBERS:  # JSON has PostgreSQL's format, and takes a tenth of the time of `str`
        return "{" + msgspec.json.encode(values)[1:-1].decode() + "}"
    write = _quoted if kind == "text" else str
    texts = ("NULL" if value is None else write(value) for value in values) if absent else map(write, values)
    return "{" + ",".join(texts) + "}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Bytes(list[bytes | None]):
    """An array of bytea, which is sent in binary format."""


class _BytesDumper(Dumper):
    """Encodes a `_Bytes`. It takes a fifth of the time of psycopg's own dumper for a few values."""

    oid, format = BYTEA_ARRAY, Format.BINARY

    def dump(self, obj: _Bytes) -> bytes:
        """Return the array in PostgreSQL's binary format."""
        if not obj:
            return _NONE.pack(0, 0, BYTEA)
        parts = [_SOME.pack(1, None in obj, BYTEA, len(obj), 1)]
        for value in obj:
            parts += (_LENGTH.pack(-1),) if value is None else (_LENGTH.pack(len(value)), value)
        return b"".join(parts)


psycopg.adapters.register_dumper(_Bytes, _BytesDumper)

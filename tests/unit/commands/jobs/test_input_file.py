"""Files that people have: what becomes of each line, and what is said of it."""

import errno
import gzip
import io
import os
from pathlib import Path

import pytest

from callboard.commands.errors import CommandError, explain
from callboard.commands.jobs import input_file
from callboard.middleware.submission.json_lines import BadLine


def read(
    tmp_path: Path, content: bytes, form: str = "csv", encoding: str | None = None
) -> tuple[list[object], list[str]]:
    """The items and bad lines of a file, and what is said of it."""
    said: list[str] = []
    (tmp_path / "file").write_bytes(content)
    with input_file.opened(str(tmp_path / "file"), encoding, said.append) as source:
        by = input_file.delimiter(source, said.append) if form == "csv" else ","
        found = [item for _, item in input_file.items(source, form, None, by)]
    return [str(item) if isinstance(item, BadLine) else item for item in found], said


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_that_begins_with_the_mark_of_its_encoding_is_read_in_it(
    encoding: str, end: str, tmp_path: Path
) -> None:
    content = end.join(["größe,path", "1,a", "2,日本"]).encode(encoding)
    expected = [{"größe": "1", "path": "a"}, {"größe": "2", "path": "日本"}]
    assert read(tmp_path, content) == (expected, [f"reading the file as {encoding.upper()}, by its byte order mark"])
    lines = '{"path": "日本"}\n'.encode(encoding)
    assert read(tmp_path, lines, "jsonl")[0] == [{"path": "日本"}]


def test_another_encoding_is_said_by_an_option(tmp_path: Path) -> None:
    content = "path,größe\na,1\n".encode("cp1252")
    with pytest.raises(CommandError, match="line 1: not UTF-8: give the file's encoding"):
        read(tmp_path, content)
    assert read(tmp_path, content, encoding="cp1252") == ([{"path": "a", "größe": "1"}], [])
    assert read(tmp_path, "path\na\n".encode("utf-16-le"), encoding="utf-16-le")[0] == [{"path": "a"}]
    (wrong,), _ = read(tmp_path, '"größe"\n'.encode("cp1252"), "jsonl")
    assert wrong == f"line 1: {input_file.NOT_UTF8}"
    with pytest.raises(CommandError, match="the file has NUL characters: if it is UTF-16"):
        read(tmp_path, "path\na\n".encode("utf-16-le"))
    with pytest.raises(CommandError, match="the file is not ascii"):
        read(tmp_path, content, encoding="ascii")
    with pytest.raises(CommandError, match="there is no encoding 'klingon'"):
        read(tmp_path, content, encoding="klingon")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a,b\n1,2\n\n1,2,3\n", [{"a": "1", "b": "2"}, "line 4: 3 fields, and the header has 2"]),
        (b"a,b\n1\n", ["line 2: 1 fields, and the header has 2"]),
        (b"\n \r\na;b\n1;2\n1\n", [{"a": "1", "b": "2"}, "line 5: 1 fields, and the header has 2"]),
        (b'a\nb\n"x\ny\n', [{"a": "b"}, "line 3: not valid CSV: unexpected end of data (lines 3 to 4, 2 rows)"]),
        (
            b'a\n1\n"2\n3\n4\n5 "five" inch\n6\n',
            [{"a": "1"}, "line 3: not valid CSV: ',' expected after '\"' (lines 3 to 6, 4 rows)", {"a": "6"}],
        ),
        (b"a\ncaf\xe9\n", [f"line 2: {input_file.NOT_UTF8}"]),
        (b"a\n" + b"x\n" * 2048 + b"a\x00\n", [*[{"a": "x"}] * 2048, "line 2050: a NUL character"]),
        (b'a,b\n"1\n2",3\n', [{"a": "1\n2", "b": "3"}]),
    ],
)
def test_a_row_that_is_no_item_is_named_with_the_lines_it_takes(
    content: bytes, expected: list[object], tmp_path: Path
) -> None:
    assert read(tmp_path, content)[0] == expected


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_what_divides_the_columns_is_read_off_the_header(sign: str, tmp_path: Path) -> None:
    found, said = read(tmp_path, f"path{sign}size\na{sign}1,5\n".encode())
    assert found == [{"path": "a", "size": "1,5"}]
    assert said == [f"reading the columns as separated by {sign!r}; --delimiter overrides this"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"path\na\n", mtime=0), "submit what `zcat` writes"),
        (b"PK\x03\x04\x14\x00", "a spreadsheet or a ZIP archive"),
        (b"path\ra\rb\r", "end with CR only"),
    ],
)
def test_a_file_that_is_no_text_of_lines_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=said):
        read(tmp_path, content)


def test_a_tab_is_named_as_a_shell_passes_it() -> None:
    assert [input_file.named_delimiter(given) for given in (";", "\t", "\\t", " ")] == [";", "\t", "\t", " "]
    for wrong in ("", "||", "\\n", "\n", "\r", '"'):
        with pytest.raises(CommandError, match="--delimiter must be one character like"):
            input_file.named_delimiter(wrong)


def test_an_item_key_that_is_null_is_a_bad_line() -> None:
    source = io.BytesIO(b'{"n": 0}\n{"n": null}\n{}\n')
    first, second, third = (item for _, item in input_file.items(source, "jsonl", "n"))
    assert first == {"n": 0}
    assert str(second) == "line 2: its field 'n', which --item-key names, is null"
    assert str(third) == "line 3: it has no field 'n', which --item-key names"


@pytest.mark.parametrize("header", [b"path", b"a;b,c", b"a;b|c"])
def test_a_header_that_does_not_say_is_divided_by_commas(header: bytes) -> None:
    assert input_file.delimiter(io.BytesIO(header + b"\n"), pytest.fail) == ","


def test_a_json_array_is_no_json_lines() -> None:
    for content in (b'[{"path": 1}, {"path": 2}]\n', b'\n[\n  {"path": 1},\n  {"path": 2}\n]\n', b'[\n{"a":1}]'):
        with pytest.raises(CommandError, match="the file is one JSON array"):
            input_file.check_no_array(io.BytesIO(content))
    for content in (b"", b"[1, 2]\n", b'[{"a": 1}]\n', b'[{"a": 1}, {"b": 2}]\n[1]\n', b'{"path": 1}\n', b"nope\n["):
        input_file.check_no_array(io.BytesIO(content))


def test_a_file_that_breaks_off_while_it_is_read_is_a_line() -> None:
    class Stale(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            return super().readline(size) or self.fail()

        def fail(self) -> bytes:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with pytest.raises(OSError, match="Stale") as caught:
        list(input_file.items(Stale(b"1\n2\n"), "jsonl", None))
    assert explain(caught.value) == "can't read or write a file: Stale file handle"

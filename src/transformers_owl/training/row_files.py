"""Files of rows: JSON, JSON Lines and tables, in several encodings, compressed or not.

A row has a number for messages: in JSON its place in the list, in other files the line in which it starts, with blank
lines and the header counted.
"""

import codecs
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


# What may stand before a text in Unicode, the longer ones first.
MARKS = {
    b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
}  # fmt: skip
SEPARATORS = ",;\t"
LONGEST_FIELD = 2**31 - 1
GZIP = b"\x1f\x8b"
BOM = "\ufeff"
PIECE = 2**24
BLANKS = re.compile(r"[ \t\r\n]*")


class File:
    """
    The rows of a file.

    Args:
        rows (`Sequence`): Dictionaries, or the inputs of `parse`.
        numbers (`Sequence[int]`, *optional*): The number of each row in the file; by default 1, 2, 3 and so on.
        parse (`Callable`, *optional*): Makes a row of an item of `rows`.
    """

    def __init__(
        self,
        rows: Any,
        numbers: Sequence[int] | np.ndarray | None = None,
        parse: Callable[[Any], Any] | None = None,
    ):
        self.rows = rows
        self.numbers = range(1, len(rows) + 1) if numbers is None else numbers
        self.parse = parse

    def row(self, number: int) -> dict[str, Any]:
        """
        Raises:
            ValueError: for a row that is not JSON, not a dictionary, or does not match the header of its table.
        """
        row = self.rows[number] if self.parse is None else self.parse(self.rows[number])
        if not isinstance(row, dict):
            raise ValueError(f"{row!r:.80} is not a dictionary of fields")
        return row


class Spans:
    """
    Pieces of a UTF-8 text, read from its file on demand, so that they take no memory.

    Args:
        content (`str` or `bytes`): Name of the file; its contents if it is compressed or in another encoding.
        bounds (`np.ndarray` (N, 2)): Start and end of each piece in bytes.

    Raises:
        ValueError: when reading a piece, if the file has changed since.
    """

    def __init__(self, content: str | bytes, bounds: np.ndarray):
        self.content = content
        self.bounds = bounds
        self.version = version_of(content)

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, number: int) -> str:
        if version_of(self.content) != self.version:
            raise ValueError("the file has changed since it was opened: start the run again")
        first, end = self.bounds[number].tolist()
        with open_content(self.content) as file:
            file.seek(first)
            return file.read(end - first).decode()


def read_file(name: str) -> File:
    """
    Opens a .json, .jsonl, .csv or .tsv file, also compressed by gzip.

    Raises:
        ValueError: for other contents, and for text that is neither UTF-8 nor has the BOM of another Unicode encoding.
    """
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    content = name if is_plain(name) else read_text(name).encode()
    readers = {".csv": _table, ".tsv": _table, ".jsonl": _lines, ".ndjson": _lines}
    try:
        return readers.get(suffix, _list)(name, content)
    except UnicodeDecodeError:
        read_text(name)  # says where
        raise


def is_plain(name: str) -> bool:
    """Whether a file is neither compressed nor has the BOM of another encoding than UTF-8."""
    with open(name, "rb") as file:
        head = file.read(4)
    return not head.startswith((GZIP, *MARKS))


def version_of(content: str | bytes) -> tuple[int, int] | None:
    """Size and modification time of a file."""
    if isinstance(content, bytes):
        return None
    found = os.stat(content)
    return found.st_size, found.st_mtime_ns


def open_content(content: str | bytes) -> BinaryIO:
    return io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")


def _lines(name: str, content: str | bytes) -> File:
    """Opens JSON Lines; blank lines are skipped."""

    def rows() -> Iterator[tuple[int, int, int]]:
        end = 0
        for number, line in enumerate(_read_lines(content), 1):
            first, end = end, end + len(line)
            if line.decode().removeprefix(BOM).strip():
                yield number, first, end

    return _pieces(content, rows(), _read_row)


def _pieces(content: str | bytes, rows: Iterable[tuple[int, int, int]], parse: Callable[[str], Any]) -> File:
    """A file of rows, given the number, start and end of each."""
    found = np.fromiter(rows, dtype=np.dtype((np.int64, 3)))
    return File(Spans(content, found[:, 1:]), found[:, 0], parse)


def _read_lines(content: str | bytes) -> Iterator[bytes]:
    with open_content(content) as file:
        yield from file


def _read_row(text: str) -> Any:
    return json.loads(text.removeprefix(BOM))


def _list(name: str, content: str | bytes) -> File:
    """Opens a JSON list."""
    try:
        return _pieces(content, _items(content), json.loads)
    except (json.JSONDecodeError, RecursionError, TypeError):
        rows = read_json(name)  # says what is wrong
        raise ValueError(f"{name} is a {type(rows).__name__}, but must be a list of rows.") from None


def _items(content: str | bytes) -> Iterator[tuple[int, int, int]]:
    """
    Number, start and end in bytes of each item of a JSON list.

    Raises:
        TypeError: for any other JSON.
    """
    with open_content(content) as file:
        text = Window(file)
        number = 0
        if text.sign() != "[":
            raise TypeError
        text.move(1)
        while not (text.sign() == "]" and number == 0):
            number += 1
            yield number, *text.item()
            if text.sign() != ",":
                break
            text.move(1)
        if text.sign() != "]":
            raise TypeError
        text.move(1)
        if text.sign():
            raise TypeError


class Window:
    """A window over a JSON text, which is read piece by piece; `byte` is its position in the file."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.scan = json.JSONDecoder().raw_decode
        self.byte = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
        file.seek(0)
        self.text, self.place = "", 0

    def grow(self) -> bool:
        piece = self.file.read(PIECE)
        self.text, self.place = self.text[self.place :] + self.decode(piece, not piece), 0
        return bool(piece)

    def move(self, count: int) -> None:
        passed = self.text[self.place : self.place + count]
        self.byte += len(passed) if passed.isascii() else len(passed.encode())
        self.place += count

    def sign(self) -> str:
        """The next character that is not blank, or "" at the end."""
        while True:
            end = BLANKS.match(self.text, self.place).end()  # type: ignore[union-attr]
            self.move(end - self.place)
            if self.place < len(self.text) or not self.grow():
                return self.text[self.place : self.place + 1]

    def item(self) -> tuple[int, int]:
        """Skips one value, and returns its start and end in bytes."""
        self.sign()
        first, is_whole = self.byte, False
        while True:
            try:
                _, end = self.scan(self.text, self.place)
                if end < len(self.text) or is_whole:  # at the end of a piece a number may go on
                    self.move(end - self.place)
                    return first, self.byte
            except json.JSONDecodeError:
                if is_whole:
                    raise
            is_whole = not self.grow()


def read_json(name: str) -> Any:
    """
    Raises:
        ValueError: for a file that is not JSON.
    """
    try:
        return json.loads(read_text(name))
    except (json.JSONDecodeError, RecursionError) as error:
        hint = " If every line is a row, name it .jsonl." if "Extra data" in str(error) else ""
        raise ValueError(f"{name} is not valid JSON: {error}.{hint}") from error


def read_text(name: str) -> str:
    """
    Raises:
        ValueError: for another encoding, with the line and what to do.
    """
    content = Path(name).read_bytes()
    if content.startswith(GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{name} cannot be decompressed by gzip: {error}") from error
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}, row {line}: {error.object[error.start : error.start + 1]!r} is not text in {error.encoding}. "
            "Save the file as UTF-8, for example by `iconv -f WINDOWS-1252 -t UTF-8`."
        ) from error


def _table(name: str, content: str | bytes) -> File:
    """Opens a table, with the separator of its first line."""
    csv.field_size_limit(LONGEST_FIELD)  # 128 KiB by default, which a base64 image or a long chat exceeds
    head = next((line for raw in _read_lines(content) if (line := raw.decode("utf-8-sig")).strip()), "")
    separator = max(SEPARATORS, key=head.count)
    starts = [0]
    records = _records(_text_lines(content, starts), separator)
    _, names = next(records, (None, []))
    rows = ((first, starts[first - 1], starts[last]) for (first, last), _ in records)
    return _pieces(content, rows, partial(_read_record, [name.strip() for name in names], separator))


def _text_lines(content: str | bytes, starts: list[int]) -> Iterator[str]:
    """The lines of a table; the end of each in bytes is appended to `starts`."""
    for raw in _read_lines(content):
        for line in raw.splitlines(keepends=True):  # of bytes: by \n, \r and both
            text = line.decode() if starts[-1] else line.decode("utf-8-sig")
            starts.append(starts[-1] + len(line))
            yield text


def _read_record(names: list[str], separator: str, text: str) -> dict[str, str]:
    fields = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    if len(fields) != len(names):
        raise ValueError(f"it has {len(fields)} fields, but the table has {len(names)}: quote fields with a separator")
    return dict(zip(names, fields, strict=True))


def _records(lines: Iterator[str], separator: str) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """The first and last line of each row of a table, and its fields; blank lines are skipped."""
    reader = csv.reader(lines, delimiter=separator)
    begins = 1
    for fields in reader:
        if any(field.strip() for field in fields):
            yield (begins, reader.line_num), fields
        begins = reader.line_num + 1

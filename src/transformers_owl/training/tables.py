"""Files of rows as people have them: JSON, JSON lines and tables, in several encodings, packed or not.

A row is known by its number: in JSON its place in the list, in the others the line that it begins in, blank lines and
the names of a table's columns counted.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


# What may stand before a text in Unicode, the longer ones first.
MARKS = {
    b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
}  # fmt: skip
SEPARATORS = ",;\t"
LONGEST_FIELD = 2**31 - 1


class File:
    """
    The rows of a file.

    Args:
        rows (sequence): Dictionaries, or lines of JSON that are read when they are drawn.
        numbers (`Sequence[int]`, *optional*): The number of each in the file; by default 1, 2, 3 and so on.
    """

    def __init__(self, rows: Any, numbers: Sequence[int] | None = None):
        self.rows = rows
        self.numbers = range(1, len(rows) + 1) if numbers is None else numbers

    def row(self, number: int) -> dict[str, Any]:
        """
        Raises:
            ValueError: for a row that is no JSON, no dictionary, or has other fields than its table.
        """
        row = self.rows[number]
        if isinstance(row, str):
            row = json.loads(row)
        if isinstance(row, Ragged):
            raise ValueError(f"{row.found} fields in a table of {row.columns}: quote the fields that hold a separator")
        if not isinstance(row, dict):
            raise ValueError(f"{row!r:.80} is no dictionary of fields")
        return row


class Ragged:
    """A row of a table that has more or fewer fields than columns have names."""

    def __init__(self, found: int, columns: int):
        self.found = found
        self.columns = columns


def read_file(name: str) -> File:
    """
    The rows of a .json, .jsonl, .csv or .tsv file, also packed by gzip.

    Raises:
        ValueError: for what is none of them, or is no text in UTF-8 or with the mark of another Unicode encoding.
    """
    suffix = Path(name.removesuffix(".gz")).suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _table(read_text(name))
    if suffix in (".jsonl", ".ndjson"):
        lines = read_text(name).split("\n")
        numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
        return File([lines[number - 1] for number in numbers], numbers)
    rows = read_json(name)
    if not isinstance(rows, list):
        raise ValueError(f"{name} holds {type(rows).__name__}, but a list of rows was expected.")
    return File(rows)


def read_json(name: str) -> Any:
    """
    Raises:
        ValueError: for a file that is no JSON.
    """
    try:
        return json.loads(read_text(name))
    except (json.JSONDecodeError, RecursionError) as error:
        hint = " If every line is a row, name it .jsonl." if "Extra data" in str(error) else ""
        raise ValueError(f"{name}: no JSON: {error}.{hint}") from error


def read_text(name: str) -> str:
    """
    Raises:
        ValueError: for another encoding, with the line and what to do.
    """
    content = Path(name).read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{name}: gzip cannot unpack it: {error}") from error
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}, row {line}: {error.object[error.start : error.start + 1]!r} is no text in {error.encoding}. Save "
            f"the file as UTF-8, for example by `iconv -f WINDOWS-1252 -t UTF-8`."
        ) from error


def _table(text: str) -> File:
    """The rows of a table, separated by what separates its first line."""
    csv.field_size_limit(LONGEST_FIELD)  # 128 KiB by default, which a base64 image or a long chat exceeds
    head = text.lstrip().partition("\n")[0]
    separator = max(SEPARATORS, key=head.count)
    rows: list[dict[str, str] | Ragged] = []
    numbers: list[int] = []
    names: list[str] | None = None
    for number, fields in _records(text, separator):
        if names is None:
            names = [name.strip() for name in fields]
            continue
        is_whole = len(fields) == len(names)
        rows.append(dict(zip(names, fields, strict=True)) if is_whole else Ragged(len(fields), len(names)))
        numbers.append(number)
    return File(rows, numbers)


def _records(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The line that each row of a table begins in, and its fields; blank lines are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    begins = 1
    for fields in reader:
        if any(field.strip() for field in fields):
            yield begins, fields
        begins = reader.line_num + 1

"""JSON Lines files that are written row by row during long work: answers, ratings, judgements, logs."""

import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout


# What JSON allows within a line, and some readers take for the end of one.
LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


def read_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """
    Yields `(where, row)` of a JSON Lines file; `where` is file and line, for messages.

    Raises:
        ValueError: for a file without rows, and a line that is not a JSON object.
    """
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not any(line.strip() for line in lines):
        raise ValueError(f"'{path}' is empty, but must hold JSON Lines, one row per line.")
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"'{path}', line {number}"
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where} is not valid JSON ({error}): is the file truncated?") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where} is a {type(row).__name__}, but must be a JSON object.")
            yield where, row


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Writes a whole file, and replaces an existing one."""
    with aside(path) as file:
        file.write(lines(rows))


@contextmanager
def aside(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` once it is complete and synced to the disk."""
    beside = path.with_name(path.name + ".aside")
    with beside.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def lines(rows: Iterable[dict]) -> bytes:
    """The bytes of rows as JSON Lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # Half a character, as file names and endpoints can hold, is written as JSON escapes it.
    return text.translate(LINE_ENDS).encode(errors="backslashreplace")


def log_resumed(done: int, what: str) -> None:
    """Logs how much of the work an earlier run has done, if any."""
    if done:
        logging.getLogger(__name__).warning(f"Resuming an earlier run, already done: {done:,} {what}.")


def check_settings(output: str, settings: dict[str, Any], is_new: bool, advice: str) -> None:
    """
    Records in `OUTPUT.run.json` the settings that the rows of an output depend on, or compares them with the record.

    Args:
        output (`str`): The path or fsspec URL of the output.
        settings (`dict`): The settings, as JSON keeps them.
        is_new (`bool`): Whether to replace an existing record.
        advice (`str`): What to do about other settings.

    Raises:
        ValueError: for other settings than those recorded, with both values.
    """
    record = f"{output}.run.json"
    before = None if is_new else _read_record(record)
    if before is None:
        _write_record(record, settings)
        return
    changed = changes(before, settings)
    if changed:
        raise ValueError(f"{output} holds rows made with other settings: {'; '.join(changed)}. {advice}")


def _read_record(name: str) -> dict[str, Any] | None:
    if "://" not in name:
        return next(row for _, row in read_rows(Path(name))) if Path(name).exists() else None
    import fsspec

    system, path = fsspec.url_to_fs(name)
    return json.loads(system.cat_file(path)) if system.exists(path) else None


def _write_record(name: str, settings: dict[str, Any]) -> None:
    if "://" not in name:
        write_rows(Path(name), [settings])
        return
    import fsspec

    with fsspec.open(name, "wb") as file:
        file.write(lines([settings]))


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The recorded settings that have changed, each with both values."""
    return [
        f"{name} {before[name]!r:.80}, now {value!r:.80}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def partial_of(path: Path) -> Path:
    """The path of a file until it is complete."""
    return path.with_name(path.name + ".partial")


class Journal:
    """
    A JSON Lines file that grows by whole rows and has one writer at a time: until `close`, or the end of a `with`,
    `NAME.lock` beside it keeps others out.

    Rows are on the disk when `append` returns; if it raises, none of them stays. An incomplete last line, as an
    interruption leaves it, is removed when the file is opened.

    Raises:
        ValueError: if another process writes the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._threads = threading.Lock()
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(
                f"'{path}' is being written by another run: wait until it ends, or choose another file."
            ) from error
        try:
            self._heal()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        self._lock.release()

    def rows(self) -> Iterator[tuple[str, dict]]:
        """Yields `(where, row)` of every row in the file."""
        if self.path.exists() and self.path.stat().st_size:
            yield from read_rows(self.path)

    def append(self, rows: Iterable[dict]) -> None:
        """
        Appends rows and syncs them to the disk.

        Raises:
            OSError: if they cannot be written, such as on a full disk.
        """
        data = lines(rows)
        with self._threads, self.path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise

    def _heal(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            return
        with self.path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() == b"\n":
                return
            file.seek(0)
            whole, end, last = file.read().rpartition(b"\n")
            if _is_row(last):  # an editor left out the end of the line
                file.write(b"\n")
            else:
                file.truncate(len(whole) + len(end))


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False

"""Outputs of answers: JSON Lines, CSV, Parquet, a `.txt` beside each image, tar shards with captions added."""

import csv
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ..journal import Journal, aside, lines, read_rows
from .engines import LIKELIHOOD, Settings
from .inputs import Membership, Part, container_of
from .reading import open_stream


FORMATS = (".jsonl", ".csv", ".parquet", ".txt", ".tar")
RECORD = "captions.jsonl"  # rows beside captions in `.txt` files and shards
CAPTION = "caption.txt"  # the suffix of a caption in a shard; a shard may have a KEY.txt already
AT_ONCE = 1000  # rows


class Output:
    """
    The output of a run, in the format of its suffix.

    Args:
        name (`str`): NAME.jsonl, NAME.csv or NAME.parquet; `{}.txt` for a file beside each image; `FOLDER/{}.tar` for
            shards with captions added. The last two also keep the rows in `captions.jsonl`.
        settings ([`Settings`]): Settings of the run.
        parts (`list[Part]`): Parts to answer about.

    Raises:
        ValueError: for an unknown format, and for one that does not suit the parts or the settings.
        FileNotFoundError: if the folder does not exist.
    """

    def __init__(self, name: str, settings: Settings, parts: list[Part]):
        self.name, self.settings, self.parts = name, settings, parts
        self.suffix = os.path.splitext(name)[1].lower()
        if self.suffix not in FORMATS:
            raise ValueError(f"{name} must end with {', '.join(FORMATS[:3])}, or be {{}}.txt or FOLDER/{{}}.tar.")
        if self.suffix in (".txt", ".tar"):
            self._check_captions()
        self.record = self._record()
        if "://" not in self.record and not Path(self.record).parent.is_dir():
            raise FileNotFoundError(f"The folder {Path(self.record).parent} of {name} does not exist: create it first.")

    def _check_captions(self) -> None:
        kinds = {part.kind for part in self.parts}
        if len(self.settings.prompts) > 1 or self.settings.score:
            raise ValueError(f"{self.name} holds one answer per image: use one prompt and no --score, or NAME.jsonl.")
        if "://" in self.name:
            raise ValueError(f"{self.name} is a URL, but captions can only be written to local folders.")
        if self.suffix == ".txt":
            remote = [file for part in self.parts for file in part.files if "://" in file or file.startswith("data:")]
            if self.name != "{}.txt" or kinds != {"files"} or remote:
                raise ValueError(
                    "`.txt` files are only written beside local image files: name them {}.txt, or use NAME.jsonl."
                )
            of_captions: dict[Path, str] = {}
            for file in (file for part in self.parts for file in part.files):
                other = of_captions.setdefault(beside(file), file)
                if other != file:
                    raise ValueError(f"{other} and {file} would share {beside(file)}: rename one, or use NAME.jsonl.")
        elif "{}" not in self.name or kinds != {"shard"}:
            raise ValueError(
                "Shards can only be written from shards: name them FOLDER/{}.tar, where {} is a shard's name."
            )
        elif len({Path(part.name).name for part in self.parts}) < len(self.parts):
            raise ValueError(f"Several shards have the same name, so they would share one {self.name}: rename one.")

    def _record(self) -> str:
        if self.suffix == ".txt":
            folders = {str(Path(file).parent) for part in self.parts for file in part.files}
            return str(Path(os.path.commonpath(folders)) / RECORD)
        return os.path.join(os.path.dirname(self.name), RECORD) if self.suffix == ".tar" else self.name

    def exists(self) -> bool:
        """Whether an earlier run left rows."""
        if "://" not in self.record:
            return Path(self.record).exists() and os.stat(self.record).st_size > 0
        import fsspec

        system, path = fsspec.url_to_fs(self.record)
        return system.exists(path)

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """`(where, row)` of an earlier run."""
        if self.suffix in (".csv", ".parquet"):
            read = {".csv": _read_csv, ".parquet": _read_parquet}[self.suffix]
            with open_stream(self.name) as file:
                for number, row in enumerate(read(file), 1):
                    yield f"'{self.name}', row {number}", row
        elif "://" in self.record:
            with open_stream(self.record) as file:
                for number, line in enumerate(file, 1):
                    yield f"'{self.record}', line {number}", json.loads(line)
        else:
            yield from read_rows(Path(self.record))

    def finish(self, journal: Journal) -> None:
        """Writes a journal's rows to the output, deletes the journal, and writes the captions if there are any."""
        if self.suffix in (".csv", ".parquet"):
            self.write(row for _, row in journal.rows())
            journal.path.unlink(missing_ok=True)
        elif journal.path.exists():
            journal.path.replace(self.record)
        self.export()

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes the rows aside, and replaces the output."""
        write = {".csv": _write_csv, ".parquet": _write_parquet}.get(self.suffix, _write_lines)
        if "://" in self.record:
            import fsspec

            with fsspec.open(self.record, "wb") as file:
                write(file, rows, self.settings.columns)
        else:
            with aside(Path(self.record)) as file:
                write(file, rows, self.settings.columns)

    def export(self) -> None:
        """Writes the record's captions: missing `.txt` files, and shards older than the record."""
        if self.suffix not in (".txt", ".tar") or not self.exists():
            return
        captions = {row["image"]: row["answer"] for _, row in self.rows()}
        if self.suffix == ".txt":
            for image, text in captions.items():
                if not beside(image).exists():
                    with aside(beside(image)) as file:
                        file.write(text.strip().encode(errors="backslashreplace"))
            return
        of_shards: dict[str | None, dict[str, str]] = {}
        for name, text in captions.items():
            of_shards.setdefault(container_of(name), {})[name] = text
        newest = os.stat(self.record).st_mtime
        for part in self.parts:
            target = Path(self.shard(part))
            if not target.exists() or target.stat().st_mtime < newest:
                write_shard(part.name, target, of_shards.get(part.name, {}))

    def shard(self, part: Part) -> str:
        """The path of the shard with captions."""
        return self.name.replace("{}", Path(part.name).name.partition(".")[0])

    def check_foreign(self) -> None:
        """Raises a ValueError for existing captions without the record of a run."""
        known = {row["image"] for _, row in self.rows()} if self.exists() else set()
        found: list[str] = []
        if self.suffix == ".txt":
            images = [file for part in self.parts for file in part.files]
            found = [str(beside(image)) for image in images if image not in known and beside(image).exists()]
        elif self.suffix == ".tar":
            shards = {container_of(name) for name in known}
            targets = [self.shard(part) for part in self.parts if part.name not in shards]
            found = [target for target in targets if Path(target).exists()]
            for part in self.parts:
                if os.path.abspath(self.shard(part)) == os.path.abspath(part.name):
                    raise ValueError(f"{part.name} would overwrite itself: name another folder.")
        if found:
            named = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            raise ValueError(
                f"These files exist, but no run recorded in {self.record} wrote them: {named}. Move or remove them."
            )


def beside(image: str) -> Path:
    """The caption file of an image."""
    return Path(image).with_suffix(".txt")


def check_earlier(
    rows: Iterable[tuple[str, dict[str, Any]]], settings: Settings, parts: list[Part], append: bool, advice: str
) -> Iterator[dict[str, Any]]:
    """
    Yields the rows of earlier answers.

    Raises:
        ValueError: for rows with other columns than this run's and, unless `append`, for answers about other files, by
            another model or to another prompt.
    """
    known = Membership(parts)
    for where, row in rows:
        if set(row) != set(settings.columns):
            wanted = ", ".join(settings.columns)
            raise ValueError(f"{where} has {', '.join(row)}, but this run writes {wanted}: choose another --output.")
        if append:
            yield row
            continue
        asked = {"model": row["model"], "prompt": row["prompt"]}
        if row["model"] != settings.model or row["prompt"] not in settings.prompts:
            raise ValueError(f"{where} answers {asked}, which is not in this run: {advice}")
        if row["image"] not in known:
            raise ValueError(f"{where} is about {row['image']}, which is not in this run: {advice}")
        yield row


def write_shard(source: str, target: Path, captions: dict[str, str]) -> None:
    """Copies a tar shard, with `KEY.caption.txt` after the files of each key that has a caption."""
    from ..training.sources import BrokenShardError, read_shard

    with aside(target) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for files in read_shard(source, open_stream(source)):
            if isinstance(files, BrokenShardError):
                return  # the run has listed it
            key = files["__key__"]
            caption = captions.get(f"{source}, {key}")
            members = {suffix: data for suffix, data in files.items() if not suffix.startswith("__")}
            if caption is not None:
                members[CAPTION] = caption.strip().encode(errors="backslashreplace")
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size, member.mode = len(data), 0o644
                archive.addfile(member, io.BytesIO(data))


def batches(things: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` things; the last may have fewer."""
    stream = iter(things)
    while some := list(islice(stream, size)):
        yield some


def _plain(value: Any) -> Any:
    """Escapes lone surrogates, which UTF-8 cannot encode, as JSON does."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _write_lines(file: BinaryIO, rows: Iterable[dict[str, Any]], columns: list[str]) -> None:
    for some in batches(rows, AT_ONCE):
        file.write(lines(some))


def _write_csv(file: BinaryIO, rows: Iterable[dict[str, Any]], columns: list[str]) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    text.detach()


def _read_csv(file: BinaryIO) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    for row in csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline="")):
        yield {name: float(value) if (name or "").startswith(LIKELIHOOD) else value for name, value in row.items()}


def _write_parquet(file: BinaryIO, rows: Iterable[dict[str, Any]], columns: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    kinds = [pyarrow.float64() if name.startswith(LIKELIHOOD) else pyarrow.string() for name in columns]
    schema = pyarrow.schema(list(zip(columns, kinds, strict=True)))
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for some in batches(rows, AT_ONCE):
            table = [{name: _plain(value) for name, value in row.items()} for row in some]
            writer.write_table(pyarrow.Table.from_pylist(table, schema))


def _read_parquet(file: BinaryIO) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=AT_ONCE):
        yield from batch.to_pylist()

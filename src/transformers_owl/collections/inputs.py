"""The parts of a collection, found from the names that a user gives. Each part is read as a stream."""

import glob
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..journal import read_rows


IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
VIDEOS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg")
SHARDS = (".tar", ".tar.gz", ".tgz")
PARQUET = (".parquet",)
TABLES = (".csv", ".tsv", ".json")
DATASET = "hf://datasets/"
BLOCK = 256  # items that are answered, and written on Ray, as one piece


@dataclass(frozen=True)
class Part:
    """
    A part of a collection, read from start to end.

    Args:
        kind (`str`): "files", "shard", "parquet" or "dataset".
        name (`str`): Name of the shard, Parquet file or dataset; for "files" the first of them.
        files (`tuple[str, ...]`): Paths and URLs of the kind "files".
        only (`frozenset[str]`, *optional*): Names of the items to answer about; by default all.
        image_column (`str`): Image column of Parquet files and datasets.
        split (`str`): Split of a dataset.
        rows (`tuple[int, int]`): Rows of a dataset: the first one and the one after the last, counted from 0.
    """

    kind: str
    name: str
    files: tuple[str, ...] = ()
    only: frozenset[str] | None = None
    image_column: str = "image"
    split: str = "train"
    rows: tuple[int, int] = (0, 0)

    @property
    def key(self) -> str:
        """Identifies the part in every run."""
        only = None if self.only is None else sorted(self.only)
        said = (self.kind, self.name, self.files, only, self.image_column, self.split, self.rows)
        return hashlib.sha256(repr(said).encode(errors="surrogateescape")).hexdigest()[:16]


def find_parts(names: Iterable[str], image_column: str = "image", split: str = "train") -> list[Part]:
    """
    Finds the parts of the given names, in order, each once.

    Args:
        names (`Iterable[str]`): Images and videos (paths, URLs), folders, patterns (`*`, `**`, `{00000..00099}`), tar
            shards, Parquet files, `hf://datasets/OWNER/NAME`, `.txt` files with a name a line, `.jsonl`, `.csv`, `.tsv`
            and `.json` files whose rows have an `image` or a `file_name`, and `-` for names on the standard input.
        image_column (`str`): Image column of Parquet files and datasets.
        split (`str`): Split of datasets.

    Raises:
        FileNotFoundError: for names that do not exist; lists the first five.
        ValueError: for an empty list, and for files of another kind.
    """
    found = dict.fromkeys(name for given in names for name in _expanded(given))
    missing = [name for name in found if not _is_there(name)]
    if missing:
        raise FileNotFoundError(f"No such file: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}")
    if not found:
        raise ValueError("The list of images and videos is empty: name at least one.")
    parts: dict[Part, None] = {}
    loose: list[str] = []
    within: dict[str, set[str]] = {}
    for name in found:
        container = container_of(name)
        if container is not None:
            within.setdefault(container, set()).add(name)
        elif _kind(name) == "files":
            loose.append(name)
        elif _kind(name) == "dataset":
            parts.update(dict.fromkeys(_dataset_parts(name, image_column, split)))
        else:
            parts[Part(_kind(name), name, image_column=image_column)] = None
    whole = {part.name for part in parts}
    for container, wanted in within.items():
        if container in whole:
            continue
        if container.startswith(DATASET) and _kind(container) == "dataset":
            raise ValueError(f"{container}: single rows of a dataset cannot be named: name the whole dataset.")
        parts[Part(_kind(container), container, only=frozenset(wanted), image_column=image_column)] = None
    for start in range(0, len(loose), BLOCK):
        piece = tuple(loose[start : start + BLOCK])
        parts[Part("files", piece[0], piece)] = None
    return list(parts)


def container_of(name: str) -> str | None:
    """The shard, Parquet file or dataset of an item such as `00000.tar, 000123`; `None` for a single file."""
    container, comma, _ = name.rpartition(", ")
    return container if comma and _kind(container) != "files" else None


class Membership:
    """Whether an item belongs to parts, without reading shards."""

    def __init__(self, parts: Iterable[Part]):
        self.containers: dict[str, frozenset[str] | None] = {}
        self.files: set[str] = set()
        for part in parts:
            if part.kind == "files":
                self.files.update(part.files)
            else:
                self.containers[part.name] = part.only

    def __contains__(self, name: str) -> bool:
        container = container_of(name)
        if container is None or container not in self.containers:
            return name in self.files
        only = self.containers[container]
        return only is None or name in only


def _kind(name: str) -> str:
    lower = name.lower()
    if lower.startswith("data:"):
        return "files"
    if lower.endswith(SHARDS) or lower.startswith("pipe:"):
        return "shard"
    if lower.endswith(PARQUET):
        return "parquet"
    if lower.startswith(DATASET) and len(name.removeprefix(DATASET).split("/")) == 2:
        return "dataset"
    return "dataset" if (Path(name) / "state.json").is_file() else "files"


def _expanded(name: str) -> Iterator[str]:
    lower = name.lower()
    if name == "-":
        yield from _lines(sys.stdin.read())
    elif lower.startswith("data:") or container_of(name) is not None:
        yield name
    elif lower.startswith("pipe:"):
        raise ValueError(f"{name!r:.100} is a command. Commands are not run: name files or URLs.")
    elif "://" in name:
        yield from _remote(name)
    elif Path(name).is_dir():
        yield from [name] if _kind(name) == "dataset" else _folder(Path(name))
    elif Path(name).is_file() and lower.endswith(".txt"):
        yield from _lines(Path(name).read_text("utf-8-sig"))
    elif Path(name).is_file() and lower.endswith((".jsonl", *TABLES)):
        yield from _named_in_rows(name)
    elif not Path(name).exists() and any(mark in name for mark in "*?[{"):
        yield from _pattern(name)
    else:
        yield name


def _lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        if line.strip():
            yield from [line] if container_of(line) else _expanded(line.strip())


def _folder(folder: Path) -> list[str]:
    known = (*IMAGES, *VIDEOS, *SHARDS, *PARQUET)
    found = sorted(str(path) for path in folder.rglob("*") if path.name.lower().endswith(known) and path.is_file())
    if not found:
        raise ValueError(f"The folder {folder} and its subfolders hold no image, video, tar shard or Parquet file.")
    return found


def _pattern(name: str) -> list[str]:
    found = []
    for each in _braces(name):
        matches = [each] if Path(each).exists() else sorted(glob.glob(each, recursive=True))
        if not matches:
            raise FileNotFoundError(f"No file matches {each}.")
        found += [file for match in matches for file in (_expanded(match) if Path(match).is_dir() else [match])]
    return found


def _braces(name: str) -> list[str]:
    if "{" not in name:
        return [name]
    from ..training.library import expand_urls

    return expand_urls(name)


def _remote(name: str) -> list[str]:
    """URLs; `*` is expanded if the URL's file system can list files, which http(s) cannot."""
    found = []
    for each in _braces(name):
        if "*" in each and not each.startswith(("http://", "https://")):
            import fsspec

            system, path = fsspec.url_to_fs(each)
            matches = sorted(system.glob(path))
            if not matches:
                raise FileNotFoundError(f"No file matches {each}.")
            found += [system.unstrip_protocol(match) for match in matches]
        else:
            found.append(each)
    return found


def _named_in_rows(name: str) -> Iterator[str]:
    """The `image`, as in earlier answers, or `file_name` of rows; paths are relative to the working directory."""
    if name.lower().endswith(".jsonl"):
        rows: Iterable[tuple[str, dict]] = read_rows(Path(name))
    else:
        from ..training.row_files import read_file

        file = read_file(name)
        rows = ((f"{name}, row {file.numbers[at]}", file.row(at)) for at in range(len(file.rows)))
    for where, row in rows:
        image = row.get("image", row.get("file_name"))
        if not isinstance(image, str):
            raise ValueError(f"{where} has the fields {', '.join(row)}, but must have `image` or `file_name`.")
        yield image


def _is_there(name: str) -> bool:
    container = container_of(name)
    where = name if container is None else container
    return "://" in where or where.startswith("data:") or Path(where).exists()


def _dataset_parts(name: str, image_column: str, split: str) -> list[Part]:
    from .reading import open_dataset

    count = len(open_dataset(name, image_column, split))
    starts = range(0, count, 4 * BLOCK)
    return [
        Part("dataset", name, image_column=image_column, split=split, rows=(start, min(start + 4 * BLOCK, count)))
        for start in starts
    ]

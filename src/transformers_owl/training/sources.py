"""Sources of samples: files of rows, which are read by index, and tar shards, which are read as a stream.

A sample is `{"messages": [...], "source": "FILE, row 7"}`. An unusable one raises a [`BadSampleError`], which names
file and row.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import PIL.Image

from ..mplug_owl.configuration_mplug_owl import check_names
from ..mplug_owl.image_processing_mplug_owl import read_image
from .library import expand_urls, group_by_keys, is_saved_dataset
from .readers import READ, READERS, Messages, caption, check_read
from .remote import RemoteFile
from .row_files import File, read_file, read_json


IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
VIDEO_SUFFIXES = ("mp4", "webm", "avi", "mkv", "mov")
CAPTION_FORMATS = ("captions", "webvid", "coco", "dataset", "webdataset")
FORMATS = (*READERS, "coco", "dataset", "webdataset")
BROKEN_SHARD = "broken shard"


class BadSampleError(ValueError):
    """An unusable sample: `reason` in two or three words, `source` its file and row."""

    def __init__(self, reason: str, source: str, detail: object):
        self.reason = reason
        self.source = source
        super().__init__(f"{source}: {reason}: {detail}")

    def __reduce__(self):
        return type(self), (self.reason, self.source, str(self).removeprefix(f"{self.source}: {self.reason}: "))


class BrokenShardError(BadSampleError):
    """A tar shard that is missing or truncated, with an unknown number of lost samples."""


class UnreadableImageError(ValueError):
    """A damaged image."""


@dataclass(frozen=True)
class Source:
    """
    One entry under `sources:` in a recipe.

    Args:
        format (`str`): One of `FORMATS`.
        path (`str`): A file (.json, .jsonl, .csv, .tsv, each also as .gz); for "dataset" a repository on the Hub, a
            folder of `save_to_disk` or a .parquet file (`*` for several); for "webdataset" tar files or URLs, with
            `{00000..00099}` for a hundred of them.
        images (`str`, *optional*): Folder of the images and videos; by default that of the file.
        prompt (`str`, *optional*): Question before every caption; by default none.
        split (`str`, defaults to `"train"`): Split of a "dataset".
        image_column (`str`, defaults to `"image"`): Image column of a "dataset".
        text_column (`str`, *optional*): Text column of a "dataset" (by default "text") or suffix of a "webdataset" (by
            default "txt").
        columns (`dict[str, str]`, *optional*): Names of fields in the file, by the format's own names.
        allow_commands (`bool`, defaults to `False`): Whether `pipe:COMMAND` in the path of a "webdataset" runs the
            command in a shell.
    """

    format: str
    path: str
    images: str | None = None
    prompt: str | None = None
    split: str = "train"
    image_column: str = "image"
    text_column: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    allow_commands: bool = False

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> "Source":
        check_names(entry, [each.name for each in fields(cls)], "setting of a source of data")
        missing = {"format", "path"} - set(entry)
        if missing:
            raise ValueError(f"A source of data is {entry}, but must have `format` and `path`.")
        source = cls(**entry)
        check_names([source.format], FORMATS, "data format")
        if source.prompt is not None and source.format not in CAPTION_FORMATS:
            raise ValueError(f"`prompt` is only for captions ({', '.join(CAPTION_FORMATS)}), not {source.format}.")
        if not isinstance(source.columns, dict):
            raise ValueError(f"`columns` is {source.columns!r:.80}, but must map names to those in the file.")
        check_names(source.columns, READ.get(source.format, ()), f"field of the format {source.format}")
        return source

    def named(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with its fields renamed by `columns`."""
        theirs = set(self.columns.values())
        kept = {name: value for name, value in row.items() if name not in theirs}
        return kept | {name: row[other] for name, other in self.columns.items() if other in row}

    def asked(self, messages: Messages) -> Messages:
        """Captions with the prompt if there is one."""
        if self.prompt is not None:
            messages[0]["content"].append({"type": "text", "text": self.prompt})
        return messages


class Rows:
    """
    The samples of a file or a `datasets.Dataset` by index, as for `Trainer(train_dataset=...)`.

    Args:
        format, path, ...: As in [`Source`].

    Raises:
        ValueError: for a file without a list of rows. Rows are read on demand: a malformed one then raises a
            [`BadSampleError`].
    """

    def __init__(self, format: str, path: str, **options):
        self.source = Source.from_dict({"format": format, "path": path, **options})
        if format == "webdataset":
            raise ValueError("Tar shards have no rows by index: use `Shards`.")
        self.folder = Path(path).parent if self.source.images is None else Path(self.source.images)
        load = {"coco": _load_coco, "dataset": _load_dataset}.get(format, lambda source: read_file(source.path))
        self.file = load(self.source)

    def __len__(self) -> int:
        return len(self.file.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(f"Row {number} is out of range for {len(self)} rows.")
        name = f"{self.source.path}, row {self.file.numbers[number]}"
        read = {"coco": READERS["captions"], "dataset": self._read_dataset}.get(self.source.format)
        row: Any = None
        try:
            row = self.file.row(number)
            if read is None:
                row = self.source.named(row)
                check_read(row, READ[self.source.format])
            messages = (read or READERS[self.source.format])(row, self.folder)
            check_texts(messages, name)
            return {"messages": self.source.asked(messages), "source": name}
        except BadSampleError:
            raise
        except UnreadableImageError as error:
            raise BadSampleError("unreadable image", name, error) from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            detail = self._missing(error, row) if isinstance(error, KeyError) else error
            raise BadSampleError(
                "malformed row", name, f"not a row of the format {self.source.format}: {detail}"
            ) from error

    def _missing(self, error: KeyError, row: Any) -> str:
        """The message about a missing field."""
        found = ", ".join(map(str, row)) if isinstance(row, dict) else "no fields"
        known = READ.get(self.source.format, ())
        hint = f" Name it by `columns: {{{error.args[0]}: NAME}}`." if error.args[0] in known else ""
        return f"{error} is missing; there are {found:.300}.{hint}"

    def _read_dataset(self, row: dict, folder: Path) -> Messages:
        image = row[self.source.image_column]
        text = row[self.source.text_column or "text"]
        if image["bytes"] is None:
            return caption({"type": "image", "path": image["path"]}, text)
        return caption({"type": "image", "image": decode(image["bytes"])}, text)


class Shards:
    """
    The samples of tar files in the format of img2dataset and video2dataset: `KEY.jpg` or `KEY.mp4`, then `KEY.txt`.

    Args:
        path (`str`): Files or URLs, with `{00000..00099}` for a hundred of them.
        prompt, text_column: As in [`Source`].
    """

    def __init__(self, path: str, **options):
        self.source = Source.from_dict({"format": "webdataset", "path": path, **options})
        self.shards = expand_urls(path)
        for shard in self.shards:
            scheme = urlsplit(shard).scheme
            # Older versions of webdataset put URLs between quotation marks into a shell.
            is_command = scheme == "pipe" or (scheme and "'" in shard)
            if is_command and self.source.allow_commands is not True:
                raise ValueError(
                    f"{shard!r:.200} runs a command in a shell. If you trust the recipe, set `allow_commands: true` "
                    "beside the path."
                )

    def read(self, shard: str) -> Iterator[dict[str, Any] | BrokenShardError]:
        """
        Yields the files of each sample as bytes. If a shard is broken, the last item is a [`BrokenShardError`], which
        `sample` raises.
        """
        yield from read_shard(shard)

    def sample(self, files: dict[str, Any] | BrokenShardError) -> dict[str, Any]:
        """Makes the sample of an item of `read`."""
        if isinstance(files, BrokenShardError):
            raise files
        name = f"{files['__url__']}, {files['__key__']}"
        suffix = next((suffix for suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) if suffix in files), None)
        column = self.source.text_column or "txt"
        if suffix is None or column not in files:
            found = ", ".join(key for key in files if not key.startswith("__"))
            raise BadSampleError(
                "malformed row", name, f"an image or video and .{column} are needed, but there are only {found}"
            )
        try:
            text = files[column].decode()
            # A video is decoded later, where the number of its frames is known.
            is_video = suffix in VIDEO_SUFFIXES
            visual = {"video": files[suffix]} if is_video else {"image": decode(files[suffix])}
            messages = caption({"type": "video" if is_video else "image", **visual}, text)
        except UnicodeDecodeError as error:
            raise BadSampleError("malformed row", name, error) from error
        except UnreadableImageError as error:
            raise BadSampleError("unreadable image", name, error) from error
        check_texts(messages, name)
        return {"messages": self.source.asked(messages), "source": name}


class StrictMember(tarfile.TarInfo):
    """A member of a tar file; `tarfile` would take a truncated header for the end of the file."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("the file has no end mark, so it is truncated") from error


def read_shard(shard: str, stream: BinaryIO | None = None) -> Iterator[dict[str, Any] | BrokenShardError]:
    """Yields the files of each sample of a tar file as bytes, and at a fault a [`BrokenShardError`]."""
    try:
        yield from group_by_keys(_members(shard, stream))
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        yield BrokenShardError(BROKEN_SHARD, shard, error)


def _members(shard: str, stream: BinaryIO | None) -> Iterator[dict[str, Any]]:
    """The files in a tar file, for grouping by `webdataset`."""
    opened = _opened(shard) if stream is None else stream
    with opened as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictMember) as archive:
        for member in archive:
            data = archive.extractfile(member)
            if data is not None:
                yield {"fname": member.name, "data": data.read(), "__url__": shard}
            archive.members = []  # type: ignore[attr-defined]  # else it keeps them all


def _opened(shard: str) -> BinaryIO:
    from webdataset import gopen

    return io.BufferedReader(RemoteFile(shard)) if shard.startswith(("http://", "https://")) else gopen(shard)


def check_texts(messages: Messages, source: str) -> None:
    """Raises a [`BadSampleError`] unless there are a question and an answer, and no message is empty."""
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not any(part["type"] != "text" or part["text"].strip() for part in parts):
            raise BadSampleError("empty text", source, f"a message of role {message['role']} is empty")
        for text in (part["text"] for part in parts if part["type"] == "text"):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                detail = f"a lone surrogate (half a character) at position {error.start} of a text"
                raise BadSampleError("malformed row", source, detail) from error
    roles = {message["role"] for message in messages}
    if not {"user", "assistant"} <= roles:
        raise BadSampleError("malformed row", source, "a question and an answer are needed")


def decode(data: bytes) -> PIL.Image.Image:
    """
    Decodes an image from the bytes of its file.

    Raises:
        UnreadableImageError: for a damaged file.
    """
    try:
        return read_image(data)
    except ValueError as error:
        raise UnreadableImageError(error) from error


def _load_coco(source: Source) -> File:
    """Rows of MSCOCO's captions: `annotations` joined with `images`."""
    content = read_json(source.path)
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        rows = [{"file_name": names[note["image_id"]], "text": note["caption"]} for note in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source.path} has no captions in MSCOCO's format: {error} is missing.") from error
    return File(rows)


def _load_dataset(source: Source) -> File:
    """A `datasets.Dataset` with undecoded images."""
    import datasets

    if is_saved_dataset(source.path):
        rows = datasets.load_from_disk(source.path)
    elif source.path.endswith(".parquet"):
        rows = datasets.load_dataset("parquet", data_files={source.split: source.path}, split=source.split)
    else:
        rows = datasets.load_dataset(source.path, split=source.split)
    columns = {source.image_column, source.text_column or "text"}
    if not columns <= set(rows.column_names):
        raise ValueError(f"{source.path} has the columns {rows.column_names}, but must have {sorted(columns)}.")
    return File(rows.select_columns(sorted(columns)).cast_column(source.image_column, datasets.Image(decode=False)))

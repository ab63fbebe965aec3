"""Where samples come from: files of rows, which are drawn by number, and tar shards, which are read as a stream.

A sample is `{"messages": [...], "source": "FILE, row 7"}`. What cannot be read is a [`BadSampleError`],
which names both.
"""

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import PIL.Image

from ..mplug_owl.image_processing_mplug_owl import UNREADABLE, as_shown
from .library import expand_urls, group_by_keys, is_saved_dataset
from .names import check_names
from .readers import READERS, Messages, caption


PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
VIDEO_SUFFIXES = ("mp4", "webm", "avi", "mkv", "mov")
CAPTION_FORMATS = ("captions", "webvid", "coco", "dataset", "webdataset")
FORMATS = (*READERS, "coco", "dataset", "webdataset")


class BadSampleError(ValueError):
    """A sample that cannot be used: `reason` in two or three words, `source` its file and row."""

    def __init__(self, reason: str, source: str, detail: object):
        self.reason = reason
        self.source = source
        super().__init__(f"{source}: {reason}: {detail}")

    def __reduce__(self):
        return type(self), (self.reason, self.source, str(self).removeprefix(f"{self.source}: {self.reason}: "))


class UnreadablePictureError(ValueError):
    """A damaged picture."""


@dataclass(frozen=True)
class Source:
    """
    One entry under `sources:` in a recipe.

    Args:
        format (`str`): One of `FORMATS`.
        path (`str`): A file (.json, .jsonl, .csv); for "dataset" a repository on the Hub or a folder that
            `save_to_disk` wrote; for "webdataset" tar files or URLs, `{00000..00099}` standing for a hundred.
        images (`str`, *optional*): The folder that pictures and videos lie in; by default the file's own.
        prompt (`str`, *optional*): A question before every caption; by default there is none.
        split (`str`, defaults to `"train"`): For "dataset".
        image_column (`str`, defaults to `"image"`): For "dataset".
        text_column (`str`, *optional*): For "dataset" ("text" by default) and "webdataset" ("txt" by default).
    """

    format: str
    path: str
    images: str | None = None
    prompt: str | None = None
    split: str = "train"
    image_column: str = "image"
    text_column: str | None = None

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> "Source":
        check_names(entry, [field.name for field in fields(cls)], "a source of data")
        missing = {"format", "path"} - set(entry)
        if missing:
            raise ValueError(f"A source of data needs `format` and `path`, but {entry} was given.")
        source = cls(**entry)
        check_names([source.format], FORMATS, "a format of data")
        if source.prompt is not None and source.format not in CAPTION_FORMATS:
            raise ValueError(f"`prompt` is for captions ({', '.join(CAPTION_FORMATS)}), not for {source.format}.")
        return source

    def asked(self, messages: Messages) -> Messages:
        """Captions with the prompt, if there is one."""
        if self.prompt is not None:
            messages[0]["content"].append({"type": "text", "text": self.prompt})
        return messages


class Rows:
    """
    The samples of a file or of a `datasets.Dataset`, by number. Fit for `Trainer(train_dataset=...)`.

    Args:
        format, path, ...: As in [`Source`].

    Raises:
        ValueError: for a file that holds no list of rows. Rows are read when they are drawn: a malformed one is a
            [`BadSampleError`] then.
    """

    def __init__(self, format: str, path: str, **options):
        self.source = Source.from_dict({"format": format, "path": path, **options})
        if format == "webdataset":
            raise ValueError("Tar shards have no rows to draw by number: use `Shards`.")
        self.folder = Path(path).parent if self.source.images is None else Path(self.source.images)
        load = {"coco": _load_coco, "dataset": _load_dataset}.get(format, _load_file)
        self.rows = load(self.source)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(f"There is no row {number} among {len(self)}.")
        name = f"{self.source.path}, row {number + 1}"
        read = {"coco": READERS["captions"], "dataset": self._read_dataset}.get(self.source.format)
        try:
            row = self.rows[number]
            row = json.loads(row) if isinstance(row, str) else row
            messages = (read or READERS[self.source.format])(row, self.folder)
            check_texts(messages, name)
            return {"messages": self.source.asked(messages), "source": name}
        except BadSampleError:
            raise
        except UnreadablePictureError as error:
            raise BadSampleError("unreadable picture", name, error) from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            detail = f"{error} is missing" if isinstance(error, KeyError) else error
            raise BadSampleError(
                "malformed row", name, f"no row of the format {self.source.format}: {detail}"
            ) from error

    def _read_dataset(self, row: dict, folder: Path) -> Messages:
        picture = row[self.source.image_column]
        text = row[self.source.text_column or "text"]
        if picture["bytes"] is None:
            return caption({"type": "image", "path": picture["path"]}, text)
        return caption({"type": "image", "image": decode(picture["bytes"])}, text)


class Shards:
    """
    Tar files as img2dataset and video2dataset write them: `KEY.jpg` or `KEY.mp4`, and `KEY.txt`, one after the other.

    Args:
        path (`str`): Files or URLs, with `{00000..00099}` for a hundred of them.
        prompt, text_column: As in [`Source`].
    """

    def __init__(self, path: str, **options):
        self.source = Source.from_dict({"format": "webdataset", "path": path, **options})
        self.shards = expand_urls(path)

    def read(self, shard: str) -> Iterator[dict[str, Any] | BadSampleError]:
        """
        The files of each sample as bytes. Where a shard cannot be read on, the last item is a [`BadSampleError`], which
        `sample` raises.
        """
        try:
            yield from group_by_keys(_members(shard))
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            yield BadSampleError("broken shard", shard, error)

    def sample(self, files: dict[str, Any] | BadSampleError) -> dict[str, Any]:
        """The sample of an item of `read`."""
        if isinstance(files, BadSampleError):
            raise files
        name = f"{files['__url__']}, {files['__key__']}"
        suffix = next((suffix for suffix in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES) if suffix in files), None)
        column = self.source.text_column or "txt"
        if suffix is None or column not in files:
            found = ", ".join(key for key in files if not key.startswith("__"))
            raise BadSampleError(
                "malformed row", name, f"a picture or video and .{column} are needed, but there is only {found}"
            )
        try:
            text = files[column].decode()
            # A video is decoded later, where the number of its frames is known.
            is_video = suffix in VIDEO_SUFFIXES
            visual = {"video": files[suffix]} if is_video else {"image": decode(files[suffix])}
            messages = caption({"type": "video" if is_video else "image", **visual}, text)
        except UnicodeDecodeError as error:
            raise BadSampleError("malformed row", name, error) from error
        except UnreadablePictureError as error:
            raise BadSampleError("unreadable picture", name, error) from error
        check_texts(messages, name)
        return {"messages": self.source.asked(messages), "source": name}


class StrictMember(tarfile.TarInfo):
    """A member of a tar file; where a header is cut off, `tarfile` would take it for the file's end."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("the file ends without an end mark: it is cut off") from error


def _members(shard: str) -> Iterator[dict[str, Any]]:
    """The files in a tar file, as `webdataset` groups them."""
    from webdataset import gopen

    with gopen(shard) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictMember) as archive:
        for member in archive:
            data = archive.extractfile(member)
            if data is not None:
                yield {"fname": member.name, "data": data.read(), "__url__": shard}
            archive.members = []  # type: ignore[attr-defined]  # else it keeps them all


def check_texts(messages: Messages, source: str) -> None:
    """Raises a [`BadSampleError`] unless there are a question and an answer, and every one of them says something."""
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not any(part["type"] != "text" or part["text"].strip() for part in parts):
            raise BadSampleError("empty text", source, f"a message of role {message['role']} is empty")
    roles = {message["role"] for message in messages}
    if not {"user", "assistant"} <= roles:
        raise BadSampleError("malformed row", source, "a question and an answer are needed")


def decode(data: bytes) -> PIL.Image.Image:
    """
    A picture from the bytes of its file.

    Raises:
        UnreadablePictureError: for a damaged file.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return as_shown(image)
    except UNREADABLE as error:
        raise UnreadablePictureError(error or type(error).__name__) from error


def _load_file(source: Source) -> list:
    path = Path(source.path)
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            text = file.read().rstrip()
            return text.split("\n") if text else []
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        rows = _load_json(path, file)
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds {type(rows).__name__}, but a list of rows was expected.")
    return rows


def _load_json(path: Path, file) -> Any:
    try:
        return json.load(file)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON: {error}") from error


def _load_coco(source: Source) -> list:
    """Rows of the captions of MSCOCO: `annotations` joined with `images`."""
    path = Path(source.path)
    with path.open(encoding="utf-8") as file:
        content = _load_json(path, file)
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        return [{"file_name": names[note["image_id"]], "text": note["caption"]} for note in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no captions in MSCOCO's form: {error} is missing.") from error


def _load_dataset(source: Source):
    """A `datasets.Dataset`, its pictures left undecoded."""
    import datasets

    if is_saved_dataset(source.path):
        rows = datasets.load_from_disk(source.path)
    else:
        rows = datasets.load_dataset(source.path, split=source.split)
    columns = {source.image_column, source.text_column or "text"}
    if not columns <= set(rows.column_names):
        raise ValueError(f"{source.path} has the columns {rows.column_names}, but {sorted(columns)} are named.")
    return rows.select_columns(sorted(columns)).cast_column(source.image_column, datasets.Image(decode=False))

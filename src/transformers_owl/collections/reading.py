"""The items of a part, and the model's input for each. An unreadable item has the reason."""

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..loading import read_config
from ..mplug_owl.image_processing_mplug_owl import Budget, read_image
from ..mplug_owl.processing_mplug_owl import MplugOwlProcessor
from ..mplug_owl.video_processing_mplug_owl import read_frames, visual_part
from .inputs import BLOCK, DATASET, IMAGES, VIDEOS, Part


Visual = dict[str, Any]  # part of a chat message: `type`, and the image or the frames under it


@dataclass(frozen=True)
class Item:
    """
    One image or video of a collection.

    Args:
        name (`str`): Path, URL, or shard and key.
        content (`str` or `bytes`, *optional*): Path, URL, or the bytes of the file.
        is_video (`bool`): Whether the bytes are a video.
        error (`str`, *optional*): Reason why the item is unreadable.
    """

    name: str
    content: str | bytes | None = None
    is_video: bool = False
    error: str | None = None


def items(part: Part) -> Iterator[Item]:
    """All items of a part, in order. If reading fails, the last item has the reason."""
    read = {"files": _files, "shard": _shard, "parquet": _parquet, "dataset": _dataset}[part.kind]
    for item in read(part):
        if part.only is None or item.name in part.only or item.name == part.name:
            yield item


def blocks(part: Part) -> Iterator[tuple[int, list[Item], bool]]:
    """`(start, items, is_last)` of every `BLOCK` items, the same in every run."""
    stream = items(part)
    block = list(islice(stream, BLOCK))
    start = 0
    while True:
        following = list(islice(stream, 1))
        yield start, block, not following
        if not following:
            return
        start += BLOCK
        block = following + list(islice(stream, BLOCK - 1))


def _files(part: Part) -> Iterator[Item]:
    for name in part.files:
        yield Item(name, name)


def _shard(part: Part) -> Iterator[Item]:
    from ..training.sources import BrokenShardError, read_shard

    try:
        stream = open_stream(part.name)
    except (OSError, ImportError, ValueError) as error:
        yield Item(part.name, error=f"broken shard: {error}")
        return
    for files in read_shard(part.name, stream):
        if isinstance(files, BrokenShardError):
            yield Item(part.name, error=str(files).removeprefix(f"{part.name}: "))
            continue
        name = f"{part.name}, {files['__key__']}"
        suffix = next((suffix for suffix in (*IMAGES, *VIDEOS) if suffix[1:] in files), None)
        if suffix is None:
            found = ", ".join(key for key in files if not key.startswith("__"))
            yield Item(name, error=f"an image or a video is needed, but there are only {found}")
        else:
            yield Item(name, files[suffix[1:]], suffix in VIDEOS)


def _parquet(part: Part) -> Iterator[Item]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with open_stream(part.name) as file:
            table = pyarrow.parquet.ParquetFile(file)
            if part.image_column not in table.schema_arrow.names:
                raise ValueError(f"no column {part.image_column!r} in {table.schema_arrow.names}")
            for batch in table.iter_batches(batch_size=64, columns=[part.image_column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _cell(f"{part.name}, row {number}", value)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        yield Item(part.name, error=f"broken Parquet file: {error}")


def _dataset(part: Part) -> Iterator[Item]:
    rows = open_dataset(part.name, part.image_column, part.split)
    for number in range(*part.rows):
        yield _cell(f"{part.name}, row {number + 1}", rows[number][part.image_column])


def _cell(name: str, value: Any) -> Item:
    """The item of a cell, which holds a file, its name, or both as `datasets` writes them."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, (str, bytes)) and value:
        return Item(name, value)
    return Item(name, error="the row has no image")


@functools.lru_cache(maxsize=4)
def open_dataset(name: str, image_column: str, split: str):
    """A `datasets.Dataset` with undecoded images: from the Hub (`hf://datasets/OWNER/NAME`), or a saved folder."""
    import datasets

    if name.startswith(DATASET):
        rows = datasets.load_dataset(name.removeprefix(DATASET), split=split)
    else:
        rows = datasets.load_from_disk(name)
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise ValueError(f"{name} has no split {split!r}: choose one of {', '.join(rows)} by --split.")
        rows = rows[split]
    if image_column not in rows.column_names:
        raise ValueError(
            f"{name} has no column {image_column!r}: choose one of {', '.join(rows.column_names)} by --image-column."
        )
    if isinstance(rows.features[image_column], datasets.Image):
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
    return rows.select_columns([image_column])


def open_stream(name: str):
    """Opens a file by its path, its http(s) URL, or a URL of fsspec."""
    if name.startswith(("http://", "https://")) and not name.endswith(".parquet"):
        from ..training.remote import RemoteFile

        return io.BufferedReader(RemoteFile(name))
    if "://" in name:
        import fsspec

        return fsspec.open(name, "rb").open()
    return open(name, "rb")  # closed by who asked for it


class Decoder:
    """
    Decodes items to the model's inputs: RGB images, and sampled frames of videos, in the model's size.

    Args:
        processor ([`MplugOwlProcessor`]): The model's processor.
        sees_videos (`bool`): Whether the model takes videos.
    """

    def __init__(self, processor: MplugOwlProcessor, sees_videos: bool):
        self.sees_videos = sees_videos
        self.images = processor.image_processor
        self.videos = processor.video_processor
        # Cells are cut from the whole image, by the processor.
        self.resized = self.images.resizer() if self.images.max_crops == 1 else None

    def __call__(self, item: Item) -> Visual:
        """
        Raises:
            ValueError, ImportError: for an unreadable item, with the reason.
        """
        if item.error is not None:
            raise ValueError(item.error)
        content = item.content
        assert content is not None
        if isinstance(content, str) and "://" in content and not content.lower().startswith(("http", "data:")):
            with open_stream(content) as file:
                content = file.read()
        is_video = item.is_video
        if isinstance(content, str):
            is_video = visual_part(content, self.sees_videos)["type"] == "video"
        elif isinstance(item.content, str):
            is_video = item.content.lower().endswith(VIDEOS)
        if not is_video:
            image = read_image(content, Budget(self.images.max_pixels))
            return {"type": "image", "image": image if self.resized is None else self.resized(image)}
        if not self.sees_videos:
            raise ValueError("it is a video, but this model takes images only")
        frames, _ = read_frames(
            content,
            num_frames=self.videos.num_frames,
            max_pixels=self.videos.max_pixels,
            prepare=self.videos.resizer(),
        )
        return {"type": "video", "video": frames}


def decoded(item: Item, decode: Decoder) -> Visual | str:
    """The model's input of an item, or the reason why there is none."""
    try:
        return decode(item)
    except (ValueError, OSError, MemoryError, ImportError) as error:
        return " ".join(str(error).split()) or type(error).__name__


@functools.lru_cache(maxsize=2)
def decoder_of(model: str, num_frames: int | None = None) -> Decoder:
    """The decoder for a model's folder or repository, without loading its weights."""
    processor = MplugOwlProcessor.from_pretrained(model)
    if num_frames is not None:
        processor.video_processor.num_frames = num_frames
    return Decoder(processor, read_config(model).sees_videos)

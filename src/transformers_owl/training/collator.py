"""Conversations to batches: ids, images, videos, and labels on the answers alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..mplug_owl.crops_mplug_owl import WHOLE, Views
from ..mplug_owl.image_processing_mplug_owl import resize
from ..mplug_owl.processing_mplug_owl import EncodedChat, source_of
from ..mplug_owl.video_processing_mplug_owl import read_frames
from .packing import pack


IGNORED = -100


class ConversationCollator:
    """
    Collates conversations to a training batch. The loss is on the answers and their EOS, in all turns, and on nothing
    else: not on images, videos, padding, questions or an "AI: " that a user typed. Images are cut into cells if the
    processor does so.

    Each answer is tokenized by itself, so that the ids before it equal those of the prompt. A conversation longer than
    `max_length` is cut, but never within an image or video; a cut answer has no EOS.

    Args:
        processor ([`MplugOwlProcessor`]): Processor of the model.
        max_length (`int`, *optional*): Maximum number of positions of a row, with those of images and videos.
        always (`str`, *optional*): "image" or "video": a batch without any gets a blank one after the end of its
            shortest row. It changes neither loss nor gradients, but lets every process of a distributed run use the
            visual modules, without which collective operations would hang.
        num_frames (`int`, *optional*): Frames per video; by default the processor's.
        packed_length (`int`, *optional*): Packs conversations into rows of this many positions, see [`pack`]; the batch
            then has `position_ids` instead of `attention_mask`.

    Calling it with samples `{"messages": [...]}` in the library's chat format, with images and videos by path, URL or
    as PIL images, gives `input_ids`, `attention_mask` and `labels` (rows, positions), padded on the right,
    `use_cache=False`, and, if there are any, `pixel_values` (images, 3, height, width), with crops (views, 3, height,
    width) and `crop_positions` (views, 2), and `pixel_values_videos` (videos, frames, 3, height, width).

    Raises:
        ValueError: for a sample without `messages`, or without an answer within `max_length`.
    """

    def __init__(
        self,
        processor,
        max_length: int | None = None,
        always: str | None = None,
        num_frames: int | None = None,
        packed_length: int | None = None,
    ):
        self.processor = processor
        self.max_length = max_length
        self.always = always
        self.packed_length = packed_length
        self.num_frames = num_frames or processor.video_processor.num_frames
        self.token_ids = {"image": processor.image_token_id, "video": processor.video_token_id}
        every_level = PIL.Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2))
        values = processor.image_processor(every_level, do_resize=False, return_tensors="pt")["pixel_values"]
        self.table = values[0, :, 0]  # (3, 256): what the image processor makes of each level of each colour

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        for sample in samples:
            if "messages" not in sample:
                raise ValueError(
                    f"A sample has the fields {sorted(sample)}, but must have `messages`. The library's Trainer "
                    "removes this field: set `remove_unused_columns=False`."
                )
        rows = [self.encode(sample["messages"]) for sample in samples]
        for sample, row in zip(samples, rows, strict=True):
            if (row["labels"] == IGNORED).all():
                start = f"{sample['messages']!s:.200}"
                raise ValueError(f"No answer begins within max_length={self.max_length}: {start}")
        return self.with_pixels(self.pad(rows))

    def pad(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """
        Pads rows of `encode` to a batch, with `pixel_levels` and `pixel_levels_videos` from 0 to 255 instead of
        `pixel_values` and `pixel_values_videos`: a quarter of the bytes to copy to the device, where `with_pixels`
        converts them.
        """
        if self.always is not None and not any(row[self.always] for row in rows):
            shortest = min(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
            rows = [self._with_blank(row) if number == shortest else row for number, row in enumerate(rows)]
        padding = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": IGNORED}
        if self.packed_length is None:
            padding["attention_mask"] = 0
        else:
            rows = pack(rows, self.packed_length, IGNORED)
            padding["position_ids"] = 0
        batch: dict[str, Any] = {
            name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }
        batch["use_cache"] = False  # the language model would copy its keys and values, and then not look for borders
        images = [image for row in rows for image in row["image"]]
        frames = [frame for row in rows for video in row["video"] for frame in video]
        if images:
            batch["pixel_levels"] = _levels(images)
        if images and self.processor.image_processor.max_crops > 1:
            batch["crop_positions"] = torch.tensor([place for row in rows for place in row["crop_positions"]])
        if frames:
            batch["pixel_levels_videos"] = _levels(frames).unflatten(0, (-1, self.num_frames))
        return batch

    def with_pixels(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Converts levels to `pixel_values` and `pixel_values_videos`, with exactly the processor's values, on the
        device of the levels.
        """
        batch = dict(batch)
        for name in ("pixel_levels", "pixel_levels_videos"):
            if name in batch:
                levels = batch.pop(name).int()
                table = self.table.to(levels.device)
                values = torch.stack([table[colour][levels[..., colour, :, :]] for colour in range(3)], dim=-3)
                batch[name.replace("levels", "values")] = values
        return batch

    def _with_blank(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds a white image or video after the end of a row, without attention to it and without loss."""
        assert self.always is not None
        positions = self.processor.num_positions()
        size = self.processor.image_processor.size
        blank: Any = PIL.Image.new("RGB", (size["width"], size["height"]), "white")
        if self.always == "video":
            blank = [blank] * self.num_frames
        new = {"input_ids": self.token_ids[self.always], "attention_mask": 1, "labels": IGNORED}
        longer = {name: torch.cat([row[name], row[name].new_full((positions,), value)]) for name, value in new.items()}
        return row | longer | {self.always: [blank]} | ({"crop_positions": [WHOLE]} if self.always == "image" else {})

    def encode(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Encodes one conversation: `input_ids`, `attention_mask` and `labels` (positions,), `image`, a list of the views
        of all images in the model's size, with their `crop_positions`, and `video`, a list of lists of frames; labels
        are all -100 if no answer is left.
        """
        chat, opened = self.read(messages)
        length, kept = self._cut(chat)
        ids, answers = torch.from_numpy(chat.ids[:length]), torch.from_numpy(chat.is_answer[:length])
        opened += [self._small(part) for part in chat.visuals[len(opened) : kept]]
        seen: dict[str, list] = {"image": [], "video": [], "crop_positions": []}
        for small in opened[:kept]:
            if isinstance(small, dict):
                seen["image"] += small.values()
                seen["crop_positions"] += small
            else:
                seen["video"].append(small)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids.masked_fill(~answers, IGNORED),
            **seen,
        }

    def read(self, messages: list[dict[str, Any]]) -> tuple[EncodedChat, list[Views | list[PIL.Image.Image]]]:
        """Encodes a chat, and opens its images and videos only if the positions depend on them."""
        if self.processor.image_processor.max_crops == 1:
            return self.processor.encode_chat(messages), []
        opened: list = []

        def count_views(part: dict[str, Any]) -> int:
            opened.append(self._small(part))
            return len(opened[-1]) if part["type"] == "image" else 1

        return self.processor.encode_chat(messages, count_views), opened

    def _small(self, part: dict[str, Any]) -> Views | list[PIL.Image.Image]:
        """
        The views of an image by crop position, or the frames of a video, already resized as by the processor, so that
        later steps have fewer pixels.
        """
        processor = self.processor.image_processor
        size = (processor.size["width"], processor.size["height"])
        opened: Any = self.open(part)
        if part["type"] == "video":
            return [frame if frame.size == size else resize(frame, size, processor.resample) for frame in opened]
        return {WHOLE: opened} if opened.size == size else processor.viewer()(opened)

    def open(self, part: dict[str, Any]) -> PIL.Image.Image | list[PIL.Image.Image]:
        """
        Opens the image of a message part, or the frames of a video.

        Raises:
            ValueError: if the file cannot be read.
        """
        source = source_of(part)
        if part["type"] == "image":
            return self.processor.image_processor.fetch_images(source)
        return read_frames(source, num_frames=self.num_frames)[0]

    def _cut(self, chat: EncodedChat) -> tuple[int, int]:
        """Numbers of positions, at most `max_length`, and of images and videos to keep; none of these is cut."""
        length, count = len(chat.ids), 0
        if self.max_length is None or length <= self.max_length:
            return length, len(chat.visuals)
        positions = chat.is_visual.nonzero()[0]
        for size in chat.positions:
            if positions[size - 1] >= self.max_length:
                return min(self.max_length, int(positions[0])), count
            positions, count = positions[size:], count + 1
        return self.max_length, count


def _levels(images: list[PIL.Image.Image]) -> torch.Tensor:
    """Levels from 0 to 255 of images of one size, (images, 3, height, width)."""
    levels = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(levels))

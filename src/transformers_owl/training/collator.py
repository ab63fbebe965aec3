"""Conversations to batches: ids, pictures, and labels on the answers alone."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
import numpy as np
import PIL.Image
import torch
from transformers.utils.chat_template_utils import render_jinja_template

from ..mplug_owl.processing_mplug_owl import PICTURE_SOURCES, check_chats


IGNORED = -100


def pictures_of(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The parts of messages that are pictures."""
    for message in messages:
        if not isinstance(message["content"], str):
            yield from (part for part in message["content"] if part["type"] == "image")


class ConversationCollator:
    """
    Turns conversations into a training batch. The loss falls on the answers and their EOS, in all turns, and on
    nothing else: not on pictures, padding, questions or an "AI: " that a user typed.

    Each answer is tokenized by itself, so that the ids before it equal those of the prompt. A conversation longer than
    `max_length` is cut, never within a picture; a cut answer gets no EOS.

    Args:
        processor ([`MplugOwlProcessor`]): Of the model.
        max_length (`int`, *optional*): Positions of a row, those of pictures included.
        always_picture (`bool`, defaults to `False`): Whether a batch without pictures gets a blank one behind the end
            of its shortest row. It changes neither loss nor gradients, but lets every process of a distributed run
            pass the visual modules, without which collective operations would wait for ever.

    Calling it with samples `{"messages": [...]}`, in the library's chat form with pictures by path, URL or as PIL
    images, gives `input_ids`, `attention_mask` and `labels` (rows, positions), padded on the right, and `pixel_values`
    (pictures, 3, height, width) if there are any.

    Raises:
        ValueError: for a sample without an answer that fits into `max_length`.
    """

    def __init__(self, processor, max_length: int | None = None, always_picture: bool = False):
        self.processor = processor
        self.max_length = max_length
        self.always_picture = always_picture
        every_level = PIL.Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2))
        values = processor.image_processor(every_level, do_resize=False, return_tensors="pt")["pixel_values"]
        self.table = values[0, :, 0]  # (3, 256): what the image processor makes of each level of each colour

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [self.encode(sample["messages"]) for sample in samples]
        for sample, row in zip(samples, rows, strict=True):
            if (row["labels"] == IGNORED).all():
                start = f"{sample['messages']!s:.200}"
                raise ValueError(f"No answer fits into max_length={self.max_length}: {start}")
        return self.with_pixels(self.pad(rows))

    def pad(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        The batch of rows that `encode` gave, with `pixel_levels` (pictures, 3, height, width) of 0 to 255 in place of
        `pixel_values`: a quarter of the bytes from a worker to the device, where `with_pixels` does the rest.
        """
        if self.always_picture and not any(row["pictures"] for row in rows):
            shortest = min(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
            rows = [self._with_blank(row) if number == shortest else row for number, row in enumerate(rows)]
        padding = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        batch = {
            name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }
        pictures = [picture for row in rows for picture in row["pictures"]]
        if pictures:
            levels = np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)
            batch["pixel_levels"] = torch.from_numpy(np.ascontiguousarray(levels))
        return batch

    def with_pixels(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch with `pixel_values`, value for value those of the image processor, on the device of its levels."""
        batch = dict(batch)
        if "pixel_levels" in batch:
            levels = batch.pop("pixel_levels").int()
            table = self.table.to(levels.device)
            batch["pixel_values"] = torch.stack([table[colour][levels[:, colour]] for colour in range(3)], dim=1)
        return batch

    def _with_blank(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with a white picture behind its end, where nothing looks back at it and nothing is learned."""
        positions = self.processor.num_query_tokens + 1
        size = self.processor.image_processor.size
        blank = PIL.Image.new("RGB", (size["width"], size["height"]), "white")
        new = {"input_ids": self.processor.image_token_id, "attention_mask": 1, "labels": IGNORED}
        longer = {name: torch.cat([row[name], row[name].new_full((positions,), value)]) for name, value in new.items()}
        return longer | {"pictures": [blank]}

    def encode(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """
        One conversation: `input_ids`, `attention_mask` and `labels` (positions,), and `pictures`, a list of PIL images
        of the model's size; labels are all -100 if no answer is left.
        """
        check_chats(messages)
        text, is_answer = self._render(messages)
        backend = self.processor.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encoding = backend.encode(text)
        single = np.array(encoding.ids)
        spoken = np.array([start < end and is_answer[start] for start, end in encoding.offsets], dtype=bool)
        # Every picture's placeholder stands for all of its positions.
        repeats = np.where(single == self.processor.image_token_id, self.processor.num_query_tokens + 1, 1)
        ids, answers = (torch.from_numpy(np.repeat(values, repeats)) for values in (single, spoken))
        length = self._cut(ids)
        ids, answers = ids[:length], answers[:length]
        kept = int((ids == self.processor.image_token_id).sum()) // (self.processor.num_query_tokens + 1)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids.masked_fill(~answers, IGNORED),
            "pictures": [self._small(part) for part in itertools.islice(pictures_of(messages), kept)],
        }

    def _render(self, messages: list[dict[str, Any]]) -> tuple[str, np.ndarray]:
        """The text of a conversation, and for each of its characters whether it belongs to an answer."""
        try:
            rendered: Any = render_jinja_template(
                conversations=[messages],
                chat_template=self.processor.chat_template,
                return_assistant_tokens_mask=True,
                **self.processor.tokenizer.special_tokens_map,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"The chat does not fit the chat template: {error}") from error
        (text,), (spans,) = rendered
        is_answer = np.zeros(len(text), dtype=bool)
        for start, end in spans:
            is_answer[start:end] = True
        return text, is_answer

    def _small(self, part: dict[str, Any]) -> PIL.Image.Image:
        """The picture of a part, already resized as the processor would do it: its other steps then work on less."""
        source = next((part[name] for name in PICTURE_SOURCES if name in part), None)
        if source is None:
            raise ValueError(f"A picture has none of {', '.join(PICTURE_SOURCES)}: {part!r:.80}")
        processor = self.processor.image_processor
        image = processor.fetch_images(source)
        return image.resize((processor.size["width"], processor.size["height"]), processor.resample)

    def _cut(self, ids: torch.Tensor) -> int:
        """Positions to keep: `max_length`, or fewer so that the last picture is whole."""
        if self.max_length is None or len(ids) <= self.max_length:
            return len(ids)
        is_picture = ids[: self.max_length] == self.processor.image_token_id
        rest = int(is_picture.sum()) % (self.processor.num_query_tokens + 1)
        return self.max_length if rest == 0 else int(is_picture.nonzero()[-rest])

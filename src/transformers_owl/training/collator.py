"""Conversations to batches: ids, pictures, and labels on the answers alone."""

from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch


IGNORED = -100


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

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [self.encode(sample["messages"]) for sample in samples]
        for sample, row in zip(samples, rows, strict=True):
            if (row["labels"] == IGNORED).all():
                start = f"{sample['messages']!s:.200}"
                raise ValueError(f"No answer fits into max_length={self.max_length}: {start}")
        return self.pad(rows)

    def pad(self, rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The batch of rows that `encode` gave."""
        if self.always_picture and not any(len(row["pixel_values"]) for row in rows):
            shortest = min(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
            rows = [self._with_blank(row) if number == shortest else row for number, row in enumerate(rows)]
        padding = {"input_ids": self.processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        batch = {
            name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }
        pixels = [row["pixel_values"] for row in rows if len(row["pixel_values"])]
        return batch | ({"pixel_values": torch.cat(pixels)} if pixels else {})

    def _with_blank(self, row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A row with a white picture behind its end, where nothing looks back at it and nothing is learned."""
        positions = self.processor.num_query_tokens + 1
        size = self.processor.image_processor.size
        blank = PIL.Image.new("RGB", (size["width"], size["height"]), "white")
        new = {"input_ids": self.processor.image_token_id, "attention_mask": 1, "labels": IGNORED}
        longer = {name: torch.cat([row[name], row[name].new_full((positions,), value)]) for name, value in new.items()}
        return longer | {"pixel_values": self.processor.image_processor(blank, return_tensors="pt")["pixel_values"]}

    def encode(self, messages: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        One conversation: `input_ids`, `attention_mask` and `labels` (positions,), `pixel_values` (pictures, 3, height,
        width); labels are all -100 if no answer is left.
        """
        inputs = self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        ids = inputs["input_ids"][0]
        is_answer = torch.as_tensor(inputs["assistant_masks"])[0].bool()
        pixels = inputs.get("pixel_values", torch.empty(0))
        length = self._cut(ids)
        positions = self.processor.num_query_tokens + 1
        kept = int((ids[:length] == self.processor.image_token_id).sum()) // positions
        ids = ids[:length]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids.masked_fill(~is_answer[:length], IGNORED),
            "pixel_values": pixels[:kept],
        }

    def _cut(self, ids: torch.Tensor) -> int:
        """Positions to keep: `max_length`, or fewer so that the last picture is whole."""
        if self.max_length is None or len(ids) <= self.max_length:
            return len(ids)
        is_picture = ids[: self.max_length] == self.processor.image_token_id
        rest = int(is_picture.sum()) % (self.processor.num_query_tokens + 1)
        return self.max_length if rest == 0 else int(is_picture.nonzero()[-rest])

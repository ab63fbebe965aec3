"""Collators for TRL's trainers, with the same ids and labels as in training and inference here."""

from collections.abc import Sequence
from typing import Any

import torch

from .collator import IGNORED, ConversationCollator


class SFTCollator(ConversationCollator):
    """
    Collates rows of TRL's `SFTTrainer`. TRL's own collator leaves out BOS, and trains on prompts and image positions
    unless `assistant_only_loss` is set.

    Args: those of [`ConversationCollator`].

    Calling it with TRL's rows `{"images": [...], "messages": [...]}` gives what [`ConversationCollator`] gives.
    """

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return super().__call__([{"messages": _chat(sample, "messages")} for sample in samples])


class DPOCollator(ConversationCollator):
    """
    Collates pairs of answers for TRL's `DPOTrainer`. TRL's own collator tokenizes prompts and answers separately: its
    ids lack BOS, and answers begin with another token than in training and inference.

    Args: those of [`ConversationCollator`].

    Calling it with TRL's rows `{"images": [...], "prompt": [...], "chosen": [...], "rejected": [...]}`, the last three
    lists of messages, gives `input_ids`, `attention_mask` and `completion_mask` (2 * rows, positions): all prompts with
    their chosen answers, then all with the rejected ones. `completion_mask` is 1 on the answer and its EOS. Pixels are
    as in [`ConversationCollator`].

    Raises:
        ValueError: for messages that the chat template refuses, and for an answer after `max_length`.
    """

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [self._row(sample, which) for which in ("chosen", "rejected") for sample in samples]
        batch = self.with_pixels(self.pad(rows))
        batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
        return batch

    def _row(self, sample: dict[str, Any], which: str) -> dict[str, Any]:
        chat = _chat(sample, "prompt", which)
        row = self.encode(chat)
        start = 1 + int((~self.read(chat)[0].is_answer).nonzero()[0][-1])
        if start >= len(row["labels"]):
            raise ValueError(f"The {which} answer begins after max_length={self.max_length}: {chat!s:.200}")
        row["labels"][:start] = IGNORED
        return row


def _chat(sample: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    """The messages in a row's fields, with its images where TRL puts them."""
    from trl import prepare_multimodal_messages

    return prepare_multimodal_messages([message for name in names for message in sample[name]], images=sample["images"])

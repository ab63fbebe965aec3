"""Several conversations in one row: less padding, the same loss."""

from collections.abc import Sequence
from typing import Any

import torch


JOINED = ("input_ids", "labels", "position_ids")


def pack(rows: Sequence[dict[str, Any]], length: int, ignored: int) -> list[dict[str, Any]]:
    """
    Conversations end to end in few rows: the longest first, each into the first row where it fits.

    `position_ids` begin anew with each conversation. That is how the library's language models know that no position
    may see another conversation, as long as they are given no mask.

    Args:
        rows (`Sequence[dict]`): What [`ConversationCollator.encode`] gives.
        length (`int`): Positions of a row, more only where one conversation has more.
        ignored (`int`): The label of positions without a loss, here also of each conversation's first.
    """
    packed: list[list[dict[str, Any]]] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        room = (held for held in packed if sum(len(other["input_ids"]) for other in [*held, row]) <= length)
        held = next(room, None)
        if held is None:
            packed.append([row])
        else:
            held.append(row)
    return [_join(held, ignored) for held in packed]


def _join(rows: list[dict[str, Any]], ignored: int) -> dict[str, Any]:
    first = torch.tensor([ignored])
    parts = [
        {
            "input_ids": row["input_ids"],
            "labels": torch.cat([first, row["labels"][1:]]),
            "position_ids": torch.arange(len(row["input_ids"])),
        }
        for row in rows
    ]
    joined = {name: torch.cat([part[name] for part in parts]) for name in JOINED}
    return joined | {
        kind: [seen for row in rows for seen in row[kind]] for kind in ("image", "video", "crop_positions")
    }


def check_packing(model) -> None:
    """
    Raises:
        ValueError: for language models that do not tell conversations of a row apart by `position_ids`.
    """
    text = model.config.text_config
    if "rope_parameters" not in text.to_dict():
        raise ValueError(
            f"Language models of type {text.model_type!r} cannot keep the conversations of a row apart: `packing` "
            "needs one with rotary positions, such as LLaMA, Mistral or Qwen. Leave it out of the recipe."
        )

"""Packing of several conversations into one row: less padding, the same loss."""

from collections.abc import Sequence
from typing import Any

import torch


JOINED = ("input_ids", "labels", "position_ids")


def pack(rows: Sequence[dict[str, Any]], length: int, ignored: int) -> list[dict[str, Any]]:
    """
    Packs conversations into few rows: the longest first, each into the first row with room.

    `position_ids` restart with each conversation, by which the library's language models prevent attention between
    conversations if they get no mask.

    Args:
        rows (`Sequence[dict]`): Rows of [`ConversationCollator.encode`].
        length (`int`): Positions per row; only a longer conversation exceeds it.
        ignored (`int`): Label of positions without loss, which the first of each conversation gets, too.
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
        ValueError: for language models that do not separate the conversations of a row by `position_ids`.
    """
    text = model.config.text_config
    if "rope_parameters" not in text.to_dict():
        raise ValueError(
            f"Language models of type {text.model_type!r} cannot separate packed conversations: `packing` needs one "
            "with rotary positions, such as LLaMA, Mistral or Qwen. Leave it out of the recipe."
        )

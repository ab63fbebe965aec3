"""Compares two checkpoints, original or converted: every tensor through the key table, and the logits."""

from collections import defaultdict
from typing import Any

import torch

from .. import MplugOwlForConditionalGeneration
from ..mplug_owl.vision_mplug_owl import image_side
from ..progress import track
from .checkpoints import Checkpoint, Piece, open_owl


TEXT_IDS = 24  # of the fixed prompt, besides the image's positions


def parts(path: str) -> dict[str, list[Piece]]:
    """The weights under our names, by part of the model."""
    _, pieces = open_owl(Checkpoint.parse(path))
    found: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        name = next(iter(piece.tensors))
        found[name.removeprefix("model.").partition(".")[0]].append(piece)
    return found


def differences(first: list[Piece], second: list[Piece]) -> dict[str, float]:
    """The largest difference in each tensor; infinite if a name is missing or the shapes differ."""
    others = {name: piece for piece in second for name in piece.tensors}
    found = dict.fromkeys(others, float("inf"))
    for piece in track(first, "comparing", len(first), "tensors"):
        values = piece.make()
        counterparts = {name: others[name].make()[name] for name in values if name in others}
        for name, value in values.items():
            other = counterparts.get(name)
            found[name] = float("inf")
            if other is not None and other.shape == value.shape:
                same = value.dtype == other.dtype and torch.equal(value, other)
                found[name] = 0.0 if same else (value.float() - other.float()).abs().max().item()
    return found


@torch.no_grad()
def fixed_logits(model: MplugOwlForConditionalGeneration) -> torch.Tensor:
    """Logits (positions, vocabulary) of a fixed prompt about a fixed image, in float32."""
    config: Any = model.config
    ids = torch.linspace(3, min(config.text_config.vocab_size, config.image_token_id) - 1, TEXT_IDS).long()
    image = torch.full((config.num_query_tokens + 1,), config.image_token_id)
    side = image_side(config.vision_config)
    pixels = torch.linspace(-2, 2, 3 * side * side).reshape(1, 3, side, side).sin()
    ids = torch.cat([ids[:4], image, ids[4:]])[None]
    whole = torch.zeros(1, 2, dtype=torch.long) if config.visual_abstractor_config.max_crops > 1 else None
    return model(input_ids=ids, pixel_values=pixels, crop_positions=whole).logits[0].float()


def logits(path: str) -> torch.Tensor:
    source = Checkpoint.parse(path)
    model = MplugOwlForConditionalGeneration.from_pretrained(source.path, revision=source.revision, dtype="auto")
    return fixed_logits(model.eval())


def relative_difference(given: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference relative to the largest expected value."""
    return ((given - expected).abs().max() / expected.abs().max()).item()

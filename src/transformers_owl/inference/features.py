"""Features of pictures, for retrieval, probing and the like."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class VisualFeatures:
    """
    Features of N pictures, on the CPU.

    Args:
        patches (`torch.Tensor` (N, P, D)): Output of the vision model: the class token, then the patches row by row.
        positions (`torch.Tensor` (N, Q + 1, H)): The abstractor's summary: what the language model sees.
    """

    patches: torch.Tensor
    positions: torch.Tensor


@torch.no_grad()
def extract_features(model, processor, pictures: Sequence, batch_size: int = 8) -> VisualFeatures:
    """
    What the vision model and the visual abstractor make of pictures.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model.
        processor ([`MplugOwlProcessor`]): Its processor.
        pictures (`Sequence`): PIL images, arrays, paths or URLs, at least one.
        batch_size (`int`): Pictures computed together.

    Raises:
        ValueError: for no picture, and for one that cannot be read.
    """
    if len(pictures) == 0:
        raise ValueError("No pictures were given: give at least one.")
    patches, positions = [], []
    for start in range(0, len(pictures), batch_size):
        batch = list(pictures[start : start + batch_size])
        pixels = processor.image_processor(batch, return_tensors="pt")["pixel_values"]
        features = model.get_image_features(pixels.to(model.device))
        patches.append(features.last_hidden_state.cpu())
        positions.append(features.pooler_output.cpu())
    return VisualFeatures(torch.cat(patches), torch.cat(positions))

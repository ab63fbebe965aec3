"""Image and video features for retrieval, probing and the like."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..mplug_owl.video_processing_mplug_owl import visual_part


@dataclass(frozen=True)
class VisualFeatures:
    """
    Features of N images or videos on the CPU; with crops N is the number of views of all images.

    Args:
        patches (`torch.Tensor` (N, P, D), videos (N, frames, P, D)): Output of the vision model: the class token if it
            has one, then the patches row by row.
        positions (`torch.Tensor` (N, Q + 1, H)): Output of the abstractor, as the language model takes it.
        crop_positions (`torch.Tensor` (N, 2)): (0, 0) for the whole view, which comes first; row and column from 1 for
            each cell, which follow.
    """

    patches: torch.Tensor
    positions: torch.Tensor
    crop_positions: torch.Tensor


@torch.no_grad()
def extract_features(model, processor, images: Sequence, batch_size: int = 8) -> VisualFeatures:
    """
    Computes features of images or videos by the vision model and the visual abstractor.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model.
        processor ([`MplugOwlProcessor`]): Its processor.
        images (`Sequence`): PIL images, arrays, paths or URLs, at least one; or videos alone.
        batch_size (`int`, defaults to 8): Images or videos per batch; with crops, all views of this many images.

    Raises:
        ValueError: without an image, for images together with videos, and for files that cannot be read.
    """
    if len(images) == 0:
        raise ValueError("No images were given: pass at least one.")
    kinds = {visual_part(image, model.config.sees_videos)["type"] for image in images}
    if len(kinds) > 1:
        raise ValueError("Images and videos were given together, but their features differ in shape: pass one kind.")
    patches, positions, places = [], [], []
    for start in range(0, len(images), batch_size):
        batch = list(images[start : start + batch_size])
        if kinds == {"video"}:
            inputs = processor.video_processor(batch, return_tensors="pt").to(model.device)
            features = model.get_video_features(**inputs)
        else:
            inputs = processor.image_processor(batch, return_tensors="pt").to(model.device)
            features = model.get_image_features(**inputs)
        places.append(inputs.get("crop_positions", torch.zeros(len(features.pooler_output), 2, dtype=torch.long)).cpu())
        patches.append(features.last_hidden_state.cpu())
        positions.append(features.pooler_output.cpu())
    return VisualFeatures(torch.cat(patches), torch.cat(positions), torch.cat(places))

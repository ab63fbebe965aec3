"""Floating-point operations of a batch, peak rate of the device, and gradient norms."""

import time
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..mplug_owl.vision_mplug_owl import tokens_and_idle_weights
from .library import FROZEN_COPY
from .stages import part_of


# Dense matrix products in bfloat16 or float16, TFLOP/s, from data sheets; by the first part of a name that fits.
PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L40": 181, "A10G": 70, "L4": 121}


# "projection" is that of the vision model's width to the abstractor's.
PARTS_OF_WORK = ("vision", "temporal", "projection", "keys and values", "abstractor", "text")


class TrainingFlops:
    """
    Floating-point operations of training steps by the convention of MFU: two per weight and position, the products of
    attention, the same again for each needed gradient, and nothing for the recomputation of activation checkpointing.
    Linear layers and the patch convolution count, embeddings and norms do not.

    Args:
        model (`nn.Module`): An Owl, or a `PeftModel` around one, prepared for its stage.
    """

    def __init__(self, model: nn.Module):
        config: Any = model.config
        self.vision, self.abstractor, self.text = (
            config.vision_config, config.visual_abstractor_config, config.text_config.get_text_config(),
        )  # fmt: skip
        self.queries = config.num_query_tokens
        self.patches, idle = tokens_and_idle_weights(self.vision)
        # Weights of each part, and those of them that train.
        self.weights = {part: [0, 0] for part in PARTS_OF_WORK}
        for name, module in model.named_modules():
            is_idle = f"{name.rpartition('vision_model.')[2]}.weight" in idle
            if isinstance(module, (nn.Linear, nn.Conv2d)) and FROZEN_COPY not in name and not is_idle:
                size = _size(module)
                self.weights[_part(name)][0] += size
                self.weights[_part(name)][1] += size * module.weight.requires_grad
        trains = {part for part, (_, trained) in self.weights.items() if trained}
        # Parts that the gradient has to pass on its way back.
        self.passed = {"text"} if trains else set()
        if trains - {"text"}:
            self.passed |= {"keys and values", "abstractor"}
        if trains & {"vision", "temporal", "projection"}:
            self.passed |= {"projection"}
        if trains & {"vision", "temporal"}:
            self.passed |= {"vision", "temporal"}

    def __call__(self, lengths: list[int], images: int, videos: int = 0, frames: int = 0) -> float:
        """
        Operations of a batch with rows of `lengths` positions without padding, `images` in all rows together, and
        `videos` of `frames` each.
        """
        vision, abstractor, text = self.vision, self.abstractor, self.text
        positions = dict.fromkeys(self.weights, 0) | {"text": sum(lengths), "temporal": videos * frames * self.patches}
        # A causal row needs half of its square.
        squares = sum(length**2 for length in lengths)
        products = dict.fromkeys(self.weights, 0) | {"text": 2 * text.num_hidden_layers * text.hidden_size * squares}
        for count, queries, shown in ((images, self.queries, 1), (videos, 2 * self.queries, frames)):
            patches = shown * self.patches
            positions["vision"] += count * patches
            positions["projection"] += count * patches
            positions["keys and values"] += count * (queries + patches)
            positions["abstractor"] += count * queries
            products["vision"] += 4 * count * vision.num_hidden_layers * vision.hidden_size * patches * self.patches
            looks = count * queries * (queries + patches)
            products["abstractor"] += 4 * abstractor.num_hidden_layers * abstractor.hidden_size * looks
        total = 0.0
        for part, (size, trained) in self.weights.items():
            forward = 2 * size * positions[part]
            total += forward + products[part] + 2 * trained * positions[part]
            if part in self.passed:
                total += forward + 2 * products[part]
        return total


def _size(module: nn.Linear | nn.Conv2d) -> int:
    """Number of weights, however they are packed or sharded."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    return module.weight.numel()


def _part(name: str) -> str:
    if "vision_model" in name:
        return "temporal" if ".temporal." in name else "vision"
    if ".vision_proj" in name:
        return "projection"
    if "abstractor" in name:
        return "keys and values" if name.endswith(("cross_attn.k_proj", "cross_attn.v_proj")) else "abstractor"
    return "text"


def peak_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak TFLOP/s of matrix products on the device: from its data sheet, or measured if none is known."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = [figure for part, figure in PEAK_TFLOPS.items() if part in name]
        if known and dtype in (torch.bfloat16, torch.float16):
            return known[0]
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e12


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """The 2-norm of the gradient of each part of [`module_table`] that has one."""
    gradients: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients.setdefault(part_of(name), []).append(parameter.grad)
    norms = {part: nn.utils.get_total_norm(found) for part, found in gradients.items()}
    return {part: (norm.full_tensor() if isinstance(norm, DTensor) else norm).item() for part, norm in norms.items()}

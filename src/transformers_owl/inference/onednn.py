"""Linear layers by oneDNN on CPUs."""

from typing import TypeVar

import torch
from torch import nn

from .library import onednn_linear


Model = TypeVar("Model", bound=nn.Module)


class OneDnnLinear(nn.Linear):
    """A linear layer that uses oneDNN when no gradients are needed, which that operator does not support."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return super().forward(input)
        return onednn_linear(input, self.weight, self.bias)


def use_onednn(model: Model) -> Model:
    """
    Makes a model's float32 linear layers on the CPU use oneDNN in inference. PyTorch uses MKL for them, which is slower
    on AMD processors but not on Intel's. Other layers, training, weights and their names do not change; nothing changes
    if PyTorch has no oneDNN.

    Args:
        model (`nn.Module`): Any model on its final device and in its final dtype; changed in place.

    Returns:
        `nn.Module`: The same model.
    """
    if torch.backends.mkldnn.is_available():
        for layer in model.modules():
            if type(layer) is nn.Linear and is_plain(layer.weight):
                layer.__class__ = OneDnnLinear
    return model


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is a plain tensor, not one of a quantisation."""
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32

"""Linear layers by oneDNN on CPUs."""

from typing import TypeVar

import torch
from torch import nn

from .library import onednn_linear


Model = TypeVar("Model", bound=nn.Module)


class OneDnnLinear(nn.Linear):
    """A linear layer that multiplies by oneDNN where no gradients are wanted, which that operator does not have."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return super().forward(input)
        return onednn_linear(input, self.weight, self.bias)


def use_onednn(model: Model) -> Model:
    """
    Lets a model's float32 linear layers on the CPU multiply by oneDNN in inference. PyTorch takes MKL for them, which
    is slower on AMD's processors and no slower on Intel's. Other layers stay as they are, and so do training, the
    weights and their names; where PyTorch has no oneDNN, nothing changes.

    Args:
        model (`nn.Module`): Any model, on the device and in the type that it will keep. It is changed in place, and
            returned.
    """
    if torch.backends.mkldnn.is_available():
        for layer in model.modules():
            if type(layer) is nn.Linear and is_plain(layer.weight):
                layer.__class__ = OneDnnLinear
    return model


def is_plain(weight: torch.Tensor) -> bool:
    """Not one of the tensors that quantisation puts in its place."""
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32

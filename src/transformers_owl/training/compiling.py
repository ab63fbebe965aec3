"""Layers that are compiled one by one."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


# Shapes and modes for which the layers of all parts together may be compiled anew, before they run as they are.
VARIANTS = 64


def compile_layers(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """
    Compiles each layer by itself, in place. Layers of a part share their code; lengths that vary cost a second round.

    Args:
        model: An Owl, or a `PeftModel` around one; its parameters keep their names.
        backend (`str`): Of `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = VARIANTS
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(backend=backend)
    return model

"""Compilation layer by layer."""

from torch import nn

from .library import GradientCheckpointingLayer


# Shapes and modes for which the layers of all parts together may be compiled anew, before they run as they are.
VARIANTS = 64


def compile_layers(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """
    Compiles each layer by itself, in place. The layers of a part share their code; varying lengths need a second
    compilation.

    Args:
        model (`nn.Module`): An Owl, or a `PeftModel` around one; its parameters keep their names.
        backend (`str`): Backend of `torch.compile`.
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(backend=backend, recompile_limit=VARIANTS)
    return model

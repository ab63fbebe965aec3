"""The fence of inference: what it leans on in other packages beyond their documented names."""

from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedModel


LEANS_ON = {
    "transformers.PreTrainedConfig._attn_implementation": "which attention a part has: it can be set by a documented "
    "name, but not be asked for",
    "torch.ops.mkldnn._linear_pointwise": "a product by oneDNN, where `nn.Linear` would take MKL",
    "torch._inductor.config": "weights as constants (`freezing`): asked for while code is traced, so `torch.compile`'s "
    "own options come too late",
}


def attention_implementations(model: PreTrainedModel) -> dict[str, str]:
    """Of the model and its parts, as `set_attn_implementation` takes them."""
    parts = {name: getattr(model.config, name)._attn_implementation for name in model.config.sub_configs}
    return {"": model.config._attn_implementation, **parts}


def onednn_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What `torch.nn.functional.linear` computes, without gradients."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def inductor_settings(**settings: bool) -> AbstractContextManager:
    """Settings of `torch.compile` for code that is traced within."""
    return torch._inductor.config.patch(settings)

# SPDX-License-Identifier: Apache-2.0
"""Which causal language models an Owl supports, and what they do to the logits of their head."""

import copy
import inspect
import typing
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from .library_mplug_owl import CACHE_NAMES, undivided


MOST_TOKENS = 2**24  # of a vocabulary: dozens of times the largest there is


class Passed(tuple):
    """Output of a body that holds one tensor; every other field is `None`."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


class PassOn(nn.Module):
    """Replaces the body of a causal model: returns its input embeddings, and has the body's settings."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.__dict__["body"] = body

    def __getattr__(self, name: str):
        value = getattr(self.__dict__["body"], name)
        return self if isinstance(value, nn.Module) else value

    def forward(self, *args, inputs_embeds: torch.Tensor, **kwargs) -> Passed:
        return Passed((inputs_embeds,))


class CausalHead:
    """
    The head of a causal language model and the operations after it, as the library's own class computes them.

    Args:
        config (`PreTrainedConfig`): Configuration of the language model.
        body (`PreTrainedModel`): The model that `AutoModel` builds from it.

    Attributes:
        body_name (`str`): Name of the body in the causal model, such as `"model"`.
        has_bias (`bool`): Whether the head has a bias.
        is_plain (`bool`): Whether the head's output is the logits.

    Calling it with the head's output (B, L, V) gives the logits, after a soft cap or scale if there is one.

    Raises:
        ValueError: for an unsupported language model, with the reason.
    """

    @undivided()
    def __init__(self, config: PreTrainedConfig, body: Any):
        self.config = config
        with torch.device("meta"):
            try:
                self.causal: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
            except ValueError as error:
                raise self._refusal("the library has no causal model of this type") from error
        bodies = [name for name, part in self.causal.named_children() if type(part) is type(body)]
        if not bodies:
            raise self._refusal(f"its causal model is not built on {type(body).__name__}")
        self.body_name = bodies[0]
        self._check_body(body)
        self._check_head(body.get_input_embeddings())
        setattr(self.causal, self.body_name, PassOn(getattr(self.causal, self.body_name)))
        self.is_plain = self._is_plain()

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.is_plain else self.causal(inputs_embeds=logits).logits

    def _check_body(self, body: nn.Module) -> None:
        parameters = inspect.signature(type(body).forward).parameters
        layers = (part for part in body.modules() if not isinstance(part, nn.Embedding))
        takes = [set(inspect.signature(type(layer).forward).parameters) for layer in layers]
        caches = [parameters[name].annotation for name in CACHE_NAMES if name in parameters]
        if "inputs_embeds" not in parameters:
            raise self._refusal("it does not take embeddings instead of token ids")
        if "per_layer_inputs" in parameters or any(
            "input_ids" in each and "inputs_embeds" not in each for each in takes
        ):
            raise self._refusal("its layers need token ids, which images do not have")
        if not any(Cache in typing.get_args(annotation) for annotation in caches):
            raise self._refusal("it uses none of the library's caches")

    def _check_head(self, embeddings: Any) -> None:
        head, shape = self.causal.get_output_embeddings(), (self.config.vocab_size, self.config.hidden_size)
        if shape[0] > MOST_TOKENS:
            raise self._refusal(f"its vocabulary has {shape[0]:,} tokens, but at most {MOST_TOKENS:,} are allowed")
        if type(head) is not nn.Linear or head.weight.shape != shape or embeddings.embedding_dim != shape[1]:
            raise self._refusal(f"its head and its embeddings are not linear layers of shape {shape}")
        self.has_bias = head.bias is not None
        own = {id(weight) for weight in (*getattr(self.causal, self.body_name).parameters(), *head.parameters())}
        others = [name for name, weight in self.causal.named_parameters() if id(weight) not in own]
        if others:
            raise self._refusal(f"it has weights beside its body and its head, such as {others[0]}")

    def _is_plain(self) -> bool:
        probe = torch.linspace(-100, 100, self.config.vocab_size, device="cpu")[None, None]
        try:
            self.causal.set_output_embeddings(nn.Identity())
            with torch.no_grad():
                logits = self.causal(inputs_embeds=probe).logits
        except Exception as error:
            raise self._refusal(f"the operations after its head cannot be computed by themselves ({error})") from error
        if logits.shape != probe.shape:
            raise self._refusal(f"the {probe.shape[-1]} values of its head become {logits.shape[-1]}")
        return torch.equal(logits, probe)

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"The language model `{self.config.model_type}` is not supported: {reason}. An Owl needs a causal "
            "decoder that takes embeddings, keeps a cache and has one linear head, such as llama, qwen3 or gemma3_text."
        )

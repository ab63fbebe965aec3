"""Weights to begin with in which heads look words up: trained from chance, so small a model hardly finds them."""

import math
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM


LOUD, QUIET = 0.06, 0.001  # what a token or a head that is set here adds to the stream, and what all else adds at first
CONSTANT = 0.5  # every token's first number: by it a head can attend to a place, whatever stands there
BEFORE = 5.2  # how sharply the token before is attended to
LIKE = 1.4  # how sharply like tokens are
FAST, SLOW = 8, 12  # pairs of rotary numbers: the first 8 tell neighbours apart, those from 12 hardly feel distance


@torch.no_grad()
def begin_with_induction_heads(model: LlamaForCausalLM) -> None:
    """
    Sets all weights of a LLaMA of four heads a layer for the start of its training.

    A head of the first layer takes to each token the one before it. Those of the second look for tokens that are like
    this one, or like the one before it, and say what stood beside them: after "red cow", "cow" is found by "red", "red"
    by "cow", and either by "red?" and "cow?". Heads of this kind are what larger models learn to look things up with
    (arXiv 2209.11895); to begin with what training would find is known as mimetic initialization (arXiv 2305.09828).
    """
    config: Any = model.config
    size, width = config.head_dim, config.hidden_size
    basis = torch.linalg.qr(torch.randn(width - 1, width - 1))[0]
    itself, before = (nn.functional.pad(basis[part * size : (part + 1) * size], (1, 0)) for part in range(2))
    embeddings, layers = model.model.embed_tokens.weight, model.model.layers
    tokens = nn.functional.pad(torch.randn_like(embeddings[:, 1:]), (1, 0))
    tokens -= tokens @ before.T @ before  # what the first layer writes there is heard alone
    embeddings.copy_(nn.functional.normalize(tokens) * LOUD * math.sqrt(width))
    embeddings[:, 0] = CONSTANT
    for layer in layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight.normal_(0, LOUD / 2)
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.weight.normal_(0, LOUD)
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.normal_(0, QUIET)

    angles = config.rope_parameters["rope_theta"] ** (-2 * torch.arange(FAST) / size)
    normed = CONSTANT / math.sqrt(CONSTANT**2 / width + LOUD**2)
    query, key = torch.zeros(size, width), torch.zeros(size, width)
    key[:FAST, 0] = BEFORE / normed
    query[:FAST, 0] = BEFORE / normed * angles.cos()
    query[size // 2 : size // 2 + FAST, 0] = -BEFORE / normed * angles.sin()
    set_head(layers[0].self_attn, 0, query, key, itself, before)

    found_by = ((itself, before, itself), (itself, itself, before), (before, itself, before), (before, before, itself))
    anywhere = LIKE * (torch.arange(size) % (size // 2) >= SLOW)[:, None]
    for head, (query, key, value) in enumerate(found_by):
        set_head(layers[1].self_attn, head, anywhere * query, anywhere * key, value, itself)


def set_head(
    attention, head: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor
) -> None:
    """Of an attention layer: what a head looks for, is found by, reads and writes, `(head_dim, hidden_size)` each."""
    rows = slice(head * len(query), (head + 1) * len(query))
    for projection, weight in ((attention.q_proj, query), (attention.k_proj, key), (attention.v_proj, value)):
        projection.weight[rows] = weight
    attention.o_proj.weight[:, rows] = LOUD * output.T

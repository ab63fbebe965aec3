"""A language model that begins with induction heads looks words up before its first step."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from research.miniature.induction import begin_with_induction_heads


PAIRS, ROWS, COMMA, MARK = 8, 64, 3, 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def listed():
    """Words of pairs, `(rows, 16)`, and the text that lists them: "red cow, blue drum, ..."."""
    words = 10 + torch.rand(ROWS, 500).argsort(1)[:, : 2 * PAIRS]
    text = torch.cat([words.view(ROWS, PAIRS, 2), torch.full((ROWS, PAIRS, 1), COMMA)], 2).flatten(1)
    return words, text


@torch.no_grad()
def attended(model, ids):
    """What the last token of each row attends to: `(layers, heads, length)`, means over rows."""
    return torch.stack([layer[:, :, -1].mean(0) for layer in model(ids, output_attentions=True).attentions])


def test_heads_attend_to_what_stands_beside_a_word_that_was_there_before(model):
    begin_with_induction_heads(model)
    words, text = listed()
    first, second = words[:, 6:7], words[:, 7:8]  # tokens 9 and 10 of the text
    mark = torch.full((ROWS, 1), MARK)
    asked = {name: attended(model, torch.cat([text, *end], 1)) for name, end in {
        "first": (first,), "second": (second,), "first?": (first, mark), "second?": (second, mark),
    }.items()}  # fmt: skip
    for weights in asked.values():
        assert weights[0, 0, -2] > 0.9
    assert asked["first"][1, 0, 10] > 0.5  # after "red": the token that stood after it
    assert asked["second"][1, 1, 10] > 0.3  # after "cow": the cow (and itself), which has what stood before it
    assert asked["second?"][1, 2, 10] > 0.3
    assert asked["first?"][1, 3, 10] > 0.3


def test_other_weights_do_not(model):
    words, text = listed()
    weights = attended(model, torch.cat([text, words[:, 6:7]], 1))
    assert weights.max() < 0.1


@torch.no_grad()
def test_a_word_that_is_found_is_said(model):
    """Of the words of the text, but for the one that is asked with: 1 in 15 by chance."""
    begin_with_induction_heads(model)
    words, text = listed()
    logits = model(torch.cat([text, words[:, 6:7]], 1)).logits[:, -1].gather(1, words)
    logits[:, 6] = -torch.inf
    assert (logits.argmax(1) == 7).float().mean() > 0.5

"""Compiled layers compute what the others do, whatever the shapes of the batches."""

import pytest
import torch
from conftest import tiny_config

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import prepare_stage
from transformers_owl.training.compiling import compile_layers


SHAPES = ((2, 14), (2, 17), (3, 11))


def step(model, rows, length):
    """Loss and gradients of a batch with an image a row."""
    random = torch.Generator().manual_seed(length)
    ids = torch.randint(3, 100, (rows, length), generator=random)
    ids[:, 3:8] = 100
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    pixels = torch.randn(rows, 3, 28, 28, generator=random)
    model.zero_grad()
    loss = model(input_ids=ids, attention_mask=mask, labels=ids, pixel_values=pixels, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "checkpointed"), [("pretrain", True), ("instruct", False)])
def test_losses_and_gradients_stay(stage, checkpointed):
    torch.manual_seed(0)
    config = tiny_config()
    config.visual_abstractor_config.attention_probs_dropout_prob = 0.0
    model = prepare_stage(MplugOwlForConditionalGeneration(config), stage, lora_dropout=0.0).train()
    if checkpointed:
        model.gradient_checkpointing_enable()
    expected = [step(model, *shape) for shape in SHAPES]
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    names = list(model.state_dict())
    compile_layers(model, backend="eager")
    assert list(model.state_dict()) == names
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for shape, (loss, gradients) in zip(SHAPES, expected, strict=True):
            found, new = step(model, *shape)
            torch.testing.assert_close(found, loss)
            torch.testing.assert_close(new, gradients)
    assert 8 < counters["stats"]["unique_graphs"] <= 16

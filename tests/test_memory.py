"""The memory table counts what real models hold."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_config

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import prepare_stage


sys.path.insert(0, str(Path(__file__).parent.parent / "research/benchmarks"))
import memory


ROWS, LENGTH = 2, 30
STAGES = ["pretrain", "instruct", "instruct-full"]


def real(stage: str, trained: torch.dtype) -> torch.nn.Module:
    model = prepare_stage(MplugOwlForConditionalGeneration(tiny_config()).bfloat16(), stage, lora_dropout=0.0)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(trained if parameter.requires_grad else torch.bfloat16)
    return model.train()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 100, (ROWS, LENGTH))
    ids[:, 3:8] = 100
    mask = torch.ones_like(ids)
    mask[0, -5:] = 0
    return {"input_ids": ids, "labels": ids, "attention_mask": mask, "pixel_values": torch.randn(ROWS, 3, 28, 28)}


@pytest.mark.parametrize("stage", STAGES)
def test_weights_gradients_and_optimizer_are_those_after_a_step(stage):
    model = real(stage, torch.float32)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch()).loss.backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    counted = memory.states(memory.build(tiny_config(), stage, torch.float32))
    assert counted["weights"] == sum(parameter.nbytes for parameter in model.parameters())
    assert counted["gradients"] == sum(parameter.grad.nbytes for parameter in trained)
    assert counted["optimizer"] == sum(value.nbytes for value in states)


@pytest.mark.parametrize("stage", STAGES)
def test_activations_are_those_of_a_real_forward_pass(stage):
    """Without data as with them, with and without checkpointing, but for a few masks and ids."""
    counted = memory.activations(memory.build(tiny_config(), stage, torch.bfloat16), ROWS, LENGTH)
    model = real(stage, torch.bfloat16)
    whole, inputs_and_rest = memory.Kept(model), memory.Kept(model)
    with whole.watch(model), torch.autocast("cpu", torch.bfloat16):
        model(**batch())
    model.gradient_checkpointing_enable()
    with inputs_and_rest.watch(model), torch.autocast("cpu", torch.bfloat16):
        model(**batch())
    assert counted.whole == pytest.approx(whole.whole, rel=0.02)
    # What the layers keep is computed anew, one after the other. Frozen layers hand their inputs to the hooks, too.
    largest = max(size for name, size in counted.bytes.items() if name)
    bound = 0.02 if stage == "pretrain" else 0.08
    assert counted.checkpointed - largest == pytest.approx(inputs_and_rest.whole, rel=bound)


def test_packed_layers_take_about_half_a_byte(tmp_path):
    from transformers import BitsAndBytesConfig

    config = tiny_config({"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4})
    MplugOwlForConditionalGeneration(config).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = MplugOwlForConditionalGeneration.from_pretrained(tmp_path, quantization_config=quantization)
    layer = model.model.language_model.layers[0].mlp.up_proj
    state = layer.weight.quant_state
    held = layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert held == pytest.approx(memory.PACKED * 256 * 512, rel=0.01)


@pytest.mark.slow
def test_the_table_in_the_documentation_is_what_the_command_prints(capsys):
    memory.main()
    assert capsys.readouterr().out in (Path(memory.__file__).parents[2] / "docs/memory.md").read_text()

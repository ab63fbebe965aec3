"""Quantisation by bitsandbytes and torchao touches the language model alone, on CPU."""

import pytest
import torch
from conftest import relative_error, tiny_config
from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig, TorchAoConfig

from transformers_owl import MplugOwlForConditionalGeneration


CONFIGS = {
    "bitsandbytes 8 bits": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes 4 bits": lambda: BitsAndBytesConfig(load_in_4bit=True),
    "bitsandbytes by dictionary": lambda: {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "torchao 8 bits": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
}
BOUNDS = {"bitsandbytes 4 bits": 0.3}


def is_quantized(module: torch.nn.Linear) -> bool:
    return type(module) is not torch.nn.Linear or type(module.weight.data) is not torch.Tensor


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    model = MplugOwlForConditionalGeneration(tiny_config({"hidden_size": 64, "intermediate_size": 128})).eval()
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_language_model_is_quantised(saved, name):
    folder, model = saved
    given = CONFIGS[name]()
    quantised = MplugOwlForConditionalGeneration.from_pretrained(folder, quantization_config=given)
    linears = {key: module for key, module in quantised.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {key for key, module in linears.items() if is_quantized(module)} == {
        key for key in linears if key.startswith("model.language_model.")
    }
    ids = torch.randint(3, 90, (2, 14))
    ids[:, 3:8] = model.config.image_token_id
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 28, 28)}
    with torch.no_grad():
        expected = model(**inputs)
        output = quantised(**inputs)
    assert torch.equal(output.image_hidden_states, expected.image_hidden_states)
    assert 0 < relative_error(output.logits, expected.logits) < BOUNDS.get(name, 0.05)


def test_a_list_of_ones_own_is_kept(saved):
    folder, _ = saved
    given = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head"])
    quantised = MplugOwlForConditionalGeneration.from_pretrained(folder, quantization_config=given)
    assert is_quantized(quantised.model.vision_model.layers[0].mlp.fc1)
    assert given.modules_to_not_convert == ["lm_head"]

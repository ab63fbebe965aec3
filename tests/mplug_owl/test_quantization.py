"""Quantisation by bitsandbytes and torchao touches the language model alone, on CPU."""

import pytest
import torch
from conftest import GoldenCase, relative_error, tiny_config
from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

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


OWN_LISTS = {
    "bitsandbytes": lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"]),
    "torchao": lambda: TorchAoConfig(
        Int8WeightOnlyConfig(), modules_to_not_convert=["vision_model", "model.vision_model", "lm_head"]
    ),
}
REFUSED = {
    "torchao": lambda: TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head"]),
    "quanto": lambda: QuantoConfig(weights="int8"),
}


@pytest.mark.parametrize("name", ["image-llama", "image-bloom", "video-llama"])
@pytest.mark.parametrize("method", [*CONFIGS, *OWN_LISTS])
def test_a_release_is_quantised_with_its_own_weights(name, method):
    checkpoint = GoldenCase(name).checkpoint
    given = {**CONFIGS, **OWN_LISTS}[method]()
    plain = MplugOwlForConditionalGeneration.from_pretrained(checkpoint)
    quantised = MplugOwlForConditionalGeneration.from_pretrained(checkpoint, quantization_config=given)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = (model.get_image_features(pixels).pooler_output for model in (plain, quantised))
    assert relative_error(found, expected) <= (0.05 if method in OWN_LISTS else 0)


@pytest.mark.parametrize("method", REFUSED)
def test_methods_that_would_lose_weights_of_a_release_are_refused_by_name(method):
    with pytest.raises(ValueError, match=f"{method} cannot quantise .*transformers-owl convert"):
        MplugOwlForConditionalGeneration.from_pretrained(
            GoldenCase("video-llama").checkpoint, quantization_config=REFUSED[method]()
        )

"""LoRA on the language model: PEFT finds the right layers, and adapters load back and merge, also onto a release."""

import json

import pytest
import torch
from conftest import GoldenCase, image_logits, relative_error
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText
from transformers.core_model_loading import revert_weight_conversion

from transformers_owl import MplugOwlForConditionalGeneration


TARGETS = {
    "image-llama": r".*language_model.*\.(q_proj|v_proj)",
    "image-bloom": r".*language_model.*\.query_key_value",
    "video-llama": r".*language_model.*\.(q_proj|v_proj)",
}


@pytest.mark.parametrize("name", TARGETS)
def test_adapters_of_a_release_load_back_through_every_road(name, tmp_path):
    checkpoint = GoldenCase(name).checkpoint
    torch.manual_seed(0)
    base = MplugOwlForConditionalGeneration.from_pretrained(checkpoint)
    plain = image_logits(base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=TARGETS[name], init_lora_weights=False))
    trainable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable and all("language_model" in key and "lora" in key for key in trainable)
    tuned = image_logits(model)
    assert relative_error(tuned, plain) > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    roads = (
        PeftModel.from_pretrained(MplugOwlForConditionalGeneration.from_pretrained(checkpoint), tmp_path / "adapter"),
        MplugOwlForConditionalGeneration.from_pretrained(str(tmp_path / "adapter")),
        AutoModelForImageTextToText.from_pretrained(str(tmp_path / "adapter")),
    )
    for loaded in roads:
        assert relative_error(image_logits(loaded), tuned) <= 1e-6
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again, info = MplugOwlForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    assert relative_error(image_logits(again), tuned) <= 1e-5


def as_the_original_saved(model, folder) -> dict[str, torch.Tensor]:
    """`adapter_model.bin` with the original's names and the fields of its PEFT; what it adds to our weights."""
    torch.manual_seed(1)
    weights, summed = {}, {}
    for name, module in model.named_modules():
        if ".language_model." in name and name.endswith(("q_proj", "query_key_value")):
            (theirs,) = revert_weight_conversion(model, {f"{name}.weight": torch.empty(1)})
            key = f"base_model.model.{theirs.removesuffix('.weight')}"
            weights[f"{key}.lora_A.weight"] = torch.randn(4, module.in_features) / 4
            weights[f"{key}.lora_B.weight"] = torch.randn(module.out_features, 4) / 4
            summed[f"{name}.weight"] = 2 * weights[f"{key}.lora_B.weight"] @ weights[f"{key}.lora_A.weight"]
    torch.save(weights, folder / "adapter_model.bin")
    settings = {
        "base_model_name_or_path": model.name_or_path, "bias": "none", "enable_lora": None, "fan_in_fan_out": False,
        "inference_mode": True, "lora_alpha": 8, "lora_dropout": 0.05, "merge_weights": False, "modules_to_save": None,
        "peft_type": "LORA", "r": 4, "target_modules": r".*language_model.*\.(q_proj|query_key_value)",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return summed


def load_into(checkpoint, folder):
    model = MplugOwlForConditionalGeneration.from_pretrained(checkpoint)
    model.load_adapter(str(folder))
    return model


ROADS = {
    "PEFT": lambda base, folder: PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), folder),
    "load_adapter": load_into,
    "from_pretrained": lambda base, folder: MplugOwlForConditionalGeneration.from_pretrained(str(folder)),
    "auto": lambda base, folder: AutoModelForImageTextToText.from_pretrained(str(folder)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_an_adapter_of_the_original_loads_through_every_road(name, tmp_path):
    checkpoint = GoldenCase(name).checkpoint
    model = MplugOwlForConditionalGeneration.from_pretrained(checkpoint)
    summed = as_the_original_saved(model, tmp_path)
    before = image_logits(model)
    with torch.no_grad():
        for key, value in summed.items():
            model.get_parameter(key).add_(value)
    expected = image_logits(model)
    assert relative_error(before, expected) > 1e-3
    for road, load in ROADS.items():
        assert relative_error(image_logits(load(checkpoint, tmp_path)), expected) <= 1e-5, road


def test_an_adapter_that_does_not_fit_is_refused(tmp_path):
    model = MplugOwlForConditionalGeneration.from_pretrained(GoldenCase("image-llama").checkpoint)
    as_the_original_saved(model, tmp_path)
    weights = torch.load(tmp_path / "adapter_model.bin")
    others = {key.replace("layers.0", "layers.9"): value for key, value in weights.items()}
    torch.save(others, tmp_path / "adapter_model.bin")
    for road in ("load_adapter", "from_pretrained", "auto"):
        with pytest.raises(ValueError, match=r"lacks \d+ weights.*layers\.0"):
            ROADS[road](GoldenCase("image-llama").checkpoint, tmp_path)

"""A merged adapter computes what base and adapter did; the original's adapters merge too, wrong ones do not."""

import json

import pytest
import torch
from conftest import image_logits, relative_error
from peft import LoraConfig, get_peft_model
from releases import NAMES, release
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor
from transformers.core_model_loading import revert_weight_conversion

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.conversion.merge import merge


PREFIX = "base_model.model."
TARGETS = {"image-bloom": r".*language_model.*\.query_key_value"}


@pytest.fixture(params=NAMES)
def tuned(request, tmp_path):
    """A base, an adapter of it, and what both together compute; the abstractor was trained as well."""
    base = release(request.param, tmp_path / "base")
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        target_modules=TARGETS.get(request.param, r".*language_model.*\.(q_proj|v_proj)"),
        modules_to_save=["abstractor"] if request.param == "image-llama" else None,
        init_lora_weights=False,
    )
    model = get_peft_model(MplugOwlForConditionalGeneration.from_pretrained(base), config)
    if config.modules_to_save:
        with torch.no_grad():
            model.base_model.model.model.abstractor.modules_to_save["default"].vit_eos.add_(1)
    model.save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter", image_logits(model)


def test_merged_equals_unmerged(tuned, tmp_path):
    base, adapter, expected = tuned
    merge(str(adapter), str(base), tmp_path / "out", max_shard_size="200KB")
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert relative_error(image_logits(model), expected) <= 1e-5
    assert relative_error(image_logits(AutoModel.from_pretrained(base)), expected) > 1e-3
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_token_id == model.config.image_token_id
    assert "The adapter adapter, merged into base." in " ".join((tmp_path / "out/README.md").read_text().split())


def as_the_original_saved(base, adapter) -> None:
    """The same adapter under the original's names, in its file form, with its fields of the configuration."""
    weights = load_file(adapter / "adapter_model.safetensors")
    model = MplugOwlForConditionalGeneration.from_pretrained(base)
    names = {}
    for name in weights:
        module, _, kind = name.removeprefix(PREFIX).partition(".lora_")
        (theirs,) = revert_weight_conversion(model, {f"{module}.weight": torch.empty(1)})
        names[f"{PREFIX}{theirs.removesuffix('.weight')}.lora_{kind}"] = weights[name]
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(names, adapter / "adapter_model.bin")
    settings = {
        "base_model_name_or_path": None, "bias": "none", "enable_lora": None, "fan_in_fan_out": False,
        "inference_mode": True, "lora_alpha": 8, "lora_dropout": 0.0, "merge_weights": False, "modules_to_save": None,
        "peft_type": "LORA", "r": 4, "target_modules": r".*language_model.*\.(q_proj|v_proj)", "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    assert any(name.startswith(f"{PREFIX}language_model.model.layers.0.self_attn.q_proj.lora_A") for name in names)


@pytest.mark.parametrize("tuned", ["video-llama"], indirect=True)
def test_an_adapter_of_the_original_merges(tuned, tmp_path):
    base, adapter, expected = tuned
    as_the_original_saved(base, adapter)
    merge(str(adapter), str(base), tmp_path / "out")
    assert relative_error(image_logits(AutoModel.from_pretrained(tmp_path / "out")), expected) <= 1e-5


@pytest.mark.parametrize("tuned", ["video-llama"], indirect=True)
def test_an_adapter_that_does_not_fit_is_refused(tuned, tmp_path):
    base, adapter, _ = tuned
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(weights))
    weights[name.replace("layers.0", "layers.9")] = weights.pop(name)
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"1 of its weights are missing .*layers.0.*, 1 have no place .*layers.9"):
        merge(str(adapter), str(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()

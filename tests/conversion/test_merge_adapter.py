"""A merged adapter computes what base and adapter did; the original's adapters merge too, wrong ones do not."""

import json

import pytest
import torch
from conftest import image_logits, relative_error
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from releases import NAMES, release
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor
from transformers.core_model_loading import revert_weight_conversion

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlProcessor
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
    with pytest.raises(ValueError, match=r"1 of its weights are missing .*layers.0.*, 1 are unexpected .*layers.9"):
        merge(str(adapter), str(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("saved", [[], ["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("grown", [0, 8])
def test_embeddings_of_an_adapter_merge(llama, tmp_path, is_tied, saved, grown):
    """Tied to the head or not, saved or not, of more tokens or not."""
    if grown and len(saved) < 2:
        pytest.skip("PEFT saves no embeddings of added tokens then")
    model, processor = (
        cls.from_pretrained(llama.checkpoint) for cls in (MplugOwlForConditionalGeneration, MplugOwlProcessor)
    )
    if is_tied:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
        model.lm_head.weight = model.get_input_embeddings().weight
    for part in (model, processor):
        part.save_pretrained(tmp_path / "base")
    model = MplugOwlForConditionalGeneration.from_pretrained(tmp_path / "base")
    size = model.config.text_config.vocab_size
    if grown:
        model.resize_token_embeddings(size + grown)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=saved or None)
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.05
    tuned.save_pretrained(tmp_path / "adapter")
    if grown:
        with pytest.raises(ValueError, match=f"of {size + 8} tokens, but its base has {size}: save the processor"):
            merge(str(tmp_path / "adapter"), str(tmp_path / "base"), tmp_path / "out")
        processor.save_pretrained(tmp_path / "adapter")
    merge(str(tmp_path / "adapter"), str(tmp_path / "base"), tmp_path / "out")
    merged, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert relative_error(image_logits(merged), image_logits(tuned)) <= 1e-5
    assert merged.config.tie_word_embeddings == (is_tied and not saved)
    assert merged.get_input_embeddings().num_embeddings == size + grown


def test_a_learned_prompt_is_refused(llama, tmp_path):
    model = MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="changes no weights: it cannot be merged"):
        merge(str(tmp_path / "adapter"), llama.checkpoint, tmp_path / "out")

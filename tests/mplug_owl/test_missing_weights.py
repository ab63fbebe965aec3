"""Weights that a folder lacks are an error, never random values, by every class and road."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from conftest import GoldenCase, tiny_config
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForImageTextToText

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlModel
from transformers_owl.mplug_owl.modeling_mplug_owl import MplugOwlVisionModel, MplugOwlVisualAbstractorModel


ROADS = [MplugOwlForConditionalGeneration, MplugOwlModel, AutoModel, AutoModelForImageTextToText]
VISUAL = [MplugOwlVisionModel, MplugOwlVisualAbstractorModel]
NAMES = ["image-llama", "image-bloom", "video-llama"]
REFUSED = r"(?s)lacks weights of the model.*transformers-owl convert --checkpoint .* makes a folder that loads"
KINDS = [
    "vision_model.encoder.layers.1.self_attn.query_key_value.bias",
    "abstractor.encoder.layers.0.crossattention.attention.key.weight",
    "abstractor.vit_eos",
    "vision_model.embeddings.position_embedding",
]
TEMPORAL = ["vision_model.encoder.layers.0.temporal.conv.weight", "abstractor.temporal_visual_fc.bias"]


def weights_of(name: str) -> dict[str, torch.Tensor]:
    files = sorted((GoldenCase(name).folder / "original_checkpoint").glob("*.bin"))
    return {key: value for file in files for key, value in torch.load(file).items()}


def by_class(road) -> str:
    return road.__name__


def release_without(name: str, gone: str, folder):
    weights = weights_of(name)
    gone = next(key for key in weights if key.endswith(gone))
    folder.mkdir()
    torch.save({key: value for key, value in weights.items() if key != gone}, folder / "pytorch_model.bin")
    shutil.copy(f"{GoldenCase(name).checkpoint}/config.json", folder)
    return folder


@pytest.mark.sampled(3)
@pytest.mark.parametrize("road", ROADS, ids=by_class)
@pytest.mark.parametrize("name", NAMES)
def test_a_release_that_lacks_one_weight_is_refused(name, road, tmp_path):
    language_model = {"image-bloom": "h.1.mlp.dense_h_to_4h.bias"}.get(name, "layers.1.mlp.up_proj.weight")
    kinds = [*KINDS, language_model, *(TEMPORAL if name == "video-llama" else [])]
    for number, gone in enumerate(kinds):
        folder = release_without(name, gone, tmp_path / str(number))
        with pytest.raises(ValueError, match=REFUSED):
            road.from_pretrained(folder)


@pytest.mark.parametrize("road", [*ROADS, *VISUAL], ids=by_class)
def test_a_folder_of_other_weights_is_refused(road, tmp_path):
    MplugOwlForConditionalGeneration(tiny_config()).save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    safetensors.torch.save_file(
        {f"other.{key}": value for key, value in weights.items()}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match=REFUSED):
        road.from_pretrained(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("road", ROADS[:2], ids=by_class)
def test_a_fine_tune_in_pefts_names_is_refused_before_it_is_read(road, shards, tmp_path):
    """As the original's Trainer saved it: no configuration lies beside it."""
    weights = {f"base_model.model.{key}": value for key, value in weights_of("image-llama").items()}
    if shards == 1:
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model-00001-of-00002.bin")}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"(?s)is a fine-tune .*transformers-owl convert --checkpoint .* --base"):
        road.from_pretrained(tmp_path)


@pytest.mark.parametrize("road", ROADS, ids=by_class)
def test_a_base_models_folder_gets_a_fresh_head_and_nothing_else(road, tmp_path):
    base = MplugOwlModel(tiny_config())
    base.save_pretrained(tmp_path)
    model = road.from_pretrained(tmp_path)
    model = getattr(model, "model", model)
    assert all(torch.equal(value, base.state_dict()[key]) for key, value in model.state_dict().items())


SEES_VIDEOS = {"vision_config": {"use_temporal": True}, "visual_abstractor_config": {"use_temporal": True}}


@pytest.mark.parametrize("road", ROADS[:2], ids=by_class)
def test_temporal_parts_are_fresh_where_they_are_asked_for(road, tmp_path):
    image_model = MplugOwlForConditionalGeneration(tiny_config())
    image_model.save_pretrained(tmp_path)
    _, info = road.from_pretrained(tmp_path, **SEES_VIDEOS, output_loading_info=True)
    assert all("temporal" in name for name in info["missing_keys"]) and len(info["missing_keys"]) > 8
    config = json.loads((tmp_path / "config.json").read_text())
    for part, fields in SEES_VIDEOS.items():
        config[part] |= fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=REFUSED):
        road.from_pretrained(tmp_path)


@pytest.mark.parametrize("road", VISUAL, ids=by_class)
def test_a_part_of_a_whole_model_is_loaded_by_the_whole_alone(road):
    """The part's own names are others, so it would be random."""
    with pytest.raises((ValueError, RuntimeError)):
        road.from_pretrained(GoldenCase("image-llama").checkpoint)


@pytest.mark.parametrize("road", [ROADS[0], *ROADS[2:]], ids=by_class)
def test_an_adapter_over_a_base_that_lacks_weights_is_refused(road, tmp_path):
    base = release_without("image-llama", KINDS[0], tmp_path / "base")
    whole = MplugOwlForConditionalGeneration.from_pretrained(GoldenCase("image-llama").checkpoint)
    model = get_peft_model(whole, LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj"))
    model.save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(base)
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=REFUSED):
        road.from_pretrained(str(tmp_path / "adapter"))

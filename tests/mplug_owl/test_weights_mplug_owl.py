"""Checkpoints of the original release load as they are, in every file form, and ours load through every road."""

import json
import os
import shutil
from pathlib import Path

import accelerate
import pytest
import safetensors.torch
import torch
from conftest import GoldenCase, tiny_config
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments
from transformers.core_model_loading import revert_weight_conversion

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlModel
from transformers_owl.mplug_owl.tokenization_mplug_owl import MplugOwlTokenizer


def original_weights(case: GoldenCase) -> dict[str, torch.Tensor]:
    files = sorted(Path(case.checkpoint).glob("*.bin"))
    return {key: value for file in files for key, value in torch.load(file).items()}


def write_shards(weights, folder, names, write):
    keys = list(weights)
    shards = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
    for name, shard in zip(names, shards, strict=True):
        write({key: weights[key].clone() for key in shard}, folder / name)
    index = {
        "metadata": {},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    return json.dumps(index)


def as_safetensors(weights, folder):
    safetensors.torch.save_file({key: value.clone() for key, value in weights.items()}, folder / "model.safetensors")


def as_bin(weights, folder):
    torch.save(weights, folder / "pytorch_model.bin")


def as_old_bin(weights, folder):
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def as_bin_shards(weights, folder):
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    (folder / "pytorch_model.bin.index.json").write_text(write_shards(weights, folder, names, torch.save))


def as_safetensors_shards(weights, folder):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = write_shards(weights, folder, names, safetensors.torch.save_file)
    (folder / "model.safetensors.index.json").write_text(index)


@pytest.mark.parametrize("write", [as_safetensors, as_bin, as_old_bin, as_bin_shards, as_safetensors_shards])
@pytest.mark.parametrize("name", ["image-llama", "image-bloom", "video-llama"])
def test_every_file_form_of_a_release_loads(tmp_path, name, write):
    case = GoldenCase(name)
    write(original_weights(case), tmp_path)
    shutil.copy(f"{case.checkpoint}/config.json", tmp_path)
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    expected = AutoModel.from_pretrained(case.checkpoint).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("name", ["image-llama", "image-bloom", "video-llama"])
def test_the_base_model_of_a_release_reports_nothing(name):
    """Its head is none of the base model's."""
    whole = AutoModel.from_pretrained(GoldenCase(name).checkpoint)
    base, info = MplugOwlModel.from_pretrained(GoldenCase(name).checkpoint, output_loading_info=True)
    assert not any(info.values())
    assert_equal_weights(whole.model, base)


@pytest.mark.parametrize("name", ["image-llama", "image-bloom", "video-llama"])
def test_the_table_leads_back_to_the_original(name):
    case = GoldenCase(name)
    model = AutoModel.from_pretrained(case.checkpoint)
    theirs = revert_weight_conversion(model, model.state_dict())
    original = {key: value for key, value in original_weights(case).items() if "inv_freq" not in key}
    assert theirs.keys() == original.keys()
    for key, value in theirs.items():
        assert torch.equal(value, original[key]), key


def test_a_configuration_given_by_hand_is_corrected_by_the_weights():
    case = GoldenCase("video-llama")
    config = AutoModel.from_pretrained(case.checkpoint).config
    config.vision_config.use_temporal = config.visual_abstractor_config.use_temporal = False
    config.visual_abstractor_config.intermediate_size = 4096
    model, info = MplugOwlForConditionalGeneration.from_pretrained(
        case.checkpoint, config=config, output_loading_info=True
    )
    assert not any(info.values())
    assert not config.sees_videos
    assert model.config.sees_videos


def test_model_and_tokenizer_of_an_original_folder_agree_on_the_placeholders(llama, tmp_path):
    """Bloom's tokenizer has fewer entries than the model has rows: its ids lie inside the vocabulary."""
    shutil.copytree(GoldenCase("image-bloom").checkpoint, tmp_path, dirs_exist_ok=True)
    small = MplugOwlTokenizer.from_pretrained(llama.checkpoint)
    state = json.loads(small.backend_tokenizer.to_str())
    gone = {token for token, index in state["model"]["vocab"].items() if index >= 990}
    state["model"]["vocab"] = {token: index for token, index in state["model"]["vocab"].items() if token not in gone}
    state["model"]["merges"] = [
        merge for merge in state["model"]["merges"] if gone.isdisjoint({*merge, "".join(merge)})
    ]
    state |= {"added_tokens": state["added_tokens"][:3], "normalizer": None, "pre_tokenizer": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    settings = {"tokenizer_class": "BloomTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    model = AutoModel.from_pretrained(tmp_path)
    tokenizer = MplugOwlTokenizer.from_pretrained(tmp_path)
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>") == 990
    assert model.config.video_token_id == tokenizer.convert_tokens_to_ids("<|video|>") == 991
    assert model.generation_config.suppress_tokens == [990, 991]


def test_generation_settings_of_a_release_never_take_effect(llama, tmp_path):
    """They say sampling; the original decoded greedily all the same. Settings saved by us are kept."""
    assert json.loads((llama.folder / "original_checkpoint/generation_config.json").read_text())["do_sample"]
    model = AutoModel.from_pretrained(llama.checkpoint)
    settings = model.generation_config
    assert (settings.do_sample, settings.max_new_tokens, settings.max_length) == (False, 512, None)
    settings.update(do_sample=True, top_k=7, max_new_tokens=9)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).generation_config
    assert (again.do_sample, again.top_k, again.max_new_tokens) == (True, 7, 9)


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["TARGET"],)


def test_a_malicious_pickle_is_refused_without_running(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("TARGET", str(tmp_path / "ran"))
    torch.save({"query_tokens": Malicious()}, tmp_path / "pytorch_model.bin")
    shutil.copy(f"{llama.checkpoint}/config.json", tmp_path)
    with pytest.raises(ValueError, match="holds code, which was not run"):
        AutoModel.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def assert_equal_weights(model, expected):
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.fixture
def video_model():
    torch.manual_seed(0)
    return MplugOwlForConditionalGeneration(tiny_config(vision_config={"use_temporal": True}))


def test_our_files_load_by_load_state_dict(video_model, tmp_path):
    video_model.save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    other = MplugOwlForConditionalGeneration(video_model.config)
    assert other.load_state_dict(weights) == ([], [])
    assert_equal_weights(other, video_model)


def test_a_loaded_release_is_saved_in_our_form(tmp_path):
    """Loaded through the table, saved without it."""
    model = AutoModel.from_pretrained(GoldenCase("video-llama").checkpoint)
    model.save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()


@pytest.mark.slow
def test_our_files_load_by_accelerate(video_model, tmp_path):
    video_model.save_pretrained(tmp_path, max_shard_size="50KB")
    with accelerate.init_empty_weights():
        other = MplugOwlForConditionalGeneration(video_model.config)
    other = accelerate.load_checkpoint_and_dispatch(other, tmp_path, device_map={"": "cpu"})
    assert_equal_weights(other, video_model)


def test_the_trainer_resumes_from_our_files(video_model, tmp_path):
    row = {"input_ids": torch.arange(3, 13), "labels": torch.arange(3, 13)}
    options = {
        "report_to": [],
        "save_steps": 2,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 1,
        "use_cpu": True,
    }

    def train(model, steps, **kwargs):
        arguments = TrainingArguments(
            tmp_path, max_steps=steps, disable_tqdm=True, lr_scheduler_type="constant", **options
        )
        Trainer(model, arguments, train_dataset=[row] * 8).train(**kwargs)

    train(video_model, 3)
    torch.manual_seed(5)
    other = MplugOwlForConditionalGeneration(video_model.config)
    train(other, 3, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal_weights(other, video_model)


@pytest.mark.parametrize("name", ["image-llama", "image-bloom", "video-llama"])
def test_a_folder_with_a_converted_and_an_original_file_loads_the_converted_one(name, tmp_path):
    model = AutoModel.from_pretrained(GoldenCase(name).checkpoint)
    model.model.abstractor.vit_eos.data.add_(1)
    model.save_pretrained(tmp_path)
    torch.save(original_weights(GoldenCase(name)), tmp_path / "pytorch_model.bin")
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_equal_weights(again, model)


@pytest.mark.parametrize("road", [AutoModel, MplugOwlModel], ids=lambda road: road.__name__)
@pytest.mark.parametrize("size", ["50GB", "300KB"])
@pytest.mark.parametrize("name", ["image-llama", "image-bloom", "video-llama"])
def test_our_weights_beside_a_releases_settings_are_read_as_a_release(name, size, road, tmp_path):
    """Its configuration does not say what sees videos and states a wrong width; its sampling never took effect."""
    release = GoldenCase(name).checkpoint
    model = AutoModel.from_pretrained(release)
    model.save_pretrained(tmp_path, max_shard_size=size)
    config = json.loads(Path(release, "config.json").read_text())
    config["visual_abstractor_config"]["intermediate_size"] = 4096
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(f"{GoldenCase('image-llama').checkpoint}/generation_config.json", tmp_path)
    again, info = road.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_equal_weights(again, model if road is AutoModel else model.model)
    assert again.config.sees_videos == (name == "video-llama")
    if road is AutoModel:
        assert again.generation_config.to_dict() == model.generation_config.to_dict()


@pytest.mark.parametrize("use_temporal", [False, True])
def test_a_release_of_other_sizes_loads(llama, images, tmp_path, use_temporal):
    """Other numbers of queries, heads and patches, a width stated wrongly, in a folder as the original wrote it."""
    torch.manual_seed(0)
    vision = {"num_attention_heads": 8, "image_size": 42, "use_temporal": use_temporal}
    base = tiny_config({"vocab_size": 1000, "num_attention_heads": 8}, vision_config=vision)
    config = base.to_dict() | {"num_query_tokens": 16}
    model = MplugOwlForConditionalGeneration(type(base).from_dict(config)).eval()
    model.save_pretrained(tmp_path, save_original_format=True)
    for path in tmp_path.iterdir():
        if path.suffix == ".py" or path.name == "generation_config.json":
            path.unlink()
    written = json.loads((tmp_path / "config.json").read_text())
    original = {key: written[key] for key in ("text_config", "vision_config", "num_query_tokens", "architectures")}
    original |= {"model_type": "mplug_owl", "transformers_version": "4.28.1"}
    original["visual_abstractor_config"] = {**written["visual_abstractor_config"], "intermediate_size": 4096}
    original["vision_config"].pop("use_temporal")
    (tmp_path / "config.json").write_text(json.dumps(original))
    for name in ("tokenizer.model", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(f"{llama.checkpoint}/{name}", tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    inputs = AutoProcessor.from_pretrained(tmp_path)(text="A <image> b", images=images[0], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 42, 42)
    assert (inputs["input_ids"] == loaded.config.image_token_id).sum() == 17
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.config.sees_videos == use_temporal
    assert loaded.generation_config.max_new_tokens == 512

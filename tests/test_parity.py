"""Agreement with what the original code printed, in float32 on CPU: the ground everything else stands on."""

import json

import pytest
import torch
from conftest import GOLDEN, GoldenCase, relative_error
from transformers import AutoModel, AutoProcessor

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration
from transformers_owl.mplug_owl.weights_mplug_owl import read_original


IMAGE_PROMPTS = [(name, prompt) for name in ("image-llama", "image-bloom") for prompt in GoldenCase(name).prompts]
VIDEO_PROMPTS = ["one_video", "image_and_video"]


@pytest.fixture(scope="module", params=["original", "saved twice"])
def load(request, tmp_path_factory):
    """The model of a golden folder: loaded as the original saved it, and after two round trips through our format."""
    models = {}

    def load(name):
        if name not in models:
            model = AutoModel.from_pretrained(GoldenCase(name).checkpoint)
            for _ in range(0 if request.param == "original" else 2):
                folder = tmp_path_factory.mktemp("saved")
                model.save_pretrained(folder)
                model = AutoModel.from_pretrained(folder)
            models[name] = model
        return models[name]

    return load


def with_our_ids(ids: torch.Tensor, config: MplugOwlConfig) -> torch.Tensor:
    return ids.masked_fill(ids == -1, config.image_token_id).masked_fill(ids == -2, config.video_token_id)


@pytest.mark.parametrize("times_saved", [0, 1, 2])
@pytest.mark.parametrize("prompt", [prompt for name, prompt in IMAGE_PROMPTS if name == "image-llama"])
def test_processor_gives_the_original_ids_and_pixels(llama, prompt, times_saved, tmp_path):
    processor = AutoProcessor.from_pretrained(llama.checkpoint)
    for number in range(times_saved):
        processor.save_pretrained(tmp_path / str(number))
        processor = AutoProcessor.from_pretrained(tmp_path / str(number))
    inputs = processor(text=[llama.prompts[prompt]["text"]], images=llama.images(prompt) or None, return_tensors="pt")
    expected = llama.expected
    ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == processor.image_token_id, -1)
    assert ids.tolist() == expected[f"{prompt}/input_ids"].tolist()
    if f"{prompt}/pixel_values" in expected:
        assert (inputs["pixel_values"] - expected[f"{prompt}/pixel_values"]).abs().max() <= 1e-6
    else:
        assert "pixel_values" not in inputs


@pytest.mark.parametrize(("name", "prompt"), IMAGE_PROMPTS)
def test_image_models_compute_what_the_original_did(load, name, prompt):
    case, model = GoldenCase(name), load(name)
    expected = {key.partition("/")[2]: value for key, value in case.expected.items() if key.startswith(prompt + "/")}
    media = {"pixel_values": expected["pixel_values"]} if "pixel_values" in expected else {}
    ids = with_our_ids(expected["train_input_ids"], model.config)
    labels = torch.full_like(ids, -100)
    labels[:, -3:] = ids[:, -3:]
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels, **media)
    assert output.logits.shape == expected["train_logits"].shape
    assert relative_error(output.logits, expected["train_logits"]) <= 1e-5
    assert abs(output.loss - expected["train_loss"]) <= 1e-5
    if media:
        with torch.no_grad():
            features = model.get_image_features(**media)
            vision = model.model.vision_model(**media)
        assert relative_error(features.pooler_output, expected["abstractor_last_hidden_state"]) <= 1e-5
        assert relative_error(features.last_hidden_state, expected["vision_last_hidden_state"]) <= 1e-5
        assert relative_error(vision.last_hidden_state, expected["vision_last_hidden_state"]) <= 1e-5


@pytest.mark.parametrize(("name", "prompt"), IMAGE_PROMPTS)
def test_image_models_write_what_the_original_wrote(load, name, prompt):
    case, model = GoldenCase(name), load(name)
    expected = case.expected
    ids = with_our_ids(expected[f"{prompt}/input_ids"], model.config)
    media = {"pixel_values": expected[f"{prompt}/pixel_values"]} if f"{prompt}/pixel_values" in expected else {}
    for kind, options in (
        ("greedy", {"max_new_tokens": 24}),
        ("beam3", {"max_new_tokens": 16, "num_beams": 3}),
    ):
        written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **media, **options)
        assert written[:, ids.shape[1] :].tolist() == expected[f"{prompt}/{kind}_new_tokens"].tolist()


@pytest.mark.parametrize("prompt", VIDEO_PROMPTS)
def test_video_models_agree_with_the_original(load, prompt):
    case, model = GoldenCase("video-llama"), load("video-llama")
    expected = {key.partition("/")[2]: value for key, value in case.expected.items() if key.startswith(prompt + "/")}
    ids = with_our_ids(expected["input_ids"], model.config)
    media = {"pixel_values_videos": expected["video_pixel_values"].permute(0, 2, 1, 3, 4)}
    if "pixel_values" in expected:
        media["pixel_values"] = expected["pixel_values"]
    with torch.no_grad():
        video = model.get_video_features(media["pixel_values_videos"])
        logits = model(input_ids=ids, **media).logits
    is_video = expected["input_ids"][0] == -2
    assert relative_error(video.last_hidden_state, expected["video_last_hidden_state"]) <= 1e-5
    assert relative_error(video.pooler_output[0], expected["inputs_embeds"][0, is_video]) <= 1e-5
    assert relative_error(logits, expected["prefill_logits"]) <= 1e-5
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, **media)
    assert written[:, ids.shape[1] :].tolist() == expected["greedy_new_tokens"].tolist()


def full_size_config(name: str) -> MplugOwlConfig:
    """The configuration of a release, as its config.json states it and its weights correct it."""
    text = {"model_type": "llama", "vocab_size": 32000}
    if "bloomz" in name:
        text = {"model_type": "bloom", "vocab_size": 250880, "hidden_size": 4096, "n_layer": 30, "n_head": 32}
    return MplugOwlConfig(vision_config={"use_temporal": "video" in name}, text_config=text)


@pytest.mark.parametrize("name", ["mplug-owl-llama-7b", "mplug-owl-bloomz-7b-multilingual", "mplug-owl-llama-7b-video"])
def test_every_key_of_the_full_size_releases_has_its_place(name):
    """The library loads names and shapes of the real release into our model, all on the meta device."""
    shapes = json.loads((GOLDEN / "keys" / f"{name}.json").read_text())
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = full_size_config(name)
    model, info = MplugOwlForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, device_map="meta", output_loading_info=True
    )
    assert {key: value for key, value in info.items() if value} == {}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    given = sum(value.numel() for key, value in weights.items() if "inv_freq" not in key)
    assert sum(parameter.numel() for parameter in model.parameters()) == given


@pytest.mark.parametrize(
    ("name", "is_video", "width"), [("image-llama", False, 96), ("image-bloom", False, 96), ("video-llama", True, 256)]
)
def test_the_weights_decide_what_the_original_config_leaves_open(name, is_video, width):
    fields = read_original(GoldenCase(name).checkpoint)
    assert fields["vision_config"] == {"use_temporal": is_video}
    assert fields["visual_abstractor_config"] == {"intermediate_size": width, "use_temporal": is_video}


@pytest.mark.parametrize("name", ["image-llama", "image-bloom", "video-llama"])
def test_direct_loading_leaves_no_key_over(name):
    _, info = AutoModel.from_pretrained(GoldenCase(name).checkpoint, output_loading_info=True)
    assert {key: value for key, value in info.items() if value} == {}

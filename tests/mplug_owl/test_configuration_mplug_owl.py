"""Configurations: the released ones are understood, nonsense is refused."""

import json

import pytest
from conftest import tiny_config
from transformers import AutoConfig, BloomConfig, Gemma3Config

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration


def test_defaults_are_the_released_llama_7b():
    config = MplugOwlConfig()
    vision, abstractor, text = config.vision_config, config.visual_abstractor_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (1024, 24, 224, 14)
    assert (abstractor.num_hidden_layers, abstractor.intermediate_size, config.num_query_tokens) == (6, 2816, 64)
    assert (text.model_type, text.hidden_size, text.vocab_size) == ("llama", 4096, 32000)
    assert (config.image_token_id, config.video_token_id) == (32000, 32001)


@pytest.mark.parametrize("spelling", ["mplug-owl", "mplug_owl"])
def test_both_spellings_of_the_model_type_give_the_same_configuration(llama, tmp_path, spelling):
    original = json.loads((llama.folder / "original_checkpoint/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**original, "model_type": spelling}))
    for config in (AutoConfig.from_pretrained(tmp_path), MplugOwlConfig.from_pretrained(tmp_path)):
        assert type(config) is MplugOwlConfig
        assert config.to_dict()["model_type"] == "mplug-owl"
        assert config.text_config.hidden_size == 48


def test_copies_of_the_text_models_fields_are_dropped():
    """The video release repeats the text model's fields at the top, Bloom's attribute names among them."""
    original = {"model_type": "mplug-owl", "vocab_size": 7, "num_attention_heads": "n_head", "text_config": {}}
    config = MplugOwlConfig.from_dict(original)
    assert {"vocab_size", "num_attention_heads"}.isdisjoint(config.to_dict())


def test_eos_as_padding_id_is_not_kept(llama):
    """As padding id, EOS would get no gradient in its embedding."""
    assert (
        json.loads((llama.folder / "original_checkpoint/config.json").read_text())["text_config"]["pad_token_id"] == 2
    )
    assert AutoConfig.from_pretrained(llama.checkpoint).text_config.pad_token_id is None
    assert tiny_config({"pad_token_id": 0}).text_config.pad_token_id == 0


def test_a_saved_configuration_is_read_back_equal(tmp_path):
    config = tiny_config(vision_config={"use_temporal": True}, image_token_id=5, video_token_id=9)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    assert MplugOwlConfig.from_pretrained(tmp_path).visual_abstractor_config.use_temporal


def test_a_multimodal_model_is_no_language_model():
    with pytest.raises(ValueError, match=r"`gemma3` cannot be the language model: .*several models \(.*text_config"):
        MplugOwlConfig(text_config=Gemma3Config())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_token_id": 5, "video_token_id": 5}, "different and not negative"),
        ({"image_token_id": -1}, "different and not negative"),
    ],
)
def test_values_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MplugOwlConfig(**kwargs)


def test_bloom_ties_its_head_whatever_the_top_level_says():
    config = MplugOwlConfig(text_config=BloomConfig(hidden_size=64), tie_word_embeddings=False)
    assert config.tie_word_embeddings


def test_several_ends_of_an_answer_and_no_padding_as_in_llama_3():
    config = tiny_config(text_config={"eos_token_id": [2, 5], "pad_token_id": None})
    settings = MplugOwlForConditionalGeneration(config).generation_config
    assert (settings.eos_token_id, settings.pad_token_id) == ([2, 5], 2)
    assert tiny_config(text_config={"eos_token_id": [2, 5], "pad_token_id": 5}).text_config.pad_token_id is None


@pytest.mark.parametrize("part", ["text_config", "vision_config", "visual_abstractor_config"])
def test_the_callers_configurations_stay_as_they_are(part):
    base = tiny_config(text_config={"eos_token_id": 2, "pad_token_id": 0})
    given = getattr(base, part)
    given.use_temporal, given.pad_token_id = False, 2
    before = given.to_dict()
    parts = {name: getattr(base, name) for name in base.sub_configs}
    config = MplugOwlConfig(**parts, num_query_tokens=7)
    assert given.to_dict() == before
    assert getattr(config, part) is not given

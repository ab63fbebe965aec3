"""The model as a citizen of the library: language models of many kinds, outputs, memory, caches, devices, errors."""

import logging

import accelerate
import pytest
import torch
from conftest import relative_error, tiny_config
from transformers import AutoModelForCausalLM, LlamaConfig

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration, MplugOwlModel
from transformers_owl.mplug_owl.library_mplug_owl import CACHE_NAME


SIZES = {"vocab_size": 100, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {**SIZES, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LANGUAGE_MODELS = {
    "llama": {"model_type": "llama", **LLAMA},
    "smollm2": {"model_type": "llama", **LLAMA, "tie_word_embeddings": True},
    "bloom": {"model_type": "bloom", **SIZES, "n_layer": 2, "n_head": 4},
    "qwen2": {"model_type": "qwen2", **LLAMA},
    "qwen3": {"model_type": "qwen3", **LLAMA, "head_dim": 8, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **LLAMA, "sliding_window": 16},
    "opt": {
        "model_type": "opt", **SIZES, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "gpt_neox": {
        "model_type": "gpt_neox", **SIZES, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    },
}  # fmt: skip


def build(name="llama", **kwargs) -> MplugOwlForConditionalGeneration:
    torch.manual_seed(0)
    base = tiny_config(**kwargs)
    config = MplugOwlConfig(**{**base.to_dict(), "text_config": LANGUAGE_MODELS[name]})
    return MplugOwlForConditionalGeneration(config).eval()


def example(model, rows=2):
    """Ids with an image of five positions in every row, and the images."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (rows, 14), generator=generator)
    ids[:, 3:8] = model.config.image_token_id
    return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, 28, 28, generator=generator)}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_text_gives_the_logits_of_the_language_model_alone(name):
    model = build(name)
    alone = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    weights = model.model.language_model.state_dict()
    if name == "bloom":
        weights |= {f"word_embeddings_layernorm.{k}": v for k, v in model.model.embedding_norm.state_dict().items()}
    getattr(alone, alone.base_model_prefix).load_state_dict(weights)
    alone.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    ids = torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert relative_error(model(input_ids=ids).logits, alone(input_ids=ids).logits) <= 1e-6


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_images_change_the_answer_and_the_cache_does_not(name):
    model = build(name)
    inputs = example(model)
    with torch.no_grad():
        logits = model(**inputs).logits
        other = model(**{**inputs, "pixel_values": -inputs["pixel_values"]}).logits
        assert relative_error(other[:, 8:], logits[:, 8:]) > 1e-5
        start = model(input_ids=inputs["input_ids"][:, :10], pixel_values=inputs["pixel_values"], use_cache=True)
        rest = model(input_ids=inputs["input_ids"][:, 10:], past_key_values=start.past_key_values)
    assert relative_error(torch.cat([start.logits, rest.logits], dim=1), logits) <= 1e-5


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_saved_model_comes_back_through_every_language_model(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    again, info = MplugOwlForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize("name", ["smollm2", "bloom", "qwen3"])
def test_tied_heads_are_one_tensor(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    for each in (model, MplugOwlForConditionalGeneration.from_pretrained(tmp_path)):
        assert each.lm_head.weight is each.get_input_embeddings().weight


def test_sdpa_equals_eager():
    model = build()
    inputs = example(model)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        eager = model(**inputs).logits
        model.set_attn_implementation("sdpa")
        assert relative_error(model(**inputs).logits, eager) <= 1e-5


def test_hidden_states_and_attentions_are_recorded_of_every_part():
    model = build(vision_config={"use_temporal": True})
    model.set_attn_implementation("eager")
    inputs = example(model)
    with torch.no_grad():
        seen = model.get_image_features(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        video = model.get_video_features(torch.randn(1, 3, 3, 28, 28), output_attentions=True)
    assert [tuple(state.shape) for state in seen.hidden_states] == [(2, 5, 32)] * 3
    assert [tuple(weights.shape) for weights in seen.attentions] == [(2, 4, 5, 5)] * 2
    assert [tuple(state.shape) for state in seen.abstractor_hidden_states] == [(2, 4, 32)] * 3
    assert [tuple(weights.shape) for weights in seen.abstractor_attentions] == [(2, 4, 4, 4 + 5)] * 2
    assert [tuple(weights.shape) for weights in video.abstractor_attentions] == [(1, 4, 8, 8 + 3 * 5)] * 2
    for weights in (*seen.attentions, *seen.abstractor_attentions):
        assert torch.allclose(weights.sum(-1), torch.ones(()))
    assert (len(output.hidden_states), len(output.attentions)) == (3, 2)
    assert torch.equal(output.image_hidden_states, seen.pooler_output)


def test_activation_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = build(vision_config={"use_temporal": True})
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        for layer in model.model.abstractor.layers:
            layer.cross_attn.dropout.p = 0.0
        inputs = example(model)
        inputs["input_ids"][0, 3:8] = model.config.video_token_id
        videos = torch.randn(1, 2, 3, 28, 28, generator=torch.Generator().manual_seed(3))
        model(
            input_ids=inputs["input_ids"],
            pixel_values=inputs["pixel_values"][1:],
            pixel_values_videos=videos,
            labels=inputs["input_ids"],
        ).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_labels_at_images_carry_no_loss():
    model = build()
    inputs = example(model)
    masked = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    with torch.no_grad():
        careless = model(**inputs, labels=inputs["input_ids"]).loss
        careful = model(**inputs, labels=masked).loss
    assert careless == careful


def test_logits_to_keep():
    model = build()
    inputs = example(model)
    with torch.no_grad():
        everything = model(**inputs).logits
        assert torch.allclose(model(**inputs, logits_to_keep=2).logits, everything[:, -2:], atol=1e-6)
        assert everything.shape == (2, 14, 100)


def test_ids_inside_the_vocabulary_place_images_by_embeddings_alone():
    model = build(image_token_id=97, video_token_id=98)
    inputs = example(model)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with torch.no_grad():
        by_ids = model(**inputs).logits
        by_embeddings = model(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"]).logits
    assert torch.equal(by_ids, by_embeddings)
    greedy = model.generate(**inputs, max_new_tokens=4)
    written = model.generate(
        inputs_embeds=embeddings, pixel_values=inputs["pixel_values"], max_new_tokens=4, num_beams=1
    )
    assert written[:, -4:].tolist() == greedy[:, -4:].tolist()


@pytest.mark.parametrize("name", ["llama", "bloom", "mistral"])
@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_caches_write_the_same(name, cache):
    model = build(name)
    inputs = example(model)
    without = model.generate(**inputs, max_new_tokens=6, use_cache=False)
    assert model.generate(**inputs, max_new_tokens=6, cache_implementation=cache).tolist() == without.tolist()


def test_prompt_lookup_writes_the_same():
    model = build()
    inputs = example(model, rows=1)
    greedy = model.generate(**inputs, max_new_tokens=8)
    assert model.generate(**inputs, max_new_tokens=8, prompt_lookup_num_tokens=3).tolist() == greedy.tolist()


def test_placeholders_are_never_written():
    """Ids inside the vocabulary could be chosen; the generation settings forbid it."""
    model = build(image_token_id=97, video_token_id=98)
    with torch.no_grad():
        model.lm_head.weight[97:99] = 5 * model.lm_head.weight[50:51]
    ids = torch.randint(3, 90, (1, 6))
    assert {97, 98}.isdisjoint(model.generate(input_ids=ids, max_new_tokens=20)[0].tolist())


def test_the_whole_model_compiles_without_a_graph_break():
    model = build()
    inputs = example(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert relative_error(compiled(**inputs).logits, model(**inputs).logits) <= 1e-6


def test_parts_on_disk_answer_the_same(tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "model")
    device_map = {
        "model.vision_model": "cpu",
        "model.abstractor": "disk",
        "model.language_model": "disk",
        "lm_head": "cpu",
    }
    device_map["model.embedding_norm"] = "cpu"
    split = MplugOwlForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    inputs = example(model)
    assert split.generate(**inputs, max_new_tokens=4).tolist() == model.generate(**inputs, max_new_tokens=4).tolist()


def test_an_automatic_device_map_divides_no_layer_and_not_the_abstractor():
    """Its queries are parameters of its own, beside the layers."""
    model = build()
    sizes = accelerate.utils.compute_module_sizes(model)
    divided = False
    for share in (0.4, 0.6, 0.8, 0.95):
        memory = {0: int(share * sizes[""]), "cpu": 10**12}
        device_map = accelerate.infer_auto_device_map(
            model, memory, no_split_module_classes=list(model._no_split_modules)
        )
        divided |= set(device_map.values()) == {0, "cpu"}
        for name in device_map:
            assert not name.startswith("model.abstractor.")
            assert not name.startswith("model.vision_model.embeddings.")
    assert divided


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_float32_pixels(dtype):
    model = build()
    inputs = example(model)
    with torch.no_grad():
        expected = model(**inputs).logits
        logits = model.to(dtype)(**inputs).logits
    assert logits.dtype == dtype
    assert relative_error(logits, expected) <= 0.05


def test_plans_name_modules_that_exist():
    model = build()
    names = {name for name, _ in model.named_modules()}
    generic = {name.replace("layers.0.", "layers.*.").replace("layers.0", "layers.*") for name in names}
    assert set(model.tp_plan) <= generic | {"lm_head"}
    assert {"model.vision_model.layers.*.self_attn.q_proj", "model.abstractor.layers.*.cross_attn.out_proj"} <= set(
        model.tp_plan
    )
    for part in (model.config.vision_config, model.config.visual_abstractor_config):
        prefix = "model.vision_model." if part is model.config.vision_config else "model.abstractor."
        assert {prefix + name for name in part.base_model_fsdp_plan} <= generic


def test_fresh_queries_differ_from_each_other():
    """The release started them at zero, where only dropout tells them apart."""
    queries = build().model.abstractor.query_tokens[0]
    assert torch.pdist(queries).min() > 1e-3


def test_image_models_have_no_video_parameter():
    assert not [name for name, _ in build().named_parameters() if "temporal" in name]
    video = build(vision_config={"use_temporal": True})
    assert len([name for name, _ in video.named_parameters() if "temporal" in name]) == 2 * 8 + 3


def test_base_model_and_head_model_load_each_other(tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "head")
    base, info = MplugOwlModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not any(info.values())
    inputs = example(model)
    with torch.no_grad():
        expected = model.model(**inputs).last_hidden_state
        assert torch.equal(base(**inputs).last_hidden_state, expected)
        base.save_pretrained(tmp_path / "base")
        head, info = MplugOwlForConditionalGeneration.from_pretrained(tmp_path / "base", output_loading_info=True)
        assert info["missing_keys"] == {"lm_head.weight"} and not info["unexpected_keys"]
        assert torch.equal(head.model(**inputs).last_hidden_state, expected)


def test_greedy_up_to_512_new_tokens_is_the_default():
    settings = build().generation_config
    assert (settings.do_sample, settings.max_new_tokens, settings.eos_token_id) == (False, 512, 2)


MISTAKES = {
    "too few images": (lambda i: {**i, "pixel_values": i["pixel_values"][:1]}, "10 image positions.*need 5"),
    "too many images": (
        lambda i: {**i, "pixel_values": torch.cat([i["pixel_values"]] * 2)},
        "10 image positions.*need 20",
    ),
    "no image": (lambda i: {"input_ids": i["input_ids"]}, "positions of images, but no image was given"),
    "wrong size": (lambda i: {**i, "pixel_values": torch.randn(2, 3, 28, 29)}, r"shape \(2, 3, 28, 29\)"),
    "one image without a batch": (lambda i: {**i, "pixel_values": torch.randn(3, 28, 28)}, r"shape \(3, 28, 28\)"),
    "integer pixels": (
        lambda i: {**i, "pixel_values": torch.zeros(2, 3, 28, 28, dtype=torch.uint8)},
        "dtype torch.uint8",
    ),
    "no images": (lambda i: {**i, "pixel_values": i["pixel_values"][:0]}, r"shape \(0, 3, 28, 28\)"),
    "a mask of another length": (
        lambda i: {**i, "attention_mask": torch.ones(2, 13)},
        r"attention_mask has shape \(2, 13\), but must have shape \(2, 14\)",
    ),
    "positions of another length": (
        lambda i: {**i, "position_ids": torch.arange(13)[None]},
        r"position_ids have shape \(1, 13\)",
    ),
    "negative logits_to_keep": (lambda i: {**i, "logits_to_keep": -1}, "logits_to_keep is -1, but must be 0"),
    "ids and embeddings": (lambda i: {**i, "inputs_embeds": torch.randn(2, 14, 32)}, "exactly one of"),
    "nothing": (lambda i: {}, "exactly one of"),
    "embeddings alone": (
        lambda i: {"inputs_embeds": torch.randn(2, 14, 32), "pixel_values": i["pixel_values"]},
        "outside the language model's vocabulary",
    ),
    "a video for an image model": (
        lambda i: {
            "input_ids": i["input_ids"].masked_fill(i["input_ids"] == 100, 101),
            "pixel_values_videos": torch.randn(2, 2, 3, 28, 28),
        },
        "image model and takes no videos",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    model = build()
    spoil, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        model(**spoil(example(model)))


# What torch names by itself.
REFUSED = {
    "float ids": lambda i: {**i, "input_ids": i["input_ids"].float()},
    "ids without a batch": lambda i: {**i, "input_ids": i["input_ids"][0]},
    "a list of ids": lambda i: {**i, "input_ids": i["input_ids"].tolist()},
    "negative ids": lambda i: {**i, "input_ids": i["input_ids"].masked_fill(i["input_ids"] == 100, -1)},
    "ids of another tokenizer": lambda i: {**i, "input_ids": i["input_ids"] + 100},
    "narrow embeddings": lambda i: {"inputs_embeds": torch.randn(2, 14, 31)},
    "labels of another length": lambda i: {**i, "labels": i["input_ids"][:, 1:]},
    "labels of another tokenizer": lambda i: {**i, "labels": i["input_ids"] + 900},
    "an image of another size": lambda i: {**i, "pixel_values": torch.randn(2, 3, 29, 28)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_an_error(name):
    model = build()
    model(**example(model))
    with pytest.raises((AttributeError, IndexError, RuntimeError, TypeError, ValueError)):
        model(**REFUSED[name](example(model)))


def test_more_positions_than_the_language_model_holds_log_a_warning(caplog):
    model = build()
    model.model.context_length = 16
    model(input_ids=torch.ones(1, 16, dtype=torch.long))
    assert "positions were given" not in caplog.text
    logging.getLogger("transformers").addHandler(caplog.handler)
    model(input_ids=torch.ones(1, 17, dtype=torch.long))
    assert "The input has 17 positions, but the language model's context length is 16" in caplog.text


def test_placeholders_without_pixels_are_text_only_inside_the_vocabulary(caplog):
    model = build(image_token_id=3, video_token_id=4)
    logging.getLogger("transformers").addHandler(caplog.handler)
    ids = torch.tensor([[5, 3, 3, 3, 3, 3, 6]])
    with torch.no_grad():
        expected = model.model.language_model(ids).last_hidden_state @ model.lm_head.weight.T
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
    assert "positions of images, but no image was given: they are read as text" in caplog.text


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="must be a multiple of its num_attention_heads 5"):
        MplugOwlForConditionalGeneration(tiny_config(vision_config={"num_attention_heads": 5}))


def test_the_language_model_keeps_its_own_dtype_and_class():
    model = build()
    assert type(model.model.language_model).__name__ == "LlamaModel"
    assert isinstance(model.config.text_config, LlamaConfig)


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("road", ["forward", "generate"])
@pytest.mark.parametrize("positions", [0, 1], ids=["old alone", "old and new"])
def test_pixels_passed_again_over_a_cache_name_the_cache(kind, road, positions):
    """And an empty cache, which `generate` brings by itself, is not blamed."""
    model = build(vision_config={"use_temporal": True})
    pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    token = {"image": model.config.image_token_id, "video": model.config.video_token_id}[kind]
    ids = torch.randint(3, 90, (1, 24), generator=torch.Generator().manual_seed(1))
    ids[:, 3:8] = token
    values = torch.randn(1, *((2,) if kind == "video" else ()), 3, 28, 28)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :10], **{pixels: values}, use_cache=True)[CACHE_NAME]
    if positions:
        ids[:, 12:17] = token
        values = values.repeat(2, *[1] * (values.ndim - 1))
    again = {pixels: values, CACHE_NAME: cache}
    message = rf"`{CACHE_NAME}` already holds 10 positions, so leave out the pixels of the {kind}s"
    with pytest.raises(ValueError, match=message), torch.no_grad():
        if road == "forward":
            model(input_ids=ids[:, 10:], **again)
        else:
            model.generate(input_ids=ids, **again, max_new_tokens=2)
    with pytest.raises(ValueError, match="prepare both with MplugOwlProcessor"):
        getattr(model, road)(input_ids=ids[:, :6], **{pixels: values})

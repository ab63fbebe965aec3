"""After a step every parameter has moved or stayed, as the stage says."""

import pytest
import torch
from conftest import tiny_config

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training import STAGES, module_table, prepare_stage
from transformers_owl.training.stages import blank_visual


EXPECTED = {
    "pretrain": ("vision_model", "abstractor"),
    "instruct": ("abstractor", "lora"),
    "instruct-lora-only": ("lora",),
    "instruct-full": ("abstractor", "language_model", "lm_head"),
    "minigpt4": ("abstractor",),
    "kosmos": ("language_model", "lm_head"),
    "llava-pretrain": ("abstractor",),
    "llava-instruct": ("abstractor", "language_model", "lm_head"),
    "projection": ("visual_fc", "vit_eos"),
}
FOR_VIDEOS = ("temporal", "temporal_query_tokens", "temporal_visual_fc")
BLOOM = {"model_type": "bloom", "vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}


def build(name):
    torch.manual_seed(0)
    base = tiny_config()
    config = base if name == "llama" else type(base)(**{**base.to_dict(), "text_config": BLOOM})
    return MplugOwlForConditionalGeneration(config)


def part(name: str) -> str:
    if "lora_" in name:
        return "lora"
    name = name.removeprefix("base_model.model.").removeprefix("model.")
    return {"embedding_norm": "language_model"}.get(name.partition(".")[0], name.partition(".")[0])


@pytest.mark.parametrize("name", ["llama", "bloom"])
@pytest.mark.parametrize("stage", EXPECTED)
def test_every_parameter_moves_or_stays(stage, name):
    model = prepare_stage(build(name), stage)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    ids = torch.randint(3, 100, (2, 14))
    ids[:, 3:8] = 100
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # LoRA's first matrices get their gradient once the second ones are not zero
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, pixel_values=torch.randn(2, 3, 28, 28)).loss.backward()
        optimizer.step()
    for key, parameter in model.named_parameters():
        should_move = any(word in (part(key), *key.split(".")) for word in EXPECTED[stage])
        # With modules_to_save PEFT keeps the frozen original beside the copy that trains.
        should_move &= "original_module" not in key
        assert (not torch.equal(parameter, before[key])) == should_move, key


def test_the_stage_for_videos_moves_what_images_never_pass():
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration(tiny_config(vision_config={"use_temporal": True})).eval()
    prepare_stage(model, "temporal")
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    ids = torch.randint(3, 100, (2, 14))
    images = {"input_ids": ids.clone(), "pixel_values": torch.randn(2, 3, 28, 28)}
    images["input_ids"][:, 3:8] = model.config.image_token_id
    said = model(**images).logits
    ids[:, 3:8] = model.config.video_token_id
    model(input_ids=ids, labels=ids, pixel_values_videos=torch.randn(2, 3, 3, 28, 28)).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e4).step()  # gradients are tiny
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert moved == {key for key in before if any(word in key.split(".") for word in FOR_VIDEOS)}
    assert torch.equal(model(**images).logits, said)


def test_a_stage_that_trains_nothing_says_so():
    with pytest.raises(ValueError, match="Nothing would train: the model has no temporal part"):
        prepare_stage(build("llama"), "temporal")


def test_every_stage_is_tested():
    assert {*EXPECTED, "temporal"} == set(STAGES)


def test_lora_never_touches_the_vision_model():
    adapted = [key for key, _ in prepare_stage(build("llama"), "instruct").named_parameters() if "lora_" in key]
    assert len(adapted) == 2 * 2 * 2
    assert all("language_model" in key for key in adapted)


def test_the_table_counts_every_parameter_once():
    model = prepare_stage(build("llama"), "instruct")
    rows = {row["part"]: row for row in module_table(model)}
    assert set(rows) == {"vision_model", "abstractor", "language_model", "lm_head", "LoRA"}
    own = [(name, parameter) for name, parameter in model.named_parameters() if "original_module" not in name]
    assert sum(row["parameters"] for row in rows.values()) == sum(parameter.numel() for _, parameter in own)
    assert rows["abstractor"]["trainable"] == rows["abstractor"]["parameters"] > 0
    assert rows["vision_model"]["trainable"] == rows["language_model"]["trainable"] == 0
    assert rows["LoRA"]["trainable"] == rows["LoRA"]["parameters"] > 0
    assert rows["vision_model"]["dtypes"] == {"float32"}


def test_an_unknown_stage_is_named():
    with pytest.raises(ValueError, match=r"Unknown stage: 'stage2'.*Choose one of pretrain, instruct"):
        prepare_stage(build("llama"), "stage2")


SIZES = {"vocab_size": 100, "hidden_size": 32, "pad_token_id": 0}
SMALL = {**SIZES, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "llama": ("q_proj", "v_proj"), "mistral": ("q_proj", "v_proj"), "qwen3": ("q_proj", "v_proj"),
    "opt": ("q_proj", "v_proj"),
    "bloom": ("query_key_value",), "falcon": ("query_key_value",), "gpt_neox": ("query_key_value",),
    "phi3": ("qkv_proj",), "gpt2": ("c_attn",),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_finds_queries_and_values_of_every_family(family):
    base = tiny_config()
    text = {**SMALL, "model_type": family, "n_layer": 2, "n_head": 4, "word_embed_proj_dim": 32, "ffn_dim": 48}
    model = MplugOwlForConditionalGeneration(type(base)(**{**base.to_dict(), "text_config": text}))
    adapted = {
        name.partition(".lora_")[0]
        for name, _ in prepare_stage(model, "instruct-lora-only").named_parameters()
        if ".lora_" in name
    }
    assert {name.rpartition(".")[2] for name in adapted} == set(FAMILIES[family])
    assert len(adapted) == 2 * len(FAMILIES[family]) and all("language_model" in name for name in adapted)


def test_unknown_names_of_layers_are_told():
    model = build("llama")
    for layer in model.model.language_model.layers:
        layer.self_attn.wq, layer.self_attn.wv = layer.self_attn.q_proj, layer.self_attn.v_proj
        del layer.self_attn.q_proj, layer.self_attn.v_proj
    with pytest.raises(ValueError, match=r"linear layers are .*wq, wv"):
        prepare_stage(model, "instruct")


@pytest.mark.parametrize("has_temporal", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_every_batch_reaches_what_trains(stage, world_size, has_temporal):
    """A batch of text gives a gradient of its loss in every stage, by a blank image or video where it needs one."""
    if stage == "temporal" and not has_temporal:
        return
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration(tiny_config(vision_config={"use_temporal": has_temporal}))
    model = prepare_stage(model, stage)
    kind = blank_visual(stage, has_temporal, world_size)
    ids = torch.randint(3, 90, (1, 14))
    labels, pixels = ids.clone(), {}
    if kind is not None:
        ids[:, 9:] = getattr(model.config, f"{kind}_token_id")
        labels[:, 9:] = -100
        name, size = {"image": ("pixel_values", (1,)), "video": ("pixel_values_videos", (1, 2))}[kind]
        pixels = {name: torch.randn(*size, 3, 28, 28)}
    model(input_ids=ids, labels=labels, **pixels).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert any(parameter.grad is not None for parameter in trained)
    if world_size > 1:
        missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []

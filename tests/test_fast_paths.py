"""No speed-up changes results: every fast path gives what the original code printed, within the bounds of parity."""

import pytest
import torch
from conftest import GoldenCase, relative_error
from transformers import CompileConfig, StaticCache, TorchAoConfig

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.inference import use_onednn


CASES = ("image-llama", "image-bloom")
NEW_TOKENS = 24


def load(name: str, **options) -> MplugOwlForConditionalGeneration:
    return MplugOwlForConditionalGeneration.from_pretrained(GoldenCase(name).checkpoint, **options)


def sdpa(name):
    return load(name, attn_implementation="sdpa")


def eager(name):
    return load(name, attn_implementation="eager")


def compiled(name):
    model = load(name)
    model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    return model


def in_machine_code(name):
    model = load(name)
    model.forward = torch.compile(model.forward, fullgraph=True)
    return model


def by_onednn(name):
    return use_onednn(load(name))


# The library has no such attention for Bloom.
PATHS = [
    ("image-llama", sdpa), ("image-llama", eager), ("image-bloom", eager), ("image-llama", compiled),
    ("image-bloom", compiled), ("image-llama", by_onednn), ("image-bloom", by_onednn),
    pytest.param("image-llama", in_machine_code, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.fixture(params=CASES)
def name(request):
    return request.param


def inputs_of(case: GoldenCase, model, prompt: str) -> dict[str, torch.Tensor]:
    ids = case.expected[f"{prompt}/input_ids"]
    found = {"input_ids": ids.masked_fill(ids == -1, model.config.image_token_id)}
    if f"{prompt}/pixel_values" in case.expected:
        found["pixel_values"] = case.expected[f"{prompt}/pixel_values"]
    return found


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_logits_of_a_path_are_the_originals(name, path):
    case, model = GoldenCase(name), path(name)
    for prompt in case.prompts:
        ids = case.expected[f"{prompt}/train_input_ids"]
        given = {**inputs_of(case, model, prompt), "input_ids": ids.masked_fill(ids == -1, model.config.image_token_id)}
        with torch.no_grad():
            logits = model(**given).logits
        assert relative_error(logits, case.expected[f"{prompt}/train_logits"]) <= 1e-5


@pytest.mark.parametrize("path", [load, by_onednn])
@pytest.mark.parametrize("is_static", [False, True])
def test_a_cache_of_either_kind_writes_what_the_original_wrote(name, is_static, path):
    case, model = GoldenCase(name), path(name)
    for prompt in case.prompts:
        given = inputs_of(case, model, prompt)
        cache = StaticCache(config=model.config.text_config, max_cache_len=512) if is_static else None
        written = model.generate(**given, past_key_values=cache, max_new_tokens=NEW_TOKENS)
        expected = case.expected[f"{prompt}/greedy_new_tokens"]
        assert written[:, given["input_ids"].shape[1] :].tolist() == expected.tolist()


@pytest.mark.slow
def test_a_step_with_weights_laid_out_anew_writes_what_the_original_wrote(name):
    case, model = GoldenCase(name), load(name)
    cache = StaticCache(config=model.config.text_config, max_cache_len=512)
    on_cpu = CompileConfig(mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)
    on_cpu._compile_all_devices = True
    torch._dynamo.utils.counters.clear()
    with torch._inductor.config.patch(freezing=True):
        for prompt in case.prompts:
            given = inputs_of(case, model, prompt)
            cache.reset()
            written = model.generate(**given, past_key_values=cache, compile_config=on_cpu, max_new_tokens=NEW_TOKENS)
            expected = case.expected[f"{prompt}/greedy_new_tokens"]
            assert written[:, given["input_ids"].shape[1] :].tolist() == expected.tolist()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_a_batch_of_all_prompts_writes_what_the_original_wrote_one_by_one(name):
    case, model = GoldenCase(name), load(name)
    rows = [inputs_of(case, model, prompt) for prompt in case.prompts]
    length = max(row["input_ids"].shape[1] for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, -row["input_ids"].shape[1] :] = row["input_ids"]
        mask[number, -row["input_ids"].shape[1] :] = 1
    pixels = torch.cat([row["pixel_values"] for row in rows if "pixel_values" in row])
    written = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=NEW_TOKENS)
    for prompt, tokens in zip(case.prompts, written[:, length:].tolist(), strict=True):
        expected = case.expected[f"{prompt}/greedy_new_tokens"][0].tolist()
        assert tokens[: len(expected)] == expected


def test_weights_of_eight_bits_stay_within_their_bound(name):
    from torchao.quantization import Int8WeightOnlyConfig

    case, model = GoldenCase(name), load(name, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    for prompt in case.prompts:
        ids = case.expected[f"{prompt}/train_input_ids"]
        given = {**inputs_of(case, model, prompt), "input_ids": ids.masked_fill(ids == -1, model.config.image_token_id)}
        with torch.no_grad():
            logits = model(**given).logits
        assert 0 < relative_error(logits, case.expected[f"{prompt}/train_logits"]) <= 0.05

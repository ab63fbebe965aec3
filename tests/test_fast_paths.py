"""No speed-up changes results: every fast path gives what the original code printed, within the bounds of parity."""

import pytest
import torch
from conftest import GoldenCase, relative_error, tiny_config
from towers import owl_with, tower_of
from transformers import CompileConfig, StaticCache, TorchAoConfig

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.inference import compile_vision, use_onednn
from transformers_owl.inference.compiled_vision import SETTINGS


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
    ("image-llama", sdpa), ("image-llama", eager), ("image-bloom", eager),
    ("image-llama", by_onednn), ("image-bloom", by_onednn),
    *(pytest.param(name, compiled, marks=pytest.mark.slow) for name in CASES),
    pytest.param("image-llama", in_machine_code, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.fixture(params=CASES)
def name(request):
    return request.param


@pytest.fixture(autouse=True)
def nothing_compiled():
    """PyTorch counts the variants of a function in a process, and compiles only so many."""
    torch._dynamo.reset()


def inputs_of(case: GoldenCase, model, prompt: str) -> dict[str, torch.Tensor]:
    ids = case.expected[f"{prompt}/input_ids"]
    found = {"input_ids": ids.masked_fill(ids == -1, model.config.image_token_id)}
    if f"{prompt}/pixel_values" in case.expected:
        found["pixel_values"] = case.expected[f"{prompt}/pixel_values"]
    return found


def errors_of_logits(name: str, model) -> list[float]:
    case, errors = GoldenCase(name), []
    for prompt in case.prompts:
        ids = case.expected[f"{prompt}/train_input_ids"]
        given = {**inputs_of(case, model, prompt), "input_ids": ids.masked_fill(ids == -1, model.config.image_token_id)}
        with torch.no_grad():
            errors.append(relative_error(model(**given).logits, case.expected[f"{prompt}/train_logits"]))
    return errors


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_logits_of_a_path_are_the_originals(name, path):
    assert max(errors_of_logits(name, path(name))) <= 1e-5


def check_written(name: str, model, cache: StaticCache | None = None, **options) -> None:
    case = GoldenCase(name)
    for prompt in case.prompts:
        given = inputs_of(case, model, prompt)
        if cache is not None:
            cache.reset()
        written = model.generate(**given, past_key_values=cache, max_new_tokens=NEW_TOKENS, **options)
        expected = case.expected[f"{prompt}/greedy_new_tokens"]
        assert written[:, given["input_ids"].shape[1] :].tolist() == expected.tolist()


def static_cache(model) -> StaticCache:
    return StaticCache(config=model.config.text_config, max_cache_len=512)


@pytest.mark.parametrize("path", [load, by_onednn])
@pytest.mark.parametrize("is_static", [False, True])
def test_a_cache_of_either_kind_writes_what_the_original_wrote(name, is_static, path):
    model = path(name)
    check_written(name, model, static_cache(model) if is_static else None)


@pytest.mark.slow
@pytest.mark.parametrize("path", [load, by_onednn])
def test_compiled_images_give_what_the_original_gave(name, path):
    model = compile_vision(path(name))
    stats, graph_breaks = (torch._dynamo.utils.counters[kind] for kind in ("stats", "graph_break"))
    stats.clear()
    graph_breaks.clear()
    assert max(errors_of_logits(name, model)) <= 1e-5
    check_written(name, model)
    size = model.config.vision_config.image_size
    pixels = torch.randn(7, 3, size, size)
    with torch.no_grad():
        features = model.get_image_features(pixels)
        assert stats["unique_graphs"] == 4  # of two parts, for four images and for one
        for count in range(1, 7):
            some = model.get_image_features(pixels[:count])
            assert relative_error(some.pooler_output, features.pooler_output[:count]) <= 1e-5
    assert stats["unique_graphs"] == 4
    assert not graph_breaks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "is_whole"),
    [("siglip_vision_model", True), ("siglip2_vision_model", False), ("dinov2", True)],
)
def test_compiled_towers_of_the_library_give_their_own_features(kind, is_whole):
    """SigLIP 2 falls into pieces: the library's code reads the sizes of its images back."""
    model = owl_with(tower_of(kind))
    pixels = torch.randn(5, 3, 56, 56)
    stats, graph_breaks = (torch._dynamo.utils.counters[kind] for kind in ("stats", "graph_break"))
    stats.clear()
    graph_breaks.clear()
    with torch.no_grad():
        expected = model.get_image_features(pixels)
        found = compile_vision(model).get_image_features(pixels)
    for name in ("last_hidden_state", "pooler_output"):
        assert relative_error(found[name], expected[name]) <= 1e-5
    if is_whole:
        assert stats["unique_graphs"] == 4  # of two parts, for four images and for one
        assert not graph_breaks


@pytest.mark.slow
def test_images_of_every_model_of_a_process_are_compiled():
    stats = torch._dynamo.utils.counters["stats"]
    stats.clear()
    for _ in range(5):
        model = compile_vision(MplugOwlForConditionalGeneration(tiny_config()).eval())
        size = model.config.vision_config.image_size
        with torch.no_grad():
            model.get_image_features(torch.randn(1, 3, size, size))
    assert stats["unique_graphs"] == 10  # of two parts each; eight are PyTorch's limit where models share it


@pytest.mark.slow
def test_a_step_with_weights_laid_out_anew_writes_what_the_original_wrote(name):
    model = load(name)
    on_cpu = CompileConfig(mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True)
    on_cpu._compile_all_devices = True
    torch._dynamo.utils.counters.clear()
    with torch._inductor.config.patch(SETTINGS):
        check_written(name, model, static_cache(model), compile_config=on_cpu)
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

    errors = errors_of_logits(name, load(name, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())))
    assert 0 < min(errors) <= max(errors) <= 0.05

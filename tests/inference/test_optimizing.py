"""What `optimize` picks, and that nothing it picks changes an answer."""

import pytest
import torch
from conftest import GoldenCase, relative_error, tiny_config
from torch._dynamo.utils import counters
from towers import owl_with, tower_of
from transformers import CompileConfig, DynamicCache, StaticCache

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.inference import Chat, optimize, optimizing
from transformers_owl.inference.onednn import OneDnnLinear


CASES = ("image-llama", "image-bloom")


@pytest.fixture
def said(caplog):
    return lambda: caplog.messages[-1]


@pytest.fixture
def tiny():
    return MplugOwlForConditionalGeneration(tiny_config()).eval()


@pytest.fixture
def model(llama):
    return MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint)


def compile_everywhere(model) -> None:
    """What is chosen on a GPU, by a backend that runs on a CPU."""
    how = CompileConfig(fullgraph=True, backend="eager", mode=None)
    how._compile_all_devices = True
    optimizing.compile_decoding(model, how)


def prefer(monkeypatch, onednn: bool) -> None:
    costs = {True: 1.0, False: 2.0}
    monkeypatch.setattr(optimizing, "_cost", lambda way, *rest: costs[(way is optimizing.onednn_linear) == onednn])


def is_onednn(model) -> bool:
    return any(isinstance(layer, OneDnnLinear) for layer in model.modules())


@pytest.mark.parametrize("for_", ["latency", "throughput"])
@pytest.mark.parametrize("share", [0.5, 0.94, 0.96, 2.0])
def test_products_are_by_what_is_faster(monkeypatch, said, tiny, for_, share):
    asked = []

    def cost(way, layer, products):
        asked.append(products)
        return share if way is optimizing.onednn_linear else 1.0

    monkeypatch.setattr(optimizing, "_cost", cost)
    assert optimize(tiny, for_, images=0) is tiny
    assert is_onednn(tiny) == (share < 0.95)
    assert f"optimize for {for_} on cpu: products by {'oneDNN' if share < 0.95 else 'MKL'} (" in said()
    assert f"{share:.2f} times" in said()
    assert asked == [optimizing.PRODUCTS[for_]] * 4


def test_products_are_timed_on_this_machine(said, tiny):
    optimize(tiny)
    assert ("by oneDNN" in said()) == is_onednn(tiny)


def test_layers_of_another_type_stay(said, tiny):
    optimize(tiny.to(torch.bfloat16))
    assert not is_onednn(tiny)
    assert "products unchanged" in said()


@pytest.mark.parametrize(
    ("images", "seconds", "compiles"), [(0, 9.0, False), (1599, 1, False), (1601, 1, True), (None, 0, True)]
)
def test_images_are_compiled_where_that_pays(monkeypatch, said, tiny, images, seconds, compiles):
    compiled = []
    monkeypatch.setattr(optimizing, "compile_vision", compiled.append)
    monkeypatch.setattr(optimizing, "seconds_of", lambda *args, **kwargs: seconds)
    monkeypatch.setattr(optimizing, "_choose_products", lambda *args: "")
    optimize(tiny, "throughput", images)
    assert compiled == [tiny] * compiles
    assert ("images compiled" in said()) == compiles
    optimize(tiny, "latency")
    assert compiled == [tiny] * compiles


@pytest.mark.parametrize("kind", ["siglip_vision_model", "siglip2_vision_model", "dinov2"])
def test_any_vision_model_can_be_timed(said, kind):
    optimize(owl_with(tower_of(kind)), "throughput", images=0)
    assert "images not compiled (0 of" in said()


def test_another_aim_is_refused(tiny):
    with pytest.raises(ValueError, match="for_ is 'speed', but must be one of 'latency', 'throughput'"):
        optimize(tiny, "speed")


@pytest.mark.parametrize("onednn_is_faster", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_answers_stay_the_originals(monkeypatch, name, onednn_is_faster):
    case = GoldenCase(name)
    prefer(monkeypatch, onednn_is_faster)
    model = optimize(MplugOwlForConditionalGeneration.from_pretrained(case.checkpoint))
    assert is_onednn(model) == onednn_is_faster
    torch._dynamo.reset()
    counters.clear()
    compile_everywhere(model)
    for prompt in case.prompts:
        ids = case.expected[f"{prompt}/input_ids"]
        given = {"input_ids": ids.masked_fill(ids == -1, model.config.image_token_id)}
        if f"{prompt}/pixel_values" in case.expected:
            given["pixel_values"] = case.expected[f"{prompt}/pixel_values"]
        expected = case.expected[f"{prompt}/greedy_new_tokens"]
        written = model.generate(**given, max_new_tokens=expected.shape[1])
        assert written[:, ids.shape[1] :].tolist() == expected.tolist()
    assert counters["stats"]["unique_graphs"] == 1  # whatever the length of a prompt
    assert not counters["graph_break"]


def test_a_peft_model_is_optimized_as_the_model_in_it(monkeypatch, model, llama_processor, images):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora).eval()
    expected = Chat(adapted, llama_processor).ask("What is it?", images[:1], max_new_tokens=8)
    prefer(monkeypatch, onednn=True)
    with torch.compiler.set_stance("force_eager"):
        assert optimize(adapted, "throughput") is adapted
        assert Chat(adapted, llama_processor).ask("What is it?", images[:1], max_new_tokens=8) == expected
    assert is_onednn(adapted)
    assert "_get_visual_features" in vars(model.model)


def test_a_chat_keeps_its_static_cache_until_it_is_full(monkeypatch, model, llama_processor, images):
    plain = Chat(model, llama_processor)
    expected = [plain.ask("What is it?", images[:1], max_new_tokens=5), plain.ask("And now?", max_new_tokens=60)]
    compile_everywhere(model)
    monkeypatch.setattr(optimizing, "CACHE_LENGTH", 160)
    chat = Chat(model, llama_processor)
    assert chat.ask("What is it?", images[:1], max_new_tokens=5) == expected[0]
    first = chat.cache
    assert isinstance(first, StaticCache)
    assert first.get_max_length() == 160
    assert chat.ask("And now?", max_new_tokens=60) == expected[1]
    assert chat.cache is not first
    assert chat.cache.get_max_length() > 160
    assert torch.equal(chat.ids, plain.ids)


def test_a_chat_without_a_cache_reads_everything_anew(model, llama_processor, images):
    plain, chat = Chat(model, llama_processor), Chat(model, llama_processor)
    for question, given in (("What is it?", images[:1]), ("And now?", [])):
        expected = plain.ask(question, given, max_new_tokens=5)
        assert chat.ask(question, given, max_new_tokens=5, use_cache=False) == expected
    assert chat.cache is None


def test_a_full_cache_of_the_callers_is_refused(model, llama_processor, images):
    chat = Chat(model, llama_processor, cache=StaticCache(config=model.config.text_config, max_cache_len=128))
    with pytest.raises(ValueError, match="may need 205 positions, but the cache has 128"):
        chat.ask("What is it?", images[:1], max_new_tokens=60)


@pytest.mark.parametrize(
    "options", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 3}, {"cache_implementation": "dynamic"}]
)
def test_what_a_caller_chooses_stays(tiny, options):
    prompt = torch.tensor([[1, 5, 9, 5, 9, 5]])
    expected = tiny.generate(prompt, max_new_tokens=6, **options)
    compile_everywhere(tiny)
    counters.clear()
    assert torch.equal(tiny.generate(prompt, max_new_tokens=6, **options), expected)
    assert not counters["stats"]


def test_a_callers_growing_cache_stays(tiny):
    prompt, cache = torch.tensor([[1, 5, 9]]), DynamicCache(config=tiny.config.text_config)
    compile_everywhere(tiny)
    counters.clear()
    tiny.generate(prompt, past_key_values=cache, max_new_tokens=4)
    assert cache.get_seq_length() == 6
    assert not counters["stats"]


def test_features_stay_within_rounding(monkeypatch, tiny):
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = tiny.get_image_features(pixels).pooler_output
        prefer(monkeypatch, True)
        optimize(tiny)
        assert is_onednn(tiny)
        assert relative_error(tiny.get_image_features(pixels).pooler_output, expected) <= 1e-5

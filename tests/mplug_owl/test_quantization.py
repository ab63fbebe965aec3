"""Quantisation by bitsandbytes, torchao and quanto touches the language model alone, on CPU."""

from importlib.util import find_spec

import pytest
import torch
from conftest import GoldenCase, relative_error, tiny_config
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torchao.quantization import Int8WeightOnlyConfig
from towers import tower_of
from transformers import AutoModel, BitsAndBytesConfig, EetqConfig, FineGrainedFP8Config, QuantoConfig, TorchAoConfig

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlModel


def of_quanto(weights: str = "int8", skipped: list[str] | None = None) -> QuantoConfig:
    if find_spec("optimum") is None:
        pytest.skip("optimum-quanto is not installed")
    return QuantoConfig(weights=weights, modules_to_not_convert=skipped)


CONFIGS = {
    "bitsandbytes 8 bits": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes 4 bits": lambda: BitsAndBytesConfig(load_in_4bit=True),
    "bitsandbytes by dictionary": lambda: {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "torchao 8 bits": lambda: TorchAoConfig(Int8WeightOnlyConfig()),
    "quanto 8 bits": of_quanto,
    "quanto 4 bits": lambda: of_quanto("int4"),
    "quanto 8 bits floating": lambda: of_quanto("float8"),
}
BOUNDS = {"bitsandbytes 4 bits": 0.3, "quanto 4 bits": 0.3}


PLAIN = (torch.nn.Linear, NonDynamicallyQuantizableLinear)  # the second in SigLIP's head


def is_quantized(module: torch.nn.Linear) -> bool:
    return type(module) not in PLAIN or type(module.weight.data) not in (torch.Tensor, torch.nn.Parameter)


@pytest.fixture(scope="module", params=["mplug_owl_vision_model", "siglip_vision_model", "dinov2"])
def saved(request, tmp_path_factory):
    """A model with the releases' ViT, or with a vision model of the library."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    config = tiny_config({"hidden_size": 64, "intermediate_size": 128}, vision_config={"image_size": 56})
    if request.param != config.vision_config.model_type:
        config.vision_config = tower_of(request.param).config
    model = MplugOwlForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_language_model_is_quantised(saved, name):
    folder, model = saved
    given = CONFIGS[name]()
    quantised = MplugOwlForConditionalGeneration.from_pretrained(folder, quantization_config=given)
    linears = {key: module for key, module in quantised.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {key for key, module in linears.items() if is_quantized(module)} == {
        key for key in linears if key.startswith("model.language_model.")
    }
    ids = torch.randint(3, 90, (2, 14))
    ids[:, 3:8] = model.config.image_token_id
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 56, 56)}
    with torch.no_grad():
        expected = model(**inputs)
        output = quantised(**inputs)
    assert torch.equal(output.image_hidden_states, expected.image_hidden_states)
    assert 0 < relative_error(output.logits, expected.logits) < BOUNDS.get(name, 0.05)


def test_a_list_of_ones_own_is_kept(saved):
    folder, _ = saved
    given = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head"])
    quantised = MplugOwlForConditionalGeneration.from_pretrained(folder, quantization_config=given)
    linears = [module for module in quantised.model.vision_model.modules() if type(module) is torch.nn.Linear]
    assert linears and all(map(is_quantized, linears))
    assert given.modules_to_not_convert == ["lm_head"]


# A method with a list of modules to skip.
METHODS = {
    "bitsandbytes": lambda skipped: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped),
    "torchao": lambda skipped: TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped),
    "quanto": lambda skipped: of_quanto(skipped=skipped),
}
# Lists with which a method takes the vision model's q, k and v of a release for what they are: one weight.
SPARING = [["model.vision_model", "lm_head"], [".*vision_model.*self_attn"], ["model"]]
MODULES = ["q_proj", "k_proj", "v_proj"]  # torchao looks for names of parameters
WHOLE = [["lm_head"], [], ["vision_model"], ["model.abstractor", "model.language_model"]]
LISTS = [*SPARING, *WHOLE, MODULES, MODULES[:2], MODULES[1:]]
LOADS = {
    "bitsandbytes": [*SPARING, *WHOLE, MODULES],
    "quanto": [*SPARING, MODULES],
    "torchao": SPARING,
}
NAMES = ["image-llama", "image-bloom", "video-llama"]


@torch.no_grad()
def features(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if model.config.sees_videos:
        return model.get_video_features(torch.randn(1, 4, 3, 56, 56, generator=generator)).pooler_output
    return model.get_image_features(torch.randn(1, 3, 56, 56, generator=generator)).pooler_output


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", CONFIGS)
def test_a_release_is_quantised_with_its_own_weights(name, method):
    """What sees is left alone, whatever class loads it."""
    checkpoint, given = GoldenCase(name).checkpoint, CONFIGS[method]()
    expected = features(MplugOwlForConditionalGeneration.from_pretrained(checkpoint))
    for road in (AutoModel, MplugOwlModel):
        quantised, info = road.from_pretrained(checkpoint, quantization_config=given, output_loading_info=True)
        assert not any(info.values())
        assert torch.equal(features(quantised), expected)
        language_model = quantised.get_decoder()
        linears = [module for module in language_model.modules() if isinstance(module, torch.nn.Linear)]
        assert linears and all(map(is_quantized, linears))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("skipped", LISTS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_list_of_ones_own_loads_a_release_or_is_refused(method, skipped, tmp_path):
    """Never with random weights; the error says what to add, and then it loads. Converted, every list loads."""
    checkpoint = GoldenCase("video-llama").checkpoint
    plain = MplugOwlForConditionalGeneration.from_pretrained(checkpoint)
    plain.save_pretrained(tmp_path)
    given = METHODS[method](skipped)
    if skipped not in LOADS[method]:
        with pytest.raises(ValueError, match=rf'{method} cannot quantise .* add "model.vision_model" to .*convert`'):
            AutoModel.from_pretrained(checkpoint, quantization_config=given)
        given = METHODS[method]([*skipped, "model.vision_model"])
    for folder, settings in ((checkpoint, given), (tmp_path, METHODS[method](skipped))):
        quantised, info = AutoModel.from_pretrained(folder, quantization_config=settings, output_loading_info=True)
        assert not any(info.values())
        assert 0 <= relative_error(features(quantised), features(plain)) < 0.05


def test_a_base_models_list_has_its_own_names():
    checkpoint = GoldenCase("image-llama").checkpoint
    with pytest.raises(ValueError, match='add "vision_model" to'):
        MplugOwlModel.from_pretrained(checkpoint, quantization_config=METHODS["torchao"](["model.vision_model"]))
    given = METHODS["torchao"](["vision_model", "abstractor"])
    quantised = MplugOwlModel.from_pretrained(checkpoint, quantization_config=given)
    assert torch.equal(features(quantised), features(MplugOwlModel.from_pretrained(checkpoint)))


@pytest.mark.parametrize("given", [EetqConfig(), FineGrainedFP8Config(), {"quant_method": "fp_quant"}], ids=str)
def test_other_methods_are_refused_by_name(given):
    name = given["quant_method"] if isinstance(given, dict) else given.quant_method.value
    with pytest.raises(ValueError, match=f"{name} cannot quantise an original release: use bitsandbytes, torchao or"):
        AutoModel.from_pretrained(GoldenCase("video-llama").checkpoint, quantization_config=given)

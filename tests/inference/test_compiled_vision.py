"""Images by compiled code: how many are looked at together, and that nothing else changes. See test_fast_paths.py."""

import copy
import math

import pytest
import torch
from conftest import relative_error, tiny_config
from towers import owl_with, tower_of

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.inference import compile_vision


@pytest.fixture(params=["mplug_owl_vision_model", "siglip_vision_model", "dinov2"])
def model(request):
    torch.manual_seed(0)
    if request.param != "mplug_owl_vision_model":
        return owl_with(tower_of(request.param), use_temporal=True)
    return MplugOwlForConditionalGeneration(tiny_config(vision_config={"use_temporal": True})).eval()


@pytest.fixture(autouse=True)
def as_it_is():
    """What is compiled runs as the code that it was made of."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield


def pixels_of(model, *shape: int) -> torch.Tensor:
    size = model.config.vision_config.image_size
    return torch.randn(*shape, 3, size, size)


def tensors(features) -> list[torch.Tensor]:
    return torch.utils._pytree.tree_leaves(features)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((1,), [1]), ((4,), [4]), ((7,), [4, 1, 1, 1]), ((8,), [4, 4]),
        ((2, 8), [1, 1]), ((2, 4), [1, 1]), ((3, 2), [2, 1]), ((5, 1), [4, 1]),
    ],
)  # fmt: skip
def test_a_few_are_looked_at_together_and_the_features_stay(model, shape, groups):
    pixels, seen = pixels_of(model, *shape), []
    model.set_attn_implementation("eager")
    look = model.get_image_features if len(shape) == 1 else model.get_video_features
    wanted = {"output_attentions": True, "output_hidden_states": True}
    expected = look(pixels, **wanted)
    assert compile_vision(model) is model
    frames = math.prod(shape[1:])  # which a vision model of the library is given one by one
    model.model.vision_model.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].shape[:-3].numel() // frames)
    )
    found = look(pixels, **wanted)
    assert seen == groups
    assert list(found) == list(expected)
    assert len(tensors(found)) == len(tensors(expected)) > 10
    for ours, plain in zip(tensors(found), tensors(expected), strict=True):
        assert relative_error(ours, plain) <= 1e-6


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_images_are_the_same_mistake(model, shape):
    look = model.get_image_features if len(shape) == 1 else model.get_video_features
    with pytest.raises(ValueError, match="but must be"):
        look(pixels_of(model, *shape))
    compile_vision(model)
    with pytest.raises(ValueError, match="but must be"):
        look(pixels_of(model, *shape))


def test_a_copy_looks_with_its_own_weights(model):
    pixels = pixels_of(model, 2)
    before = compile_vision(model).get_image_features(pixels).pooler_output
    other = copy.deepcopy(model)
    other.model.abstractor.vit_eos.add_(1)
    assert torch.equal(model.get_image_features(pixels).pooler_output, before)
    assert torch.allclose((other.get_image_features(pixels).pooler_output - before)[:, -1], torch.tensor(1.0))


def test_the_settings_are_those_of_looking_alone(model):
    settings, seen = torch._inductor.config, []
    compile_vision(model)
    model.model.abstractor.register_forward_pre_hook(
        lambda *given: seen.append((settings.freezing, settings.cpp_wrapper))
    )
    model.get_image_features(pixels_of(model, 1))
    assert seen == [(True, True)]
    assert (settings.freezing, settings.cpp_wrapper) == (False, False)

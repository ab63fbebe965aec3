"""Options of `generate` on models whose placeholders lie outside the vocabulary (LLaMA releases) and inside."""

import pytest
import torch
from conftest import tiny_config

from transformers_owl import MplugOwlForConditionalGeneration


# Options that index by the ids of the prompt, so weak that they change nothing.
ROWS = [
    {"repetition_penalty": 1 + 1e-5},
    {"encoder_repetition_penalty": 1 + 1e-5},
    {"no_repeat_ngram_size": 40},
    {"encoder_no_repeat_ngram_size": 40},
    {"bad_words_ids": [[7, 8, 9, 10]]},
    {"sequence_bias": [[[5], -1e-6]]},
    {"guidance_scale": 1 + 1e-6},
    {"suppress_tokens": [99]},
    {"renormalize_logits": True},
    {"do_sample": True, "top_k": 1},
    {"do_sample": True, "top_p": 1e-9},
    {"do_sample": True, "temperature": 1e-4},
    {"cache_implementation": "static"},
    {"use_cache": False},
]
# Of one row alone: what they propose comes from the prompt.
ROW = [
    {"prompt_lookup_num_tokens": 3},
    {"prompt_lookup_num_tokens": 8, "max_matching_ngram_size": 1},
    {"prompt_lookup_num_tokens": 3, "repetition_penalty": 1 + 1e-5},
]


@pytest.fixture(scope="module", params=["outside", "inside"])
def model(request):
    torch.manual_seed(0)
    ids = {} if request.param == "outside" else {"image_token_id": 3, "video_token_id": 4}
    return MplugOwlForConditionalGeneration(tiny_config(vision_config={"use_temporal": True}, **ids)).eval()


def prompts(model) -> dict[str, torch.Tensor]:
    """Rows with an image and a video each, which repeat: 1 <image> 9 8 <video> 9 8."""
    image, video = [model.config.image_token_id] * 5, [model.config.video_token_id] * 5
    torch.manual_seed(1)
    return {
        "input_ids": torch.tensor([[1, *image, 9, 8, *video, 9, 8], [1, *image, 7, 6, *video, 7, 6]]),
        "pixel_values": torch.randn(2, 3, 28, 28),
        "pixel_values_videos": torch.randn(2, 3, 3, 28, 28),
    }


@pytest.mark.parametrize("options", ROWS, ids=str)
def test_weak_options_write_the_greedy_answer(model, options):
    inputs = prompts(model)
    greedy = model.generate(**inputs, max_new_tokens=12)
    assert greedy.shape == (2, inputs["input_ids"].shape[1] + 12)
    assert torch.equal(model.generate(**inputs, max_new_tokens=12, **options), greedy)


@pytest.mark.parametrize("options", ROW, ids=str)
def test_tokens_proposed_from_the_prompt_change_nothing(model, options):
    inputs = {name: value[:1] for name, value in prompts(model).items()}
    greedy = model.generate(**inputs, max_new_tokens=12)
    assert torch.equal(model.generate(**inputs, max_new_tokens=12, **options), greedy)


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), 2.5])
@pytest.mark.parametrize("name", ["max_new_tokens", "max_length"])
def test_a_limit_that_is_not_a_whole_number_is_refused(model, name, limit):
    """With NaN `generate` would never end."""
    with pytest.raises(ValueError, match=f"{name} is .* but must be a whole number"):
        model.generate(torch.tensor([[1, 5, 6]]), **{name: limit})


def test_a_strong_penalty_changes_the_answer_but_never_to_a_placeholder(model):
    inputs = prompts(model)
    length = inputs["input_ids"].shape[1]
    greedy = model.generate(**inputs, max_new_tokens=12)[:, length:]
    for options in ({"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1}, {"num_beams": 3}):
        written = model.generate(**inputs, max_new_tokens=12, **options)[:, length:]
        visual_ids = torch.tensor([model.config.image_token_id, model.config.video_token_id])
        assert not torch.isin(written, visual_ids).any()
        assert "num_beams" in options or not torch.equal(written, greedy)

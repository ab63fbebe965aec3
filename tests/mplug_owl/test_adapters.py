"""LoRA on the language model: PEFT finds the right layers, and adapters load back and merge, also onto a release."""

import pytest
import torch
from conftest import GoldenCase, relative_error
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

from transformers_owl import MplugOwlForConditionalGeneration


TARGETS = {
    "image-llama": r".*language_model.*\.(q_proj|v_proj)",
    "image-bloom": r".*language_model.*\.query_key_value",
    "video-llama": r".*language_model.*\.(q_proj|v_proj)",
}


def logits(model) -> torch.Tensor:
    ids = torch.randint(3, 900, (1, 80), generator=torch.Generator().manual_seed(0))
    ids[:, 5:70] = model.config.image_token_id
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels).logits


@pytest.mark.parametrize("name", TARGETS)
def test_adapters_of_a_release_load_back_through_every_road(name, tmp_path):
    checkpoint = GoldenCase(name).checkpoint
    torch.manual_seed(0)
    base = MplugOwlForConditionalGeneration.from_pretrained(checkpoint)
    plain = logits(base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=TARGETS[name], init_lora_weights=False))
    trainable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable and all("language_model" in key and "lora" in key for key in trainable)
    tuned = logits(model)
    assert relative_error(tuned, plain) > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    roads = (
        PeftModel.from_pretrained(MplugOwlForConditionalGeneration.from_pretrained(checkpoint), tmp_path / "adapter"),
        MplugOwlForConditionalGeneration.from_pretrained(str(tmp_path / "adapter")),
        AutoModelForImageTextToText.from_pretrained(str(tmp_path / "adapter")),
    )
    for loaded in roads:
        assert relative_error(logits(loaded), tuned) <= 1e-6
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again, info = MplugOwlForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    assert relative_error(logits(again), tuned) <= 1e-5

"""A fresh Owl holds both models' weights: its features are CLIP's, its text is the language model's."""

import pytest
import torch
from conftest import relative_error
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from transformers_owl.training import build_owl


SIZES = {"vocab_size": 100, "hidden_size": 48, "pad_token_id": 0}
SMALL = {**SIZES, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LANGUAGE_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**SIZES, n_layer=2, n_head=4)),
}


@pytest.fixture
def clip():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=7)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("use_temporal", [False, True])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_features_are_clips_and_text_is_the_language_models(clip, name, use_temporal):
    torch.manual_seed(1)
    language_model = LANGUAGE_MODELS[name]().eval()
    owl = build_owl(clip, language_model, num_query_tokens=8, num_abstractor_layers=2, use_temporal=use_temporal).eval()
    pixels, ids = torch.randn(2, 3, 28, 28), torch.randint(3, 100, (2, 9))
    with torch.no_grad():
        theirs = clip.post_layernorm(clip(pixels).last_hidden_state)
        assert relative_error(owl.model.vision_model(pixels).last_hidden_state, theirs) <= 1e-5
        assert relative_error(owl(input_ids=ids).logits, language_model(input_ids=ids).logits) <= 1e-6
        assert owl.get_image_features(pixels).pooler_output.shape == (2, 9, 48)
    assert owl.config.vision_config.layer_norm_eps == clip.config.layer_norm_eps == 1e-5
    assert torch.pdist(owl.model.abstractor.query_tokens[0]).min() > 1e-3


def test_the_releases_sizes_come_out():
    """ViT-L/14 and LLaMA-7B give the release's configuration, but for CLIP's epsilon."""
    with torch.device("meta"):
        sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        clip = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=224, patch_size=14))
        owl = build_owl(clip, LlamaForCausalLM(LlamaConfig()))
    assert owl.config.visual_abstractor_config.intermediate_size == 2816
    assert 7.1e9 < sum(parameter.numel() for parameter in owl.parameters()) < 7.2e9

"""Small vision models of the library, and Owls with them."""

import torch
from transformers import CONFIG_MAPPING, AutoModel, LlamaConfig, LlamaForCausalLM

from transformers_owl.fresh import build_owl


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}
PATCHES = 16


def tower_of(kind: str, **fields):
    sizes = {**SIZES, **({"num_patches": PATCHES} if kind == "siglip2_vision_model" else {"image_size": 56}), **fields}
    torch.manual_seed(0)
    tower = AutoModel.from_config(CONFIG_MAPPING[kind](**sizes)).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tower


def language_model():
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=1002, pad_token_id=0, **sizes)).eval()


def owl_with(tower, **options):
    return build_owl(tower, language_model(), num_query_tokens=8, num_abstractor_layers=2, **options).eval()

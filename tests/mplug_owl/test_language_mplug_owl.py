"""Every causal language model of the library becomes an Owl with its own logits, or is refused with the reason."""

import copy
import inspect
import re
from typing import Any

import pytest
import torch
from conftest import relative_error
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.fresh import fresh_config
from transformers_owl.training import build_owl


# Sizes by the names that configurations have for them.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "d_inner", "shared_expert_intermediate_size", "moe_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "num_decoder_layers", "num_experts_per_tok", "moe_k"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels", "kv_lora_rank", "q_lora_rank", "v_head_dim"), 8),
    **dict.fromkeys(("rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim"), 4),
    **dict.fromkeys(("n_shared_experts", "first_k_dense_replace", "n_group", "topk_group"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    "vocab_size": 96,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
}
LINEAR_FIRST = {"layer_types": ["linear_attention", "full_attention"]}
SHARED_HEADS = {"mamba_n_heads": 4, "mamba_d_head": 16}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bailing_hybrid", "kimi_linear", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), LINEAR_FIRST),
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
    }
    | {"indexer_head_dim": 8, "indexer_budget": 4, "indexer_compress_ratio": 2},
    "reformer": {"axial_pos_embds": False},
    "bamba": {**SHARED_HEADS, "attn_layer_indices": [1]},
    "dbrx": {"attn_config": {"kv_n_heads": 4, "clip_qkv": 8, "rope_theta": 10000.0}},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), ROPE)},
    "falcon_h1": {**SHARED_HEADS, "mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**SHARED_HEADS, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"num_heads": 8},
    "mimo_v2_flash": {"layer_types": ["full_attention", "full_attention"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "hybrid_layer_ids": [1]},
    "zaya": {"num_experts_per_tok": 1},
}
WANTED = frozenset({
    "bloom", "cohere", "cohere2", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_neox",
    "gpt_oss", "gptj", "granite", "granitemoe", "llama", "ministral", "mistral", "mixtral", "nemotron", "olmo2", "opt",
    "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
})  # fmt: skip
REASON = re.compile(r"(?:is not supported|cannot be the language model): .{20}|Unrecognized configuration class")
PROMPT = torch.arange(5, 19).view(2, 7)


def tiny(name: str):
    kind = CONFIG_MAPPING[name]
    known = set(kind.attribute_map) | set(inspect.signature(kind.__init__).parameters)
    known |= {field for each in kind.__mro__ for field in getattr(each, "__annotations__", {})}
    return kind(**{field: value for field, value in SIZES.items() if field in known} | OWN.get(name, {}))


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14)).eval()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_type(clip, name):
    config = tiny(name)
    try:
        with torch.device("meta"):
            MplugOwlForConditionalGeneration(fresh_config(clip.config, config))
    except (ValueError, ImportError) as refusal:
        print("refused", name, refusal)
        assert name not in WANTED
        assert REASON.search(str(refusal))
        return
    torch.manual_seed(0)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](copy.deepcopy(config)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    owl = build_owl(clip, model, num_query_tokens=3, num_abstractor_layers=1).eval()
    image = torch.full((2, 4), owl.config.image_token_id)
    prompt = {
        "input_ids": torch.cat([PROMPT[:, :2], image, PROMPT[:, 2:]], dim=1),
        "pixel_values": torch.randn(2, 3, 28, 28),
    }
    with torch.no_grad():
        assert relative_error(owl(input_ids=PROMPT).logits, model(input_ids=PROMPT).logits) <= 1e-5
        whole, options = owl(**prompt).logits, {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0}
    assert relative_error(owl(**prompt, logits_to_keep=2).logits, whole[:, -2:]) <= 1e-5
    written = owl.generate(**prompt, **options)
    assert torch.equal(written, owl.generate(**prompt, **options, use_cache=False))

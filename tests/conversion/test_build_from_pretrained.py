"""A fresh Owl built tensor by tensor is what `build_owl` makes in memory: CLIP's eyes, the language model's words."""

from pathlib import Path

import pytest
import torch
from conftest import relative_error
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoProcessor,
    BertConfig,
    BertModel,
    BitImageProcessorPil,
    BloomConfig,
    BloomForCausalLM,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from transformers_owl.conversion.build import build
from transformers_owl.loading import load


SIZES = {"vocab_size": 1000, "hidden_size": 48, "pad_token_id": 0}
SMALL = {**SIZES, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LANGUAGE_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**{**SMALL, "vocab_size": 1100}, tie_word_embeddings=True)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**SIZES, n_layer=2, n_head=4)),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 7}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    return folder


def save(language_model, tokenizer, folder: Path) -> Path:
    language_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tokenizer(llama):
    """A tokenizer of a language model that knows nothing of images."""
    return LlamaTokenizer.from_pretrained(llama.checkpoint)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_features_are_clips_and_text_is_the_language_models(clip, name, llama, tmp_path):
    torch.manual_seed(1)
    language = save(LANGUAGE_MODELS[name](), tokenizer(llama), tmp_path / "language")
    build(str(clip), str(language), tmp_path / "out", torch.float32, num_query_tokens=8, max_shard_size="100KB")
    owl, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    vision, text = CLIPVisionModel.from_pretrained(clip), AutoModelForCausalLM.from_pretrained(language)
    pixels, ids = torch.randn(2, 3, 28, 28), torch.randint(3, 990, (2, 9))
    with torch.no_grad():
        theirs = vision.post_layernorm(vision(pixels).last_hidden_state)
        assert relative_error(owl.model.vision_model(pixels).last_hidden_state, theirs) <= 1e-5
        assert relative_error(owl(input_ids=ids).logits, text(input_ids=ids).logits) <= 1e-6
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_token_id == owl.config.image_token_id == 1000
    inputs = processor(text=["<image> What?"], images=["examples/pictures/cat.jpg"], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)
    assert processor.image_processor.image_mean == (0.1, 0.2, 0.3)
    assert owl.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    assert torch.pdist(owl.model.abstractor.query_tokens[0]).min() > 1e-3


def test_gguf_files_are_dequantised(clip, llama, tmp_path):
    """Written here in the layout of llama.cpp, where rows of q and k are interleaved and q8_0 has blocks of 32."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(2)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = LlamaForCausalLM(LlamaConfig(vocab_size=300, num_key_value_heads=2, rms_norm_eps=1e-5, **sizes)).eval()
    write_gguf(gguf, text, tmp_path / "small.gguf")
    build(str(clip), str(tmp_path / "small.gguf"), tmp_path / "out", torch.float32, num_query_tokens=8)
    owl = AutoModel.from_pretrained(tmp_path / "out")
    ids = torch.randint(3, 290, (1, 9))
    with torch.no_grad():
        assert relative_error(owl(input_ids=ids).logits, text(input_ids=ids).logits) < 0.02
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_token_id == owl.config.image_token_id >= 300


def write_gguf(gguf, model: LlamaForCausalLM, file: Path) -> None:
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    # Bytes, as GPT-2 spells them, and pairs of letters.
    letters = [chr(n) for n in range(33, 127)]
    tokens = ["<unk>", "<s>", "</s>", *letters]
    tokens += [a + b for a in letters for b in letters][: config.vocab_size - len(tokens)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges([f"{t[0]} {t[1]}" for t in tokens[3:] if len(t) == 2])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in model.state_dict().items():
        stem = name.removesuffix(".weight")
        for part, count in heads.items():
            if stem.endswith(part):
                value = value.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        kind = gguf.GGMLQuantizationType.Q8_0 if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(names.get_name(stem) + ".weight", gguf.quants.quantize(value.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


VISION_MODELS = {
    "siglip": (SiglipModel, SiglipConfig, SiglipImageProcessorPil(resample=2)),
    "dinov2": (Dinov2Model, Dinov2Config, BitImageProcessorPil(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.1])),
}


@pytest.mark.parametrize("image_size", [None, 42])
@pytest.mark.parametrize("name", VISION_MODELS)
def test_vision_models_of_other_types(name, image_size, llama, images, tmp_path):
    """In the folder are its features, for images that are prepared as it wants them."""
    kind, config, image_processor = VISION_MODELS[name]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    text = {**sizes, "vocab_size": 100}
    torch.manual_seed(0)
    both = kind(config(vision_config=vision, text_config=text) if name == "siglip" else config(**vision)).eval()
    both.save_pretrained(tmp_path / "vision")
    image_processor.save_pretrained(tmp_path / "vision")
    language = save(LANGUAGE_MODELS["llama"](), tokenizer(llama), tmp_path / "language")
    build(str(tmp_path / "vision"), str(language), tmp_path / "out", torch.float32, 8, 1, image_size=image_size)
    owl, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    side = image_size or 28
    image_processor.size, image_processor.do_center_crop = {"height": side, "width": side}, False
    # The library's pixels of tall images depend on the version of Pillow.
    images = [image for image in images if image.width >= image.height]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    assert relative_error(pixels, image_processor(images, return_tensors="pt")["pixel_values"]) <= 1e-6
    theirs = both.vision_model if name == "siglip" else both
    options = {"interpolate_pos_encoding": True} if name == "siglip" else {}
    with torch.no_grad():
        expected = theirs(pixels, **options).last_hidden_state
        features = owl.get_image_features(pixels).last_hidden_state
    assert features.shape == expected.shape
    assert relative_error(features, expected) <= 1e-5


def test_other_models_are_refused(clip, llama, tmp_path):
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="`bert` is not a vision model"):
        build(str(tmp_path / "bert"), "unread", tmp_path / "out")
    gpt = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=1000, n_embd=8, n_layer=1, n_head=2))
    save(gpt, tokenizer(llama), tmp_path / "gpt")
    with pytest.raises(ValueError, match="`openai-gpt` is not supported: it uses none of the library's caches"):
        build(str(clip), str(tmp_path / "gpt"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_language_models_own_template_is_a_choice(clip, llama, tmp_path):
    own = tokenizer(llama)
    own.chat_template = CHATML
    language = save(LANGUAGE_MODELS["llama"](), own, tmp_path / "language")
    build(str(clip), str(language), tmp_path / "out", torch.float32, num_query_tokens=8, chat_template="language_model")
    _, processor = load(str(tmp_path / "out"), "cpu")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    asked = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert asked.startswith("<|im_start|>user\n<image>")
    assert asked.endswith("What is it?<|im_end|>\n<|im_start|>assistant\n")
    (tmp_path / "own.jinja").write_text("{% for message in messages %}[{{ message['role'] }}]<image>{% endfor %}")
    for name, expected in (("original", "Human: <image>"), (str(tmp_path / "own.jinja"), "[user]")):
        _, processor = load(str(tmp_path / "out"), "cpu", chat_template=name)
        assert expected in processor.apply_chat_template(chat, tokenize=False)
    with pytest.raises(ValueError, match="has no chat template"):
        build(str(clip), str(save(LANGUAGE_MODELS["llama"](), tokenizer(llama), tmp_path / "plain")), tmp_path / "no",
              chat_template="language_model")  # fmt: skip

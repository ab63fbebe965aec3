"""Where a model looks: maps equal a plain computation from the weights, and follow an attention forced by hand."""

from concurrent.futures import ThreadPoolExecutor

import PIL.Image
import pytest
import torch
from conftest import GoldenCase, relative_error, tiny_config

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlProcessor
from transformers_owl.inference import Chat, draw_attention, image_attention


@pytest.fixture(params=["image-llama", "image-bloom"])
def case(request):
    return GoldenCase(request.param)


@pytest.fixture
def model(case):
    return MplugOwlForConditionalGeneration.from_pretrained(case.checkpoint)


@pytest.fixture
def processor(llama_processor):
    return llama_processor


def chat(images, answer="A red owl sits there."):
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def tokens(processor, messages):
    """Ids of prompt and answer, and the prompt's length."""
    prompt = processor.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answer = processor.tokenizer(messages[-1]["content"], add_special_tokens=False, return_tensors="pt")["input_ids"]
    return torch.cat([prompt["input_ids"], answer], 1), prompt["input_ids"].shape[1], prompt["pixel_values"]


def seen_by_queries(model, pixels):
    """What each query sees of each patch, from the abstractor's weights, head by head: (N, Q, patches)."""
    abstractor = model.model.abstractor
    patches = model.model.vision_model(pixels).last_hidden_state
    queries, found = abstractor.query_tokens.expand(len(pixels), -1, -1), []
    for layer in abstractor.layers:
        normed = layer.norm1(queries)
        keys = torch.cat([normed, layer.normk(patches)], dim=1)
        attention = layer.cross_attn
        for head in range(attention.num_heads):
            part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            q, k = attention.q_proj(normed)[..., part], attention.k_proj(keys)[..., part]
            found.append((q @ k.mT / attention.head_dim**0.5).softmax(-1))
        queries = layer(queries, patches)
    return torch.stack(found).mean(0)[:, :, queries.shape[1] + 1 :]


def attention_of_llama(model, hidden_states):
    """What each position attends to, from the language model's weights, head by head: (L, L)."""
    config, length, found = model.config.text_config, hidden_states[0].shape[1], []
    size = config.hidden_size // config.num_attention_heads
    angles = torch.arange(length)[:, None] * config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones_like(angles), angles)
    hidden = torch.full((length, length), -torch.inf).triu(1)
    for layer, states in zip(model.model.language_model.layers, hidden_states, strict=False):
        normed = layer.input_layernorm(states)[0]
        projected = [layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)]
        group = config.num_attention_heads // config.num_key_value_heads
        for head in range(config.num_attention_heads):
            parts = [x[:, at * size : (at + 1) * size] for x, at in zip(projected, (head, head // group), strict=True)]
            q, k = (torch.complex(*x.chunk(2, -1)) * turn for x in parts)
            found.append(((q @ k.mH).real / size**0.5 + hidden).softmax(-1))
    return torch.stack(found).mean(0)


@torch.no_grad()
def plain_maps(model, processor, messages, steps):
    """In one pass without a cache, on a model that was loaded with eager attention."""
    ids, read, pixels = tokens(processor, messages)
    output = model(input_ids=ids, pixel_values=pixels, output_attentions=True, output_hidden_states=True)
    attention = torch.cat(output.attentions).mean((0, 1))
    if model.config.text_config.model_type == "llama":
        assert relative_error(attention_of_llama(model, output.hidden_states), attention) <= 1e-5
    at = attention[[read - 1 + step for step in steps]].mean(0)[ids[0] == processor.image_token_id]
    at = at.view(len(pixels), -1)
    maps = torch.einsum("nq,nqp->np", at[:, :-1], seen_by_queries(model, pixels))
    return at, maps / maps.sum(-1, keepdim=True)


def test_maps_equal_a_plain_computation_from_the_weights(case, model, processor, images):
    messages = chat(images[:2])
    ids, read, _ = tokens(processor, messages)
    text = messages[-1]["content"]
    # A token covers what the text of the tokens up to it has more than the text of those before it.
    ends = [len(processor.decode(ids[0, read : read + count]).strip()) for count in range(ids.shape[1] - read + 1)]
    eager = MplugOwlForConditionalGeneration.from_pretrained(case.checkpoint, attn_implementation="eager")
    for word in (None, "owl", "red"):
        first, last = (0, len(text)) if word is None else (text.index(word), text.index(word) + len(word))
        steps = [step for step, end in enumerate(ends[1:]) if ends[step] < last and end > first]
        found = image_attention(model, processor, messages, word)
        positions, maps = plain_maps(eager, processor, messages, steps)
        assert len(found) == 2
        for number, one in enumerate(found):
            assert one.patches.shape == (4, 4)
            assert one.patches.sum().item() == pytest.approx(1)
            assert relative_error(one.patches.flatten(), maps[number]) <= 1e-5
            assert relative_error(one.shares, positions[number]) <= 1e-5
        assert 0 < sum(one.shares.sum() for one in found) < 1


def test_maps_differ_with_the_word_and_the_image(model, processor, images):
    messages = chat(images)
    whole, red, owl = (image_attention(model, processor, messages, word) for word in (None, "red", "owl"))
    assert len(whole) == 3
    assert relative_error(red[0].shares, owl[0].shares) > 1e-3
    assert (red[0].patches - owl[0].patches).abs().max() > 1e-6
    assert (whole[0].patches - whole[1].patches).abs().max() > 1e-6


def test_a_word_is_found_whole_before_it_is_found_in_another(model, processor, images):
    messages = chat(images[:1], "This here is it: 猫です。")
    whole_word = image_attention(model, processor, messages, "is")[0].shares
    inside = image_attention(model, processor, messages, "This")[0].shares
    assert not torch.allclose(whole_word, inside)
    assert image_attention(model, processor, messages, "猫")[0].patches.sum().item() == pytest.approx(1)


def test_the_implementation_of_attention_comes_back(model, processor, images):
    def implementations():
        return [
            module.config._attn_implementation
            for module in (model, model.model.vision_model, model.model.abstractor, model.model.language_model)
        ]

    before = implementations()
    assert before[1:3] == ["sdpa", "sdpa"]
    image_attention(model, processor, chat(images[:1]))
    assert implementations() == before
    with pytest.raises(ValueError, match="no 'dog'"):
        image_attention(model, processor, chat(images[:1]), "dog")
    assert implementations() == before


def test_the_answer_of_a_chat(model, processor, images):
    """Questions of later turns see the images of all turns."""
    talk = Chat(model, processor)
    talk.ask("What?", [images[0]], max_new_tokens=4)
    talk.ask("And this?", [images[1]], max_new_tokens=4)
    talk.messages[-1] = {"role": "assistant", "content": "It is green."}
    assert len(image_attention(model, processor, talk.messages, "green")) == 2


@torch.no_grad()
def look_at_one_patch(model, patch):
    """Every query attends to one patch alone: only it has a first channel, and only keys with one are attended to."""
    vision, abstractor = model.model.vision_model, model.model.abstractor
    for layer in vision.layers:
        for module in (layer.self_attn.out_proj, layer.mlp.fc2):
            module.weight.zero_(), module.bias.zero_()
    vision.embeddings.patch_embed.weight.zero_()
    vision.embeddings.cls_token.zero_()
    position = vision.embeddings.position_embedding
    position.zero_()
    position[:, :, 1] = 1
    position[:, 1 + patch] = torch.eye(position.shape[-1])[0]
    abstractor.query_tokens.zero_()
    abstractor.query_tokens[:, :, 1] = 1
    for layer in abstractor.layers:
        attention = layer.cross_attn
        for module in (attention.q_proj, attention.k_proj, attention.out_proj, layer.mlp.w2):
            module.weight.zero_(), module.bias.zero_()
        attention.q_proj.bias.fill_(1)
        attention.k_proj.weight[:, 0] = 20


@pytest.mark.parametrize("patch", [0, 1, 2, 3])
def test_attention_forced_to_one_patch_is_seen_there(llama_processor, images, patch):
    from transformers_owl import MplugOwlImageProcessor

    torch.manual_seed(0)
    vocabulary = len(llama_processor.tokenizer)
    config = tiny_config(
        {"vocab_size": vocabulary, "max_position_embeddings": 512},
        image_token_id=llama_processor.image_token_id,
        video_token_id=llama_processor.video_token_id,
    )
    model = MplugOwlForConditionalGeneration(config).eval()
    look_at_one_patch(model, patch)
    side = config.vision_config.image_size
    processor = MplugOwlProcessor(
        MplugOwlImageProcessor(size={"height": side, "width": side}), llama_processor.tokenizer, num_query_tokens=4
    )
    for found in image_attention(model, processor, chat(images[:2])):
        assert found.patches.argmax().item() == patch
        assert found.patches.flatten()[patch].item() == pytest.approx(1, abs=1e-4)


def test_the_drawing_is_brightest_where_the_map_is(images):
    patches = torch.zeros(4, 4)
    patches[1, 2] = 1
    image = PIL.Image.new("RGB", (80, 40), "grey")
    drawn = draw_attention(image, patches)
    assert drawn.size == (80, 40)
    brightness = drawn.convert("L").reduce((20, 10))
    levels = [brightness.getpixel((column, row)) for row in range(4) for column in range(4)]
    assert max(range(16), key=levels.__getitem__) == 6
    assert levels[6] > 1.5 * levels[15]


def test_mistakes_are_named(model, processor, images):
    with pytest.raises(ValueError, match="chat has no image: add at least one"):
        image_attention(model, processor, chat([]))
    with pytest.raises(ValueError, match="does not end with an answer"):
        image_attention(model, processor, chat(images[:1])[:1])
    with pytest.raises(ValueError, match="answer is empty"):
        image_attention(model, processor, chat(images[:1], ""))


def test_a_video_in_the_chat_is_seen_and_has_no_map(llama_processor, images):
    case = GoldenCase("video-llama")
    model = MplugOwlForConditionalGeneration.from_pretrained(case.checkpoint)
    still, other = list(images)[:2]
    maps = []
    for frames in ([still, still], [other, still]):
        messages = chat([still])
        messages[0]["content"].insert(1, {"type": "video", "video": frames})
        (found,) = image_attention(model, llama_processor, messages)
        maps.append(found.patches)
    assert not torch.equal(*maps)


def test_threads_share_a_model(model, processor, images):
    chats = [chat(images[:1]), chat(images[:2], "Two owls."), chat(images[1:2], "One.")] * 4
    alone = [image_attention(model, processor, messages) for messages in chats[:3]]
    before = model.config.text_config._attn_implementation
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda messages: image_attention(model, processor, messages), chats))
    assert model.config.text_config._attn_implementation == before
    for number, maps in enumerate(found):
        for one, other in zip(maps, alone[number % 3], strict=True):
            assert torch.equal(one.patches, other.patches)

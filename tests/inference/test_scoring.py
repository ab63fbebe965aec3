"""Scores of given answers equal what a plain pass over prompt and answer says."""

import pytest
import torch
from conftest import tiny_config

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.inference import score_answers


def ask(text, *images):
    return [
        {"role": "user", "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": text}]}
    ]


@pytest.fixture
def chats(images):
    return [ask("What?", images[0]), ask("Which?"), ask("Compare", images[1], images[2])]


ANSWERS = [["red", "It is a blue thing, and green too.", ""], ["yes", "no"], ["the first"]]


def plain_score(model, processor, chat, answer):
    prompt = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = [*processor.tokenizer(answer, add_special_tokens=False)["input_ids"], 2]
    inputs = {**prompt, "input_ids": torch.cat([prompt["input_ids"], torch.tensor([ids])], dim=1)}
    inputs.pop("attention_mask")
    with torch.no_grad():
        log_probabilities = model(**inputs).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
    return sum(log_probabilities[at, token].item() for at, token in enumerate(ids)), len(ids)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_equal_a_plain_pass(llama_model, llama_processor, chats, batch_size):
    scores = score_answers(llama_model, llama_processor, chats, ANSWERS, batch_size=batch_size)
    assert [len(row) for row in scores] == [3, 2, 1]
    for chat, answers, row in zip(chats, ANSWERS, scores, strict=True):
        for answer, score in zip(answers, row, strict=True):
            expected, length = plain_score(llama_model, llama_processor, chat, answer)
            assert score.log_likelihood == pytest.approx(expected, abs=2e-4)
            assert score.num_tokens == length


def test_images_are_looked_at_once_a_chat(llama_model, llama_processor, chats):
    passes = []
    hook = llama_model.model.vision_model.register_forward_hook(lambda module, args, out: passes.append(len(args[0])))
    score_answers(llama_model, llama_processor, chats, ANSWERS, batch_size=2)
    hook.remove()
    assert passes == [1, 2]


def test_the_greedy_answer_is_known_as_such(llama_processor, images, monkeypatch):
    """A model that always writes EOS finds the empty answer greedy, and no other."""
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration(
        tiny_config({"vocab_size": 1000}, vision_config={"image_size": 56}, num_query_tokens=64)
    ).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: torch.eye(1000)[2].expand(*hidden.shape[:-1], -1))
    empty, other = score_answers(model, llama_processor, [ask("Hi", images[0])], [["", "yes"]])[0]
    assert (empty.is_greedy, other.is_greedy) == (True, False)
    assert empty.log_likelihood == pytest.approx(torch.eye(1000)[2].log_softmax(-1)[2].item())


def test_mistakes_are_named(llama_model, llama_processor, chats):
    with pytest.raises(ValueError, match="3 chats and 1 lists of answers"):
        score_answers(llama_model, llama_processor, chats, [["a"]])


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "opt", "gpt_neox"])
def test_scores_do_not_depend_on_the_batch(llama_processor, chats, family):
    """Also for language models with learned positions, which would count the padding on the left."""
    torch.manual_seed(0)
    text = {
        "model_type": family, "vocab_size": 1000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "n_layer": 2, "n_head": 4, "ffn_dim": 48, "word_embed_proj_dim": 32, "intermediate_size": 48,
        "num_key_value_heads": 4, "max_position_embeddings": 512,
    }  # fmt: skip
    base = tiny_config(vision_config={"image_size": 56}, num_query_tokens=64)
    ids = {"image_token_id": llama_processor.image_token_id, "video_token_id": llama_processor.video_token_id}
    model = MplugOwlForConditionalGeneration(type(base)(**{**base.to_dict(), "text_config": text, **ids})).eval()
    alone, together = (
        [
            score.log_likelihood
            for row in score_answers(model, llama_processor, chats, ANSWERS, batch_size=size)
            for score in row
        ]
        for size in (1, 8)
    )
    assert together == pytest.approx(alone, abs=2e-4)

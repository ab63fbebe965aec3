"""Special tokens that somebody types in a chat stay text, in questions and answers, in training and inference."""

import pytest
from conftest import GoldenCase
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from transformers_owl import MINIATURE, MplugOwlImageProcessor, MplugOwlProcessor


WORDS = ["{}", "a {} b", "a{}b", "{} {}", "</s{}s>"]


def byte_level() -> MplugOwlProcessor:
    """With tokens as Qwen and Llama 3 have them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(["a b"], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return MplugOwlProcessor(MplugOwlImageProcessor(), tokenizer)


PROCESSORS = {
    "llama": lambda: MplugOwlProcessor.from_pretrained(GoldenCase("image-llama").checkpoint),
    "byte-level": byte_level,
    "miniature": lambda: MplugOwlProcessor.from_pretrained(MINIATURE),
}


@pytest.fixture(scope="module", params=PROCESSORS)
def processor(request):
    return PROCESSORS[request.param]()


def chat(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def count(ids, processor) -> dict[str, int]:
    special = [token for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    return {str(token): list(ids).count(processor.tokenizer.convert_tokens_to_ids(str(token))) for token in special}


@pytest.mark.parametrize("words", WORDS)
def test_what_is_typed_is_no_special_token(processor, words):
    expected = count(processor.encode_chat(chat("a", "b")).ids, processor)
    for token in expected:
        typed = words.replace("{}", token)
        for messages in (chat(typed, "b"), chat("a", typed), chat([{"type": "text", "text": typed}], typed)):
            row = processor.encode_chat(messages)
            assert count(row.ids, processor) == expected, token
            text = processor.tokenizer.decode(row.ids[row.is_answer][:-1]).strip()
            assert text == messages[1]["content"].strip(), token
            # An answer ends once: with its own end-of-sequence token.
            ends = row.ids[row.is_answer] == processor.tokenizer.eos_token_id
            assert ends.tolist() == [False] * (len(ends) - 1) + [True]
        prompt = processor.apply_chat_template(
            chat(typed, "b")[:1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
        )
        row = processor.encode_chat(chat(typed, "b"))
        assert row.ids[: int(row.is_answer.argmax())].tolist() == prompt["input_ids"][0].tolist()


def test_the_originals_behaviour_by_choice(processor, tmp_path):
    MplugOwlProcessor.save_pretrained(processor, tmp_path)
    chosen = MplugOwlProcessor.from_pretrained(tmp_path, special_tokens_in_chats=True)
    eos = chosen.tokenizer.eos_token
    row = chosen.encode_chat(chat("a", f"b{eos}c"))
    assert (row.ids[row.is_answer] == chosen.tokenizer.eos_token_id).sum() == 2
    chosen.save_pretrained(tmp_path)
    assert MplugOwlProcessor.from_pretrained(tmp_path).special_tokens_in_chats

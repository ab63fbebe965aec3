"""The tokenizer gives the original's ids: every chunk between placeholders by itself, BOS once."""

import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoProcessor, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from transformers_owl import MplugOwlProcessor, MplugOwlTokenizer
from transformers_owl.mplug_owl.tokenization_mplug_owl import BOUNDARY, ESCAPE, prepare_tokenizer


@pytest.fixture(scope="module")
def tokenizer(llama):
    return AutoTokenizer.from_pretrained(llama.checkpoint)


@pytest.fixture(scope="module")
def byte_level():
    """A tokenizer of Bloom's kind: bytes, no normalizer, no BOS by itself, fewer entries than a model has rows."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["Human: what is this? AI: It is a cat."] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def by_the_book(text: str, model: sentencepiece.SentencePieceProcessor) -> list[int]:
    """The original's way, by SentencePiece itself."""
    ids = [1]
    for chunk in re.split(r"(<image>|<\|video\|>)", text):
        special = {"<image>": [1000], "<|video|>": [1001]}
        ids += special.get(chunk) or (model.encode(chunk) if chunk else [])
    return ids


words = st.sampled_from(
    ["Human: ", "AI: ", "\n", " ", "  ", "<image>", "<|video|>", "the", "중", "é", "<", "?", "\t", "😀"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(words | st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=5), max_size=12))
def test_ids_equal_sentencepiece_chunk_by_chunk(llama, tokenizer, parts):
    model = sentencepiece.SentencePieceProcessor(f"{llama.checkpoint}/tokenizer.model")
    text = "".join(parts)
    assert tokenizer(text)["input_ids"] == by_the_book(text, model)


def test_auto_tokenizer_and_ours_agree_and_are_plain(llama, tokenizer):
    ours = MplugOwlTokenizer.from_pretrained(llama.checkpoint)
    assert type(ours).__name__ == type(tokenizer).__name__ == "TokenizersBackend"
    assert ours("Hi <image> you")["input_ids"] == tokenizer("Hi <image> you")["input_ids"]
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.bos_token) == ("left", "<unk>", "<s>")


def test_a_plain_llama_tokenizer_is_put_right(llama, tokenizer):
    """The library loads the release with other ids (no BOS, no space piece after a placeholder)."""
    plain = LlamaTokenizer.from_pretrained(llama.checkpoint)
    text = "Hi <image>you"
    assert plain(text)["input_ids"][0] != 1
    assert prepare_tokenizer(plain)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert "<image>" not in plain.get_vocab()


def test_a_prepared_tokenizer_comes_back_as_it_is(tokenizer):
    assert prepare_tokenizer(tokenizer) is tokenizer


def test_escaped_placeholders_are_text(tokenizer):
    ids = tokenizer(f"a <{ESCAPE}image> b")["input_ids"]
    assert tokenizer.decode(ids) == "<s> a <image> b"
    assert tokenizer.convert_tokens_to_ids("<image>") not in ids


def test_what_follows_a_boundary_is_tokenized_by_itself(tokenizer):
    prompt, answer = tokenizer("Is it? AI: ")["input_ids"], tokenizer("It is")["input_ids"][1:]
    assert tokenizer(f"Is it? AI: {BOUNDARY}It is")["input_ids"] == prompt + answer
    assert tokenizer("Is it? AI: It is")["input_ids"] != prompt + answer
    assert tokenizer(f"Is it? AI: {BOUNDARY}</s>")["input_ids"] == [*prompt, 2]


def test_byte_level_tokenizers_get_placeholders_inside_the_models_vocabulary(byte_level, tmp_path):
    prepared = prepare_tokenizer(byte_level)
    assert len(byte_level) <= prepared.convert_tokens_to_ids("<image>") < len(byte_level) + 2
    text = f"What <image> is <{ESCAPE}image>? AI: "
    ids = prepared(text + BOUNDARY + "It is")["input_ids"]
    assert ids == prepared(text)["input_ids"] + prepared("It is")["input_ids"][1:]
    assert prepared.decode(ids) == "<s>What <image> is <image>? AI: It is"
    assert ids.count(prepared.convert_tokens_to_ids("<image>")) == 1
    prepared.save_pretrained(tmp_path)
    again = MplugOwlTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == prepared(text)["input_ids"]


TEXT = "Hi <x> <image> there"
APPLIED = {
    "padding_side": ("right", lambda tokenizer: tokenizer.padding_side),
    "truncation_side": ("left", lambda tokenizer: tokenizer.truncation_side),
    "add_eos_token": (True, lambda tokenizer: tokenizer(TEXT)["input_ids"][-1] == 2),
    "add_bos_token": (False, lambda tokenizer: tokenizer(TEXT)["input_ids"][0] == 1),
    "clean_up_tokenization_spaces": (True, lambda tokenizer: tokenizer.clean_up_tokenization_spaces),
    "model_max_length": (99, lambda tokenizer: tokenizer.model_max_length),
    "pad_token": ("</s>", lambda tokenizer: tokenizer.pad_token),
    "extra_special_tokens": (["<x>"], lambda tokenizer: ["<x>"] if 1002 in tokenizer(TEXT)["input_ids"] else []),
    "additional_special_tokens": (["<x>"], lambda tokenizer: ["<x>"] if 1002 in tokenizer(TEXT)["input_ids"] else []),
}


@pytest.mark.parametrize("road", [MplugOwlTokenizer, AutoTokenizer], ids=["ours", "auto"])
@pytest.mark.parametrize("saved", [False, True], ids=["release", "saved"])
@pytest.mark.parametrize("name", APPLIED)
def test_arguments_at_loading_are_applied(llama, tokenizer, name, saved, road, tmp_path):
    folder = llama.checkpoint
    if saved:
        MplugOwlProcessor.from_pretrained(folder).save_pretrained(tmp_path)
        folder = tmp_path
    value, read = APPLIED[name]
    assert read(tokenizer) != value
    loaded = road.from_pretrained(folder, **{name: value})
    assert read(loaded) == value
    assert loaded.convert_tokens_to_ids(["<image>", "<|video|>"]) == [1000, 1001]


def test_special_tokens_with_names_of_their_own_are_refused(llama):
    with pytest.raises(ValueError, match=r"extra_special_tokens is .*, but must be a list of special tokens"):
        MplugOwlTokenizer.from_pretrained(llama.checkpoint, extra_special_tokens={"own_token": "<x>"})


@pytest.mark.parametrize("road", [MplugOwlTokenizer, AutoTokenizer, MplugOwlProcessor, AutoProcessor])
@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("tokenizer.model", "has no tokenizer.json or tokenizer.model"),
        ("tokenizer_config.json", "has no tokenizer_config.json"),
    ],
)
def test_a_folder_that_lacks_a_file_of_the_tokenizer_is_refused(llama, gone, named, road, tmp_path):
    for file in Path(llama.checkpoint).iterdir():
        if file.name != gone:
            shutil.copy(file, tmp_path)
    with pytest.raises(OSError, match=named):
        road.from_pretrained(tmp_path)


def test_a_releases_tokenizer_has_the_template_before_it_is_saved_and_after(llama, tmp_path):
    processor = MplugOwlProcessor.from_pretrained(llama.checkpoint)
    assert processor.tokenizer.chat_template == processor.chat_template
    processor.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == processor.chat_template

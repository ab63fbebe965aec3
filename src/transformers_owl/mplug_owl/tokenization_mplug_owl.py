# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of mPLUG-Owl: the language model's own one, made to give the ids that the original gave.

The original cut a prompt at its placeholders and tokenized every chunk by itself. A `tokenizers` pipeline does the
same if the placeholders are special tokens and a SentencePiece model puts its space piece before every chunk.
All of it is data in `tokenizer.json`: a saved folder loads as a plain `TokenizersBackend`, without code of ours.
"""

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from .configuration_mplug_owl import expect
from .library_mplug_owl import (
    HUB_NAMES,
    TokenizersBackend,
    cached_file,
    get_tokenizer_config,
    tokenizer_class_from_name,
)


IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<|video|>"

# Two Unicode noncharacters, which no text contains. Neither becomes a token.
ESCAPE = "\ufdd0"  # inside a placeholder: somebody typed it, it is text
BOUNDARY = "\ufdd1"  # what follows is tokenized by itself, as an answer is when the model writes it
SPACE_PIECE = "▁"

# What an argument at loading may say otherwise, and what holds where it does not.
SETTINGS = {
    "padding_side": "left",
    "truncation_side": "right",
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
}


class MplugOwlTokenizer(TokenizersBackend):
    """
    Loads the tokenizer of a folder or repository, also of an original release, and prepares it for mPLUG-Owl by
    [`prepare_tokenizer`]. The result is a `TokenizersBackend`.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *inputs, **kwargs):
        """
        As in the library. Added special tokens get ids after the placeholders.

        Raises:
            OSError: if a file is missing without which the ids would differ.
            ValueError: for named special tokens (a `dict`).
        """
        hub_kwargs = {name: kwargs[name] for name in HUB_NAMES if name in kwargs}
        settings = get_tokenizer_config(pretrained_model_name_or_path, **hub_kwargs)
        tokenizer_class = tokenizer_class_from_name(settings.get("tokenizer_class", "").removesuffix("Fast"))
        if tokenizer_class is None or issubclass(tokenizer_class, cls):
            tokenizer_class = TokenizersBackend
        if "gguf_file" not in kwargs:
            vocabularies = sorted({*tokenizer_class.vocab_files_names.values(), "tokenizer.json"})
            for names in (["tokenizer_config.json"], vocabularies):
                if not any(_has_file(pretrained_model_name_or_path, name, **hub_kwargs) for name in names):
                    raise OSError(
                        f"{pretrained_model_name_or_path} has no {' or '.join(names)}, without which the token ids "
                        "would be wrong: copy it from the source of the checkpoint, or from the release that it was "
                        "trained from."
                    )
        names = [name for name in ("extra_special_tokens", "additional_special_tokens") if name in kwargs]
        extra = {name: kwargs.pop(name) for name in names}
        tokenizer = tokenizer_class.from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs)
        given = {name: kwargs[name] for name in ("add_bos_token", *SETTINGS) if name in kwargs}
        tokenizer = prepare_tokenizer(tokenizer, **given)
        for name, tokens in extra.items():
            expect(not isinstance(tokens, dict), name, tokens, "a list of special tokens")
            tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
        return tokenizer


def _has_file(path, name: str, **hub_kwargs) -> bool:
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub_kwargs) is not None


def prepare_tokenizer(tokenizer: TokenizersBackend, **settings) -> TokenizersBackend:
    """
    A tokenizer with the ids of the original's prompts: BOS once and in front, every chunk between placeholders by
    itself, `<image>` and `<|video|>` as special tokens after the vocabulary, padding on the left.

    Args:
        tokenizer (`TokenizersBackend`): The tokenizer of any supported language model. A prepared one is returned
            unchanged; any other is not modified, and a new one is returned.
        settings: Overrides of `add_bos_token` and the settings in `SETTINGS`.
    """
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None and ESCAPE not in backend.normalizer.normalize_str(ESCAPE):
        return tokenizer
    backend = Tokenizer.from_str(backend.to_str())
    drop_escapes = normalizers.Replace(ESCAPE, "")
    cut = pre_tokenizers.Split(BOUNDARY, "removed")
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.normalizer = normalizers.Sequence(
            [
                drop_escapes,
                normalizers.Replace(Regex(f"{BOUNDARY}(?=[^{BOUNDARY}])"), BOUNDARY + SPACE_PIECE),
                normalizers.Prepend(SPACE_PIECE),
                normalizers.Replace(" ", SPACE_PIECE),
            ]
        )
        backend.pre_tokenizer = cut
    else:
        backend.normalizer = normalizers.Sequence([drop_escapes, *filter(None, [backend.normalizer])])
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, *filter(None, [backend.pre_tokenizer])])
    prepared = TokenizersBackend(
        tokenizer_object=backend,
        **{"pad_token": tokenizer.unk_token or tokenizer.eos_token, **tokenizer.special_tokens_map},
        model_max_length=tokenizer.model_max_length,
        chat_template=tokenizer.chat_template,
        **{"add_bos_token": tokenizer.bos_token is not None, **SETTINGS, **settings},
    )
    # Found before the normalizer, as the original found them, so that an escape inside one keeps it text.
    named = [str(token) for token in prepared.added_tokens_decoder.values() if token.special and token.normalized]
    prepared.add_tokens([AddedToken(token, special=True, normalized=False) for token in named], special_tokens=True)
    prepared.add_tokens([AddedToken(token, special=True, normalized=False) for token in (IMAGE_TOKEN, VIDEO_TOKEN)])
    return prepared

"""The tokenizer of mPLUG-Owl: the language model's own one, made to give the ids that the original gave.

The original cut a prompt at its placeholders and tokenized every chunk by itself. A `tokenizers` pipeline does the
same if the placeholders are special tokens and a SentencePiece model puts its space piece before every chunk.
All of it is data in `tokenizer.json`: a saved folder loads as a plain `TokenizersBackend`, without code of ours.
"""

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from .library_mplug_owl import TokenizersBackend, get_tokenizer_config, tokenizer_class_from_name


IMAGE_TOKEN = "<image>"
VIDEO_TOKEN = "<|video|>"

# Two Unicode noncharacters, which no text contains. Neither becomes a token.
ESCAPE = "\ufdd0"  # inside a placeholder: somebody typed it, it is text
BOUNDARY = "\ufdd1"  # what follows is tokenized by itself, as an answer is when the model writes it
SPACE_PIECE = "▁"


class MplugOwlTokenizer(TokenizersBackend):
    """
    Loads the tokenizer of a folder or repository, also of an original release, and prepares it for mPLUG-Owl.

    What comes back is a `TokenizersBackend`; see [`prepare_tokenizer`] for what it does.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *inputs, **kwargs):
        hub_kwargs = {key: kwargs[key] for key in ("cache_dir", "token", "revision", "subfolder") if key in kwargs}
        name = get_tokenizer_config(pretrained_model_name_or_path, **hub_kwargs).get("tokenizer_class", "")
        tokenizer_class = tokenizer_class_from_name(name.removesuffix("Fast")) or TokenizersBackend
        if issubclass(tokenizer_class, cls):
            tokenizer_class = TokenizersBackend
        return prepare_tokenizer(tokenizer_class.from_pretrained(pretrained_model_name_or_path, *inputs, **kwargs))


def prepare_tokenizer(tokenizer: TokenizersBackend) -> TokenizersBackend:
    """
    A tokenizer with the ids of the original's prompts: BOS once and in front, every chunk between placeholders by
    itself, `<image>` and `<|video|>` as special tokens after the vocabulary, padding on the left.

    Args:
        tokenizer (`TokenizersBackend`): The tokenizer of any supported language model. A prepared one comes back as
            it is; any other is left alone and a new one comes back.
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
        add_bos_token=tokenizer.bos_token is not None,
        padding_side="left",
        model_max_length=tokenizer.model_max_length,
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
    )
    # Found before the normalizer, as the original found them, so that an escape inside one keeps it text.
    named = [str(token) for token in prepared.added_tokens_decoder.values() if token.special and token.normalized]
    prepared.add_tokens([AddedToken(token, special=True, normalized=False) for token in named], special_tokens=True)
    prepared.add_tokens([AddedToken(token, special=True, normalized=False) for token in (IMAGE_TOKEN, VIDEO_TOKEN)])
    return prepared

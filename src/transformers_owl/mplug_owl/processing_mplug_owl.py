"""The processor of mPLUG-Owl: prompts with placeholders and pictures to the model's inputs."""

import difflib
import functools
import inspect
from typing import Any

import jinja2
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers.configuration_utils import PreTrainedConfig
from transformers.processing_utils import (
    AudioKwargs,
    ImagesKwargs,
    MultiModalData,
    ProcessingKwargs,
    ProcessorMixin,
    TextKwargs,
    VideosKwargs,
)

from .image_processing_mplug_owl import MplugOwlImageProcessor
from .tokenization_mplug_owl import BOUNDARY, ESCAPE, IMAGE_TOKEN, VIDEO_TOKEN, prepare_tokenizer


SYSTEM_SENTENCE = (
    "The following is a conversation between a curious human and AI assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)

# The original's prompts. With `add_generation_prompt` earlier answers stand as the original's inference had them;
# without, as training has them: each answer tokenized by itself and followed by EOS.
CHAT_TEMPLATE = """\
{%- macro typed(text) -%}
    {{- text | replace(IMAGE, ESCAPED_IMAGE) | replace(VIDEO, ESCAPED_VIDEO) | replace(BOUNDARY, '') -}}
{%- endmacro -%}
{%- macro joined(content) -%}
    {%- if content is string -%}
        {{- typed(content) -}}
    {%- else -%}
        {%- for part in content -%}{{- typed(part.text) -}}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if messages[0].role == 'system' -%}
    {{- joined(messages[0].content) -}}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {{- SYSTEM -}}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if message.role == 'user' and message.content is string -%}
        {{- '\\nHuman: ' + typed(message.content) -}}
    {%- elif message.role == 'user' -%}
        {%- for part in message.content -%}
            {%- if part.type == 'image' -%}
                {{- '\\nHuman: ' + IMAGE -}}
            {%- elif part.type == 'video' -%}
                {{- '\\nHuman: ' + VIDEO -}}
            {%- else -%}
                {{- '\\nHuman: ' + typed(part.text) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- elif message.role == 'assistant' and add_generation_prompt -%}
        {{- '\\nAI: ' + joined(message.content) -}}
    {%- elif message.role == 'assistant' -%}
        {{- '\\nAI: ' -}}
        {%- generation -%}
            {{- BOUNDARY + joined(message.content) + eos_token -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- raise_exception("The roles are system (first message only), user and assistant, not " + message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '\\nAI: ' -}}
{%- endif -%}
"""
_LITERALS = {
    "ESCAPED_IMAGE": IMAGE_TOKEN[0] + ESCAPE + IMAGE_TOKEN[1:],
    "ESCAPED_VIDEO": VIDEO_TOKEN[0] + ESCAPE + VIDEO_TOKEN[1:],
    "BOUNDARY": BOUNDARY,
    "IMAGE": IMAGE_TOKEN,
    "VIDEO": VIDEO_TOKEN,
    "SYSTEM": SYSTEM_SENTENCE,
}
for _name, _value in _LITERALS.items():
    CHAT_TEMPLATE = CHAT_TEMPLATE.replace(_name, ascii(_value) if "'" not in _value else f'"{_value}"')


class MplugOwlProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True}}


# What a call may name: all that the library knows, the ones that come from `apply_chat_template` included, but for
# what would give rows or positions that fit no picture.
ARGUMENT_GROUPS = {
    "text_kwargs": TextKwargs,
    "images_kwargs": ImagesKwargs,
    "videos_kwargs": VideosKwargs,
    "audio_kwargs": AudioKwargs,
    "common_kwargs": ProcessingKwargs,
}
CALL_ARGUMENTS = frozenset(ARGUMENT_GROUPS).union(
    *(kwargs.__annotations__ for kwargs in ARGUMENT_GROUPS.values()),
    ("return_metadata", "load_audio_from_video", "audio_from_video_indices"),
) - {
    "text_pair", "text_target", "text_pair_target", "is_split_into_words", "return_overflowing_tokens", "stride",
    "sanitize_control_tokens",
}  # fmt: skip
UNUSED = frozenset({"tools", "documents", "load_audio_from_video", "sanitize_control_tokens"})
TEMPLATE_ARGUMENTS = CALL_ARGUMENTS.union(inspect.signature(ProcessorMixin.apply_chat_template).parameters) - UNUSED
LONGEST = 2**20  # positions of a row
PICTURE_SOURCES = ("image", "url", "path", "base64")


class MplugOwlProcessor(ProcessorMixin):
    r"""
    Turns prompts and pictures into the inputs of [`MplugOwlForConditionalGeneration`].

    In `text=` every `<image>` stands for one picture, in order; a chat goes through `apply_chat_template`, where a
    typed `<image>` stays text. Rows are padded on the left.

    Args:
        image_processor ([`MplugOwlImageProcessor`]): Prepares the pictures.
        tokenizer (`TokenizersBackend`): Of the language model; it is prepared as [`prepare_tokenizer`] says.
        chat_template (`str`, *optional*): A Jinja template in place of the original's prompts.
        num_query_tokens (`int`, defaults to 64): Queries of the model's abstractor; a picture takes one position more.

    Calling it gives `input_ids` and `attention_mask` (rows, positions), and `pixel_values` (pictures, 3, height,
    width) with the pictures of all rows one after the other.

    Raises:
        ValueError: for pictures that do not match the placeholders in number, for unknown arguments, and for anything
            that is no text or no picture.
    """

    valid_processor_kwargs = MplugOwlProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, num_query_tokens: int = 64):
        tokenizer = prepare_tokenizer(tokenizer)
        self.num_query_tokens = num_query_tokens
        self.auto_map = {"AutoProcessor": "processing_mplug_owl.MplugOwlProcessor"}
        self.image_token = IMAGE_TOKEN
        self.video_token = VIDEO_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads the folder's settings; an original release has none, and may name an image processor that crops."""
        settings, remaining = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "num_query_tokens" not in settings:
            config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
            settings["num_query_tokens"] = config.get("num_query_tokens", 64)
            remaining["image_processor"] = MplugOwlImageProcessor.from_pretrained(
                pretrained_model_name_or_path, **kwargs
            )
        return settings, remaining

    def prepare_inputs_layout(self, images=None, text: Any = None, **kwargs):
        rows: Any = [text] if isinstance(text, str) else text
        is_text = isinstance(rows, (list, tuple)) and len(rows) > 0 and all(isinstance(row, str) for row in rows)
        if rows is not None and not is_text:
            raise ValueError(f"`text` is {text!r:.80}, but a string or a list of strings, not empty, was expected.")
        for row in rows or []:
            try:
                row.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"`text` has half a character (a lone surrogate): {error}") from error
        return super().prepare_inputs_layout(images=images, text=rows, **kwargs)

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        if videos is not None or audio is not None:
            kind = "videos" if videos is not None else "audio"
            raise ValueError(f"`{kind}` was given, but this processor prepares pictures and text.")
        groups = [(name, kwargs[name]) for name in ARGUMENT_GROUPS if name in kwargs]
        for name, group in groups:
            if not isinstance(group, dict):
                raise ValueError(f"`{name}` is {group!r:.80}, but a dictionary of arguments was expected.")
        check_names(set(kwargs).union(*(group for _, group in groups)), CALL_ARGUMENTS)
        if text is not None:
            self._check_counts(images, text)
            if any(self.video_token in row for row in text):
                raise ValueError(f"The text has a placeholder {self.video_token}, but no videos were given.")
        super().validate_inputs(images=images, text=text, **kwargs)

    def _check_counts(self, images, text: list[str]) -> None:
        """Every placeholder has its picture: in all rows together, and row by row where pictures come row by row."""
        found = [row.count(self.image_token) for row in text]
        pictures = images if isinstance(images, list) else [] if images is None else [images]
        given = [len(row) if isinstance(row, list) else 1 for row in pictures]
        if not any(isinstance(row, list) for row in pictures):
            found, given = [sum(found)], [len(pictures)]
        if found != given:
            raise ValueError(
                f"The number of {self.image_token} tokens in the prompts should be the same as the number of pictures, "
                f"but there are {found} and {given}. Write one {self.image_token} for each picture, where it belongs."
            )

    def _merge_kwargs(self, *args, **kwargs):
        """As in the library, but a ValueError for arguments of another type, or in a group that has no such name."""
        try:
            merged = super()._merge_kwargs(*args, **kwargs)
            merged["text_kwargs"] = {name: value for name, value in merged["text_kwargs"].items() if value is not None}
            validate_typed_dict(TextKwargs, merged["text_kwargs"])  # type: ignore[type-var]
        except (StrictDataclassFieldValidationError, TypeError) as error:
            raise ValueError(f"MplugOwlProcessor cannot work with these arguments: {error}") from error
        for name in ("max_length", "pad_to_multiple_of"):
            number = merged["text_kwargs"].get(name)
            if number is not None and not 0 < number <= LONGEST:
                raise ValueError(f"`{name}` is {number}, but a number from 1 to {LONGEST} was expected.")
        return merged

    @functools.wraps(ProcessorMixin.apply_chat_template)
    def apply_chat_template(self, conversation, chat_template=None, tools=None, documents=None, *args, **kwargs):
        check_chats(conversation)
        if chat_template is not None and not isinstance(chat_template, str):
            raise ValueError(f"`chat_template` is {chat_template!r:.80}, but a string was expected.")
        call = kwargs.get("processor_kwargs") or {}
        if not isinstance(call, dict):
            raise ValueError(f"`processor_kwargs` is {call!r:.80}, but a dictionary of arguments was expected.")
        check_names(set(call), CALL_ARGUMENTS)
        # What the template has no word for would change nothing. The library would fetch the sound of videos by itself.
        unused = {"tools": tools, "documents": documents, **{name: kwargs[name] for name in UNUSED & set(kwargs)}}
        given = {name for name in {**unused, **kwargs} if name not in unused or unused[name]}
        template = f"{self.chat_template} {chat_template}"
        check_names({name for name in given if name == "text" or name not in template}, TEMPLATE_ARGUMENTS)
        try:
            return super().apply_chat_template(
                conversation, chat_template, tools or None, documents or None, *args, **kwargs
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"The chat does not fit the chat template: {error}") from error

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * (self.num_query_tokens + 1)

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        positions = [self.num_query_tokens + 1] * len(image_sizes)
        return MultiModalData(num_image_tokens=positions, num_image_patches=[1] * len(image_sizes))


def check_names(names: set, known: frozenset[str]) -> None:
    """Raises a ValueError for names of arguments that are not known."""
    for name in names - known:
        nearest = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
        raise ValueError(f"`{name}` is no argument of MplugOwlProcessor.{hint}")


def check_chats(conversation) -> None:
    """Raises a ValueError that says which message of a chat, or of a list of chats, is not as it should be."""
    is_batch = isinstance(conversation, (list, tuple)) and conversation and isinstance(conversation[0], (list, tuple))
    for chat in conversation if is_batch else [conversation]:
        if not isinstance(chat, (list, tuple)) or not chat:
            raise ValueError(f"A chat is {chat!r:.80}, but a list of messages, not empty, was expected.")
        for message in chat:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise ValueError(
                    f"A message is {message!r:.80}, but a dictionary with `role` and `content` was expected."
                )
            content = message.get("content")
            if not isinstance(content, (str, list, tuple)) or content in ([], ()):
                raise ValueError(
                    f"The content of a message is {content!r:.80}, but a string or a list of parts, not empty, was "
                    "expected."
                )
            for part in [] if isinstance(content, str) else content:
                _check_part(part, message["role"])


def _check_part(part, role: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return
    if kind in ("image", "video") or (kind == "image_url" and "image_url" in part):
        if role != "user":
            raise ValueError(f"A message of role {role} has a part of type {kind}: put it into a message of role user.")
        sources = [name for name in PICTURE_SOURCES if name in part]
        if len(sources) > 1:
            raise ValueError(f"A part of type {kind} has {' and '.join(sources)}: give one of them.")
        return
    raise ValueError(
        f"A part of a message is {part!r:.80}, but {{'type': 'text', 'text': ...}} or {{'type': 'image', 'path': ...}} "
        f"(or one of {', '.join(PICTURE_SOURCES)} in place of path) was expected."
    )


MplugOwlProcessor.register_for_auto_class()

__all__ = ["MplugOwlProcessor"]

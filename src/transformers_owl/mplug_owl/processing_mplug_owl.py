"""The processor of mPLUG-Owl: prompts with placeholders, pictures and videos to the model's inputs."""

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
)

from .image_processing_mplug_owl import MplugOwlImageProcessor
from .library_mplug_owl import VideoProcessorMixin
from .tokenization_mplug_owl import (
    BOUNDARY,
    ESCAPE,
    IMAGE_TOKEN,
    VIDEO_TOKEN,
    MplugOwlTokenizer,
    prepare_tokenizer,
)
from .video_processing_mplug_owl import MplugOwlVideoProcessor, MplugOwlVideosKwargs, videos_by_row


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
    videos_kwargs: MplugOwlVideosKwargs
    _defaults = {"text_kwargs": {"padding": True}}


# What a call may name: all that the library knows, the ones that come from `apply_chat_template` included, but for
# what would give rows or positions that fit no picture.
ARGUMENT_GROUPS = {
    "text_kwargs": TextKwargs,
    "images_kwargs": ImagesKwargs,
    "videos_kwargs": MplugOwlVideosKwargs,
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
VIDEO_SOURCES = ("video", "url", "path")


class MplugOwlProcessor(ProcessorMixin):
    r"""
    Turns prompts, pictures and videos into the inputs of [`MplugOwlForConditionalGeneration`].

    In `text=` every `<image>` stands for one picture and every `<|video|>` for one video, in order; a chat goes through
    `apply_chat_template`, where a typed placeholder stays text. Rows are padded on the left.

    Args:
        image_processor ([`MplugOwlImageProcessor`]): Prepares the pictures.
        tokenizer (`TokenizersBackend`): Of the language model; it is prepared as [`prepare_tokenizer`] says.
        video_processor ([`MplugOwlVideoProcessor`], *optional*): Prepares the videos; by default as the pictures.
        chat_template (`str`, *optional*): A Jinja template in place of the original's prompts.
        num_query_tokens (`int`, defaults to 64): Queries of the model's abstractor; a picture or a video takes one
            position more.

    Calling it gives `input_ids` and `attention_mask` (rows, positions), `pixel_values` (pictures, 3, height, width)
    with the pictures of all rows one after the other, and `pixel_values_videos` (videos, frames, 3, height, width).
    `num_frames`, `fps` or `timestamps` choose the frames: see [`MplugOwlVideoProcessor`].

    Raises:
        ValueError: for pictures or videos that do not match the placeholders in number, for unknown arguments, and for
            anything that is no text, picture or video.
    """

    valid_processor_kwargs = MplugOwlProcessorKwargs

    def __init__(
        self, image_processor=None, tokenizer=None, video_processor=None, chat_template=None, num_query_tokens: int = 64
    ):
        tokenizer = prepare_tokenizer(tokenizer)
        if video_processor is None:
            names = ("size", "resample", "image_mean", "image_std")
            video_processor = MplugOwlVideoProcessor(**{name: getattr(image_processor, name) for name in names})
        self.num_query_tokens = num_query_tokens
        self.auto_map = {"AutoProcessor": "processing_mplug_owl.MplugOwlProcessor"}
        self.image_token = IMAGE_TOKEN
        self.video_token = VIDEO_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads the folder's settings; an original release has none."""
        settings, remaining = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "num_query_tokens" not in settings:
            config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
            settings["num_query_tokens"] = config.get("num_query_tokens", 64)
        return settings, remaining

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """The parts that a folder has; an original release has none for videos, and may name one that crops."""
        if "video_processor" in (processor_dict or {}):
            return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        parts = (MplugOwlImageProcessor, MplugOwlTokenizer)
        return [part.from_pretrained(pretrained_model_name_or_path, **kwargs) for part in parts]

    def check_argument_for_proper_class(self, argument_name, argument):
        """As in the library, which finds the class of video processors only where torchvision is installed."""
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, VideoProcessorMixin):
            raise TypeError(f"A video processor was expected, but {type(argument).__name__} was given.")
        return VideoProcessorMixin

    def prepare_inputs_layout(self, images=None, text: Any = None, videos=None, **kwargs):
        rows: Any = [text] if isinstance(text, str) else text
        is_text = isinstance(rows, (list, tuple)) and len(rows) > 0 and all(isinstance(row, str) for row in rows)
        if rows is not None and not is_text:
            raise ValueError(f"`text` is {text!r:.80}, but a string or a list of strings, not empty, was expected.")
        for row in rows or []:
            try:
                row.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"`text` has half a character (a lone surrogate): {error}") from error
        if videos is not None:
            videos = videos_by_row(videos)
        return super().prepare_inputs_layout(images=images, text=rows, videos=videos, **kwargs)

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        if audio is not None:
            raise ValueError("`audio` was given, but this processor prepares pictures, videos and text.")
        groups = [(name, kwargs[name]) for name in ARGUMENT_GROUPS if name in kwargs]
        for name, group in groups:
            if not isinstance(group, dict):
                raise ValueError(f"`{name}` is {group!r:.80}, but a dictionary of arguments was expected.")
        check_names(set(kwargs).union(*(group for _, group in groups)), CALL_ARGUMENTS)
        if text is None:
            super().validate_inputs(images=images, videos=videos)
            return
        for kind, token, given in (("pictures", self.image_token, images), ("videos", self.video_token, videos)):
            check_counts(kind, token, text, given if isinstance(given, list) else [] if given is None else [given])

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

    def _process_videos(self, videos, **kwargs):
        processed = self.video_processor(videos, **kwargs)
        count = len(processed["pixel_values_videos"])
        return processed, [self.replace_video_token(processed, number) for number in range(count)]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * (self.num_query_tokens + 1)

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        return self.video_token * (self.num_query_tokens + 1)

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, **kwargs) -> MultiModalData:
        positions = self.num_query_tokens + 1
        data = {}
        if image_sizes is not None:
            data = {"num_image_tokens": [positions] * len(image_sizes), "num_image_patches": [1] * len(image_sizes)}
        if video_sizes is not None:
            data["num_video_tokens"] = [positions] * len(video_sizes)
        return MultiModalData(**data)


def check_counts(kind: str, token: str, text: list[str], visuals: list) -> None:
    """Every placeholder has its picture or video: in all rows together, and row by row where they come row by row."""
    found = [row.count(token) for row in text]
    given = [len(row) if isinstance(row, list) else 1 for row in visuals]
    if not any(isinstance(row, list) for row in visuals):
        found, given = [sum(found)], [len(visuals)]
    if found != given:
        raise ValueError(
            f"The number of {token} tokens in the prompts should be the same as the number of {kind}, but there are "
            f"{found} and {given}. Write one {token} for each of the {kind}, where it belongs."
        )


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
        sources = [name for name in (VIDEO_SOURCES if kind == "video" else PICTURE_SOURCES) if name in part]
        if len(sources) > 1:
            raise ValueError(f"A part of type {kind} has {' and '.join(sources)}: give one of them.")
        return
    raise ValueError(
        f"A part of a message is {part!r:.80}, but {{'type': 'text', 'text': ...}}, {{'type': 'image', 'path': ...}} "
        f"(or one of {', '.join(PICTURE_SOURCES)} in place of path) or {{'type': 'video', 'path': ...}} (or one of "
        f"{', '.join(VIDEO_SOURCES)}) was expected."
    )


MplugOwlProcessor.register_for_auto_class()

__all__ = ["MplugOwlProcessor"]

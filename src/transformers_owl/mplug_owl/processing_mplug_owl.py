"""The processor of mPLUG-Owl: prompts with placeholders and pictures to the model's inputs."""

import difflib
from typing import Any

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


# What a call may name. The last ones come from `apply_chat_template`.
CALL_ARGUMENTS = frozenset().union(
    *(kwargs.__annotations__ for kwargs in (ProcessingKwargs, TextKwargs, ImagesKwargs, VideosKwargs, AudioKwargs)),
    ("common_kwargs", "return_metadata", "load_audio_from_video", "audio_from_video_indices"),
)


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
        return super().prepare_inputs_layout(images=images, text=rows, **kwargs)

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        if videos is not None or audio is not None:
            kind = "videos" if videos is not None else "audio"
            raise ValueError(f"`{kind}` was given, but this processor prepares pictures and text.")
        for name in set(kwargs) - CALL_ARGUMENTS:
            nearest = difflib.get_close_matches(name, CALL_ARGUMENTS, n=1)
            hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
            raise ValueError(f"`{name}` is no argument of MplugOwlProcessor.{hint}")
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
                f"Placeholders {self.image_token} in the text: {found}, pictures given: {given}. Write one "
                f"{self.image_token} for each picture, where it belongs."
            )

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * (self.num_query_tokens + 1)

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        if image_sizes is None:
            return MultiModalData()
        positions = [self.num_query_tokens + 1] * len(image_sizes)
        return MultiModalData(num_image_tokens=positions, num_image_patches=[1] * len(image_sizes))


MplugOwlProcessor.register_for_auto_class()

__all__ = ["MplugOwlProcessor"]

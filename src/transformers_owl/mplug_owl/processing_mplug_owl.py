"""The processor of mPLUG-Owl: prompts with placeholders and pictures to the model's inputs."""

from transformers.configuration_utils import PreTrainedConfig
from transformers.processing_utils import MultiModalData, ProcessorMixin

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

    text_kwargs = {"padding": True}

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
        """Reads the folder's settings; those of an original release from the model's configuration."""
        settings, remaining = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "num_query_tokens" not in settings:
            config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
            settings["num_query_tokens"] = config.get("num_query_tokens", 64)
        return settings, remaining

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        if videos is not None:
            raise ValueError("`videos` was given, but this processor prepares pictures: pass frames as `images`.")
        if audio is not None:
            raise ValueError("`audio` was given, but mPLUG-Owl reads pictures and text.")
        if text is not None and len(text) == 0:
            raise ValueError("An empty list of texts was given: give at least one.")
        super().validate_inputs(images=images, text=text, **kwargs)
        if text is not None and isinstance(images, list) and isinstance(images[0], list):
            found, given = [row.count(self.image_token) for row in text], [len(row) for row in images]
            if found != given:
                raise ValueError(
                    f"The rows have {found} {self.image_token} placeholders, but {given} pictures were given: give "
                    "every placeholder its picture, in the same row."
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

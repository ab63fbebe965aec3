# SPDX-License-Identifier: Apache-2.0
"""The processor of mPLUG-Owl: everything from messages to the model's inputs.

A chat is read into one form (`read_chats`), rendered by the chat template, and tokenized; every placeholder becomes the
positions of its image or video (`num_positions`). Training asks for the same with the answers marked
(`encode_chat`), a conversation that continues for the new turn alone (`continue_chat`).
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import numpy as np
from transformers.configuration_utils import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import (
    AudioKwargs,
    ImagesKwargs,
    MultiModalData,
    ProcessingKwargs,
    ProcessorMixin,
    TextKwargs,
)

from .configuration_mplug_owl import check_names, expect
from .image_processing_mplug_owl import MplugOwlImageProcessor
from .library_mplug_owl import VideoProcessorMixin, render_jinja_template
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
# A Unicode noncharacter that ends an answer while a chat is rendered; no text contains it, and no token is made of it.
ANSWER_END = "\ufdd2"
LONGEST = 2**20  # positions of a row
SOURCES = {"image": ("image", "url", "path", "base64", "image_url"), "video": ("video", "url", "path")}
# Turns the messages into strings with placeholders, for a language model's own chat template.
FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- set part = namespace(text='') -%}
    {%- if message.content is string -%}
        {%- set part.text = message.content -%}
    {%- else -%}
        {%- for each in message.content -%}
            {%- if each.type == 'image' -%}{%- set part.text = part.text + '<image>\\n' -%}
            {%- elif each.type == 'video' -%}{%- set part.text = part.text + '<|video|>\\n' -%}
            {%- else -%}{%- set part.text = part.text + each.text -%}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- set flat.messages = flat.messages + [{'role': message.role, 'content': part.text}] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


def read_template(name: str | Path, tokenizer=None) -> str:
    """
    Reads a chat template.

    Args:
        name (`str` or path): "original" for the original's prompts, "language_model" for the template of `tokenizer`
            with images and videos added, or the path of a Jinja file.
        tokenizer (`TokenizersBackend`, *optional*): Tokenizer of the language model.

    Raises:
        ValueError: if the tokenizer has no template.
    """
    if name == "language_model":
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "The language model's tokenizer has no chat template: use an instruction-tuned model, the template "
                "'original', or a Jinja file."
            )
        return FLATTEN + tokenizer.chat_template
    path = Path(__file__).with_name("chat_template.jinja") if name == "original" else Path(name)
    return path.read_text(encoding="utf-8")


@dataclasses.dataclass
class EncodedChat:
    """
    A chat as training sees it.

    Args:
        ids (`np.ndarray` (positions,)): Token ids; the placeholder of an image or video is repeated for its positions.
        is_answer (`np.ndarray` (positions,) of bool): Whether a position is part of an answer or its EOS.
        is_visual (`np.ndarray` (positions,) of bool): Whether a position is part of an image or a video.
        visuals (`list[dict]`): The message parts that are images or videos, in order.
        positions (`list[int]`): Number of positions of each of them.
    """

    ids: np.ndarray
    is_answer: np.ndarray
    is_visual: np.ndarray
    visuals: list[dict[str, Any]]
    positions: list[int]


class MplugOwlProcessorKwargs(ProcessingKwargs, total=False):
    videos_kwargs: MplugOwlVideosKwargs
    _defaults = {"text_kwargs": {"padding": True}}


# The arguments that a call may have: all that the library knows.
ARGUMENT_GROUPS = {
    "text_kwargs": TextKwargs,
    "images_kwargs": ImagesKwargs,
    "videos_kwargs": MplugOwlVideosKwargs,
    "audio_kwargs": AudioKwargs,
    "common_kwargs": ProcessingKwargs,
}
CALL_ARGUMENTS = frozenset(ARGUMENT_GROUPS).union(
    *(kwargs.__annotations__ for kwargs in ARGUMENT_GROUPS.values()),
    ("return_metadata", "sanitize_control_tokens", "audio_from_video_indices"),
)
TEMPLATE_ARGUMENTS = CALL_ARGUMENTS.union(inspect.signature(ProcessorMixin.apply_chat_template).parameters)
ARGUMENT = "argument of MplugOwlProcessor"


class MplugOwlProcessor(ProcessorMixin):
    r"""
    Turns prompts, images and videos into the inputs of [`MplugOwlForConditionalGeneration`].

    In `text=` every `<image>` stands for one image and every `<|video|>` for one video, in order; a chat goes through
    `apply_chat_template`, where a typed placeholder stays text. With `return_tensors`, rows are padded on the left.

    Args:
        image_processor ([`MplugOwlImageProcessor`]): Prepares the images.
        tokenizer (`TokenizersBackend`): Tokenizer of the language model; it is prepared as [`prepare_tokenizer`] says.
        video_processor ([`MplugOwlVideoProcessor`], *optional*): Prepares the videos; by default with the settings of
            the image processor.
        chat_template (`str`, *optional*): A Jinja template instead of the original's prompts.
        num_query_tokens (`int`, defaults to 64): Number of queries of the model's abstractor; a video, or a view of an
            image, takes one position more.
        special_tokens_in_chats (`bool`, defaults to `False`): Whether special tokens that a user types in a chat, such
            as `</s>`, become special tokens, as in the original; by default they stay text.

    Calling it gives `input_ids` and `attention_mask` (rows, positions), `pixel_values` (images, 3, height, width)
    with the images of all rows one after the other, and `pixel_values_videos` (videos, frames, 3, height, width).
    With an image processor that cuts images into cells there are more views than images, and `crop_positions`.
    `num_frames`, `fps` or `timestamps` choose the frames: see [`MplugOwlVideoProcessor`].

    Raises:
        ValueError: if the numbers of placeholders and of images or videos differ, for unknown arguments, and for
            anything that is not a text, an image or a video.
    """

    valid_processor_kwargs = MplugOwlProcessorKwargs
    chat_template: Any

    def __init__(
        self, image_processor=None, tokenizer=None, video_processor=None, chat_template=None,
        num_query_tokens: int = 64, special_tokens_in_chats: bool = False,
    ):  # fmt: skip
        expect(0 < num_query_tokens < LONGEST, "`num_query_tokens`", num_query_tokens, f"from 1 to {LONGEST - 1}")
        tokenizer = prepare_tokenizer(tokenizer)
        if video_processor is None:
            names = ("size", "resample", "image_mean", "image_std")
            video_processor = MplugOwlVideoProcessor(**{name: getattr(image_processor, name) for name in names})
        self.num_query_tokens = num_query_tokens
        self.special_tokens_in_chats = special_tokens_in_chats
        self.auto_map = {"AutoProcessor": "processing_mplug_owl.MplugOwlProcessor"}
        self.image_token = IMAGE_TOKEN
        self.video_token = VIDEO_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        super().__init__(
            image_processor, tokenizer, video_processor, chat_template=chat_template or read_template("original")
        )
        if tokenizer.chat_template is None:
            tokenizer.chat_template = self.chat_template  # as in a saved folder

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Reads the settings of a folder; an original release has none."""
        settings, remaining = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "num_query_tokens" not in settings:
            config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
            settings["num_query_tokens"] = config.get("num_query_tokens", 64)
        return settings, remaining

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """Loads the parts of a processor; an original release has no video processor."""
        if "video_processor" in (processor_dict or {}):
            return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        parts = (MplugOwlImageProcessor, MplugOwlTokenizer)
        return [part.from_pretrained(pretrained_model_name_or_path, **kwargs) for part in parts]

    def check_argument_for_proper_class(self, argument_name, argument):
        """As in the library, which finds the class of video processors only where torchvision is installed."""
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, VideoProcessorMixin):
            raise TypeError(f"`video_processor` is a {type(argument).__name__}, but must be a MplugOwlVideoProcessor.")
        return VideoProcessorMixin

    def __call__(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """As in the library; rows are padded where they become tensors, unless `padding` says otherwise."""
        groups = [kwargs[name] for name in ("text_kwargs", "common_kwargs") if isinstance(kwargs.get(name), dict)]
        if not any("padding" in group or group.get("return_tensors") is not None for group in (kwargs, *groups)):
            kwargs["padding"] = False
        return super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def prepare_inputs_layout(self, images=None, text: Any = None, videos=None, **kwargs):
        rows: Any = [text] if isinstance(text, str) else text
        is_text = isinstance(rows, (list, tuple)) and len(rows) > 0 and all(isinstance(row, str) for row in rows)
        expect(rows is None or is_text, "`text`", text, "a string or a non-empty list of strings")
        for row in rows or []:
            try:
                row.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"`text` has a lone surrogate, which is half a character: {error}") from error
        if videos is not None:
            videos = videos_by_row(videos)
        if images is not None:
            images = self.image_processor.list_images(images)
        _, *others = super().prepare_inputs_layout(text=rows, videos=videos, **kwargs)
        return images, *others

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        if audio is not None:
            raise ValueError("`audio` was given, but this processor takes images, videos and text: leave it out.")
        groups = [(name, kwargs[name]) for name in ARGUMENT_GROUPS if name in kwargs]
        for name, group in groups:
            expect(isinstance(group, dict), f"`{name}`", group, "a dictionary of arguments")
        check_names(set(kwargs).union(*(group for _, group in groups)), CALL_ARGUMENTS, ARGUMENT)
        for name in ("max_length", "pad_to_multiple_of"):
            number = {**kwargs.get("text_kwargs", {}), **kwargs}.get(name)
            expect(number is None or 0 < number <= LONGEST, f"`{name}`", number, f"from 1 to {LONGEST}")
        if text is None:
            super().validate_inputs(images=images, videos=videos)
            return
        for kind, token, given in (("images", self.image_token, images), ("videos", self.video_token, videos)):
            check_counts(kind, token, text, given if isinstance(given, list) else [] if given is None else [given])

    @functools.wraps(ProcessorMixin.apply_chat_template)
    def apply_chat_template(self, conversation, chat_template=None, tools=None, documents=None, *args, **kwargs):
        chats = read_chats(conversation, self._typed_tokens())
        template = self.chat_template if chat_template is None else chat_template
        kwargs.pop("load_audio_from_video", None)  # it has no ears
        variables = variables_of(template)
        for name, value in (("tools", tools), ("documents", documents)):
            if value and name not in variables:
                raise ValueError(f"`{name}` was given, but the chat template does not use it: leave it out.")
        check_names(kwargs, TEMPLATE_ARGUMENTS | variables, ARGUMENT)
        if "continues" in variables:  # the original's prompts: earlier answers as before a generation prompt
            kwargs["continues"] = bool(kwargs.get("continue_final_message"))
        check_names(kwargs.get("processor_kwargs") or (), CALL_ARGUMENTS, ARGUMENT)
        try:
            made = super().apply_chat_template(chats, chat_template, tools or None, documents or None, *args, **kwargs)
        except jinja2.TemplateError as error:
            raise ValueError(f"The chat template refuses the chat: {error}") from error
        if chat_template is None or kwargs.get("continue_final_message"):
            check_rendered(made, chats)
        return made

    def _typed_tokens(self) -> tuple[str, ...]:
        """The language model's special tokens that stay text where somebody types them, longer ones first."""
        if self.special_tokens_in_chats:
            return ()
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(sorted((str(token) for token in added if token.special), key=len, reverse=True))

    def num_positions(self, views: int = 1) -> int:
        """Number of positions that a video takes, or an image with this many views."""
        return views * (self.num_query_tokens + 1)

    def encode_chat(
        self, messages: list[dict[str, Any]], count_views: Callable[[dict[str, Any]], int] = lambda part: 1
    ) -> EncodedChat:
        """
        Encodes a chat with its answers for training: each answer is tokenized by itself and followed by EOS, so that
        the ids before it are those of its prompt at inference.

        Args:
            messages (`list[dict]`): The chat.
            count_views (`Callable`, *optional*): Gives the number of views of a message part; by default 1.

        Raises:
            ValueError: if the chat template refuses the chat, or does not show where its answers are.
        """
        messages = read_chats(messages, self._typed_tokens())
        text, is_answer = self._with_answers(messages)
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        bos = self.tokenizer.bos_token
        encoding = backend.encode(text, add_special_tokens=bos is None or not text.startswith(bos))
        ids = np.array(encoding.ids)
        answered = np.array([start < end and is_answer[start] for start, end in encoding.offsets], dtype=bool)
        # The placeholder of an image or video stands for all of its positions.
        visuals = visuals_of(messages)
        positions = [self.num_positions(count_views(part)) for part in visuals]
        is_visual = np.isin(ids, [self.image_token_id, self.video_token_id])
        if is_visual.sum() != len(visuals):
            raise ValueError(
                f"The chat has {len(visuals)} images and videos, but the chat template writes {is_visual.sum()} "
                "placeholders: it must write one for each of them."
            )
        repeats = np.ones_like(ids)
        repeats[is_visual] = positions
        ids, answered, is_visual = (np.repeat(values, repeats) for values in (ids, answered, is_visual))
        return EncodedChat(ids, answered, is_visual, visuals, positions)

    def _with_answers(self, messages: list[dict[str, Any]]) -> tuple[str, np.ndarray]:
        """The text of a chat, and for each character whether it is part of an answer."""
        if not re.search(r"{%-?\s*generation", self.chat_template):
            text, _ = self._render([_with_marks(message) for message in messages])
            return self._find_marks(text, sum(message["role"] == "assistant" for message in messages))
        text, spans = self._render(messages, return_assistant_tokens_mask=True)
        pieces, end = [], 0
        for start, stop in spans:
            pieces += [(text[end:start], False), (BOUNDARY + text[start:stop].removeprefix(BOUNDARY), True)]
            end = stop
        return joined([*pieces, (text[end:], False)])

    def _render(self, messages: list[dict[str, Any]], **options) -> tuple[str, list[tuple[int, int]]]:
        """The text of a chat, and the spans of its answers if asked for."""
        try:
            rendered: Any = render_jinja_template(
                conversations=[messages],
                chat_template=self.chat_template,
                **options,
                **self.tokenizer.special_tokens_map,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"The chat template refuses the chat: {error}") from error
        (text,), spans = rendered
        return text, spans[0] if spans else []

    def _find_marks(self, text: str, count: int) -> tuple[str, np.ndarray]:
        """Finds answers by the marks around them, each with the EOS that follows."""
        before, *parts = re.split(f"{BOUNDARY}([^{ANSWER_END}]*){ANSWER_END}", text)
        answers, between, eos = parts[::2], parts[1::2], self.tokenizer.eos_token
        if len(answers) != count or not all(following.startswith(eos) for following in between):
            raise ValueError(
                f"The chat template does not write each answer unchanged with {eos!r} after it: mark the answers by "
                "{% generation %} and {% endgeneration %}, with the end-of-sequence token between the two."
            )
        pieces = [(before, False)]
        for answer, following in zip(answers, between, strict=True):
            pieces += [(BOUNDARY + answer + eos, True), (following.removeprefix(eos), False)]
        return joined(pieces)

    def continue_chat(self, messages: list[dict[str, Any]], turn: dict[str, Any], has_ended: bool) -> BatchFeature:
        """
        Inputs of the next turn, which follow the ids of `messages` and of the answer at their end.

        Args:
            messages (`list[dict]`): The conversation so far.
            turn (`dict`): The user's next message.
            has_ended (`bool`): Whether the model generated an end-of-sequence token after its answer.

        Raises:
            ValueError: if the chat template drops earlier answers.
        """
        *earlier, turn = read_chats([*messages, turn], self._typed_tokens())
        earlier[-1] = {**earlier[-1], "content": ANSWER_END}
        text, _ = self._render([*earlier, turn], add_generation_prompt=True)
        _, found, new = text.rpartition(ANSWER_END)
        if not found:
            raise ValueError("The chat template drops earlier answers, so chats cannot continue: use another template.")
        if has_ended:
            new = new.removeprefix(self.tokenizer.eos_token)
        seen = {kind: [source_of(part) for part in visuals_of([turn]) if part["type"] == kind] for kind in SOURCES}
        visuals = {f"{kind}s": sources for kind, sources in seen.items() if sources}
        return self(text=[new], add_special_tokens=False, return_tensors="pt", **visuals)

    def _process_images(self, images, **kwargs):
        processed = self.image_processor(images, **kwargs)
        count = len(self._views_of_images(processed))
        return processed, [self.replace_image_token(processed, number) for number in range(count)]

    def _process_videos(self, videos, **kwargs):
        processed = self.video_processor(videos, **kwargs)
        count = len(processed["pixel_values_videos"])
        return processed, [self.replace_video_token(processed, number) for number in range(count)]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self.num_positions(self._views_of_images(image_inputs)[image_idx])

    @staticmethod
    def _views_of_images(image_inputs) -> list[int]:
        """Number of views of each image."""
        if "crop_positions" not in image_inputs:
            return [1] * len(image_inputs["pixel_values"])
        positions = np.asarray(image_inputs["crop_positions"])
        return np.diff([*(positions.sum(axis=1) == 0).nonzero()[0], len(positions)]).tolist()

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        return self.video_token * self.num_positions()

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, **kwargs) -> MultiModalData:
        data = {}
        if image_sizes is not None:
            views = [self.image_processor.count_views(width, height) for height, width in image_sizes]
            data["num_image_tokens"] = [self.num_positions(count) for count in views]
            data["num_image_patches"] = views
        if video_sizes is not None:
            data["num_video_tokens"] = [self.num_positions()] * len(video_sizes)
        return MultiModalData(**data)


def check_counts(kind: str, token: str, text: list[str], visuals: list) -> None:
    """Checks that every placeholder has its image or video: over all rows, and row by row where these are nested."""
    found = [row.count(token) for row in text]
    given = [len(row) if isinstance(row, list) else 1 for row in visuals]
    if not any(isinstance(row, list) for row in visuals):
        found, given = [sum(found)], [len(visuals)]
    if found != given:
        raise ValueError(
            f"The number of {token} tokens in the prompts should be the same as the number of {kind}, but there are "
            f"{found} and {given}. Write one {token} for each of the {kind}, where it belongs."
        )


def variables_of(template: str) -> frozenset[str]:
    """Names of the variables that a chat template uses."""
    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except jinja2.TemplateError as error:
        raise ValueError(f"The chat template is not valid Jinja: {error}") from error
    return frozenset(jinja2.meta.find_undeclared_variables(parsed))


def read_chats(conversation, special_tokens: tuple[str, ...] = ()) -> list:
    """
    Brings a chat, or a list of chats, into one form: the content of a message is a string or a list of parts; a part is
    `{"type": "text", "text": ...}`, or `{"type": "image"}` or `{"type": "video"}` with at most one source under the
    name by which it was given. Sources that are `None`, as in table rows, are dropped. Typed placeholders and
    `special_tokens` stay text.

    Raises:
        ValueError: for a message or part of another form.
    """
    is_batch = isinstance(conversation, (list, tuple)) and conversation and isinstance(conversation[0], (list, tuple))
    for chat in conversation if is_batch else [conversation]:
        expect(isinstance(chat, (list, tuple)) and chat, "A chat", chat, "a non-empty list of messages")
    chats = [
        [_read_message(message, special_tokens) for message in chat]
        for chat in (conversation if is_batch else [conversation])
    ]
    return chats if is_batch else chats[0]


def _as_dict(value):
    """A dictionary of a message or part, which may be a dataclass or a pydantic model, as OpenAI's client gives."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif callable(dump := getattr(value, "model_dump", None)):
        value = dump()
    return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value


def _read_message(message, special_tokens: tuple[str, ...]) -> dict[str, Any]:
    message = _as_dict(message)
    fits = isinstance(message, dict) and isinstance(message.get("role"), str)
    expect(fits, "A message", message, "a dictionary with `role` and `content`")
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": _as_text(content, special_tokens)}
    fits = isinstance(content, (list, tuple)) and content
    expect(fits, "The content of a message", content, "a string or a non-empty list of parts")
    return {**message, "content": [_read_part(part, message["role"], special_tokens) for part in content]}


def _as_text(typed: str, special_tokens: tuple[str, ...]) -> str:
    """Text as a user typed it, with its special tokens escaped and without the marks of a rendered chat."""
    for token in (IMAGE_TOKEN, VIDEO_TOKEN, *special_tokens):
        typed = typed.replace(token, token[0] + ESCAPE + token[1:])
    return typed.replace(BOUNDARY, "").replace(ANSWER_END, "")


def _read_part(part, role: str, special_tokens: tuple[str, ...]) -> dict[str, Any]:
    part = _as_dict(part)
    kind = part.get("type") if isinstance(part, dict) else None
    # "same_line": the part goes on after the one before it, where the original's prompts would begin a line.
    line = {"same_line": True} if isinstance(part, dict) and part.get("same_line") else {}
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": _as_text(part["text"], special_tokens), **line}
    if kind == "image_url":  # as OpenAI's clients write it
        kind = "image"
    expect(
        isinstance(kind, str) and kind in SOURCES, "A part of a message", part,
        f"{{'type': 'text', 'text': ...}}, {{'type': 'image', ...}} with one of {', '.join(SOURCES['image'])}, or "
        f"{{'type': 'video', ...}} with one of {', '.join(SOURCES['video'])}",
    )  # fmt: skip
    assert isinstance(kind, str)
    if role != "user":
        raise ValueError(f"A message of role {role} has a part of type {kind}: move it to a message of role user.")
    given = {name: part[name] for name in SOURCES[kind] if name in part}
    if len(given) > 1:
        raise ValueError(f"A part of type {kind} has {' and '.join(given)}: give only one of them.")
    if "image_url" in given:
        url = given.pop("image_url")
        given["url"] = url["url"] if isinstance(url, dict) and "url" in url else url
    return {"type": kind, **given, **line}


def check_rendered(rendered: Any, chats: list) -> None:
    """Checks that chats rendered as text, if they are, have a placeholder for each image and video."""
    texts = [rendered] if isinstance(rendered, str) else rendered
    if not isinstance(texts, list) or not isinstance(texts[0], str):
        return
    for text, chat in zip(texts, chats if isinstance(chats[0], list) else [chats], strict=True):
        found, given = text.count(IMAGE_TOKEN) + text.count(VIDEO_TOKEN), len(visuals_of(chat))
        if found != given:
            raise ValueError(
                f"The chat has {given} images and videos, but the rendered text has {found} placeholders: the chat "
                "template must write one for each of them, and a message that is continued must end with text."
            )


def visuals_of(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The message parts that are images or videos, in order."""
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return [part for part in parts if part["type"] in SOURCES]


def source_of(part: dict[str, Any]):
    """
    The source of an image or video part: a path, a URL, an image and the like.

    Raises:
        ValueError: if the part has none.
    """
    names = SOURCES[part["type"]]
    source = next((part[name] for name in names if name in part), None)
    if source is None:
        raise ValueError(f"A part of type {part['type']} needs one of {', '.join(names)}, but is {part!r:.80}.")
    return source


def joined(pieces: list[tuple[str, bool]]) -> tuple[str, np.ndarray]:
    """The text of `(text, kind)` pieces, and the kind of each character."""
    return "".join(text for text, _ in pieces), np.repeat(
        [kind for _, kind in pieces], [len(text) for text, _ in pieces]
    )


def _with_marks(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose answer, if it is one, is marked so that it can be found in the rendered chat."""
    if message["role"] != "assistant":
        return message
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return {**message, "content": BOUNDARY + text + ANSWER_END}


MplugOwlProcessor.register_for_auto_class()

__all__ = ["MplugOwlProcessor"]

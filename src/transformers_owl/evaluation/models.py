"""Models that answer chats: those of the library, from a folder or the Hub, and those behind OpenAI-style endpoints."""

import asyncio
import base64
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import PIL.Image

from ..mplug_owl.video_processing_mplug_owl import media_type


Messages = list[dict[str, Any]]
# For models without a chat template, such as BLIP-2: the form that their authors show.
PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{{ 'Question: ' if message.role == 'user' else ' Answer: ' }}
{%- if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif -%}
{{ ' ' if message.role == 'assistant' else '' }}
{%- endfor %}{{ ' Answer:' if add_generation_prompt else '' }}"""


class ChatModel(Protocol):
    """A model that answers chats: `name` is written to files, `answer` gives one answer per chat."""

    name: str

    def answer(self, chats: Sequence[Messages]) -> list[str]: ...


class LocalModel:
    """
    A model of the library with its own processor and chat template, for images and text or for text only.

    Args:
        name (`str`): A folder or a repository on the Hub.
        device (`str`, *optional*): "cuda", "mps" or "cpu"; by default the accelerator if there is one.
        dtype (`str`, defaults to `"auto"`): Dtype of the weights, such as "bfloat16"; "auto" takes the checkpoint's.
        max_new_tokens (`int`, defaults to 512): Maximum number of tokens of an answer, decoded greedily.
        trust_remote_code (`bool`, defaults to `False`): Whether to run code in the model's folder.
        chat_template (`str`, *optional*): For an mPLUG-Owl: "original", "language_model" or a Jinja file; by default
            the checkpoint's.
        fast (`bool`, defaults to `False`): Whether to optimize an mPLUG-Owl for throughput.
    """

    def __init__(
        self,
        name: str,
        device: str | None = None,
        dtype: str = "auto",
        max_new_tokens: int = 512,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        fast: bool = False,
    ):
        from transformers import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
        )

        from ..inference.optimizing import optimize
        from ..loading import check_dtype, choose_device, choose_template, read_config
        from ..mplug_owl.configuration_mplug_owl import MplugOwlConfig

        self.name = name
        self.max_new_tokens = max_new_tokens
        trust = {"trust_remote_code": trust_remote_code}
        check_dtype(dtype)
        device = choose_device(device)
        config = read_config(name, **trust)
        named = config.to_dict().get("auto_map", {})
        self.sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or "AutoModelForImageTextToText" in named
        auto: Any = AutoModelForImageTextToText if self.sees else AutoModelForCausalLM
        self.model = auto.from_pretrained(name, dtype=dtype, device_map=device, **trust)
        self.processor: Any = (AutoProcessor if self.sees else AutoTokenizer).from_pretrained(name, **trust)
        if (fast or chat_template is not None) and config.model_type != MplugOwlConfig.model_type:
            raise ValueError(f"'{name}' is not an mPLUG-Owl: leave out --fast and --chat-template.")
        if fast:
            optimize(self.model, "throughput")
        if chat_template is not None:
            choose_template(self.processor, chat_template)
        self.tokenizer = self.processor.tokenizer if self.sees else self.processor
        # Behind the text of an encoder padding changes nothing; before it, BLIP-2's image would move away from it.
        encodes = self.model.config.get_text_config().is_encoder_decoder
        self.tokenizer.padding_side = "right" if encodes else "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.has_template = self.processor.chat_template is not None

    def answer(self, chats: Sequence[Messages], **options) -> list[str]:
        """
        Answers all chats in one batch, each as it would be answered alone; `options` go to `generate`.

        Raises:
            ValueError: for images, if the model takes only text.
        """
        import torch

        if not self.sees:
            chats = [[_as_text(self.name, message) for message in chat] for chat in chats]
        inputs = self.processor.apply_chat_template(
            list(chats),
            chat_template=None if self.has_template else PLAIN_TEMPLATE,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **({"processor_kwargs": {"padding": True}} if self.sees else {"padding": True}),
        )
        inputs = inputs.to(self.model.device, **({"dtype": self.model.dtype} if self.sees else {}))
        settings = {"max_new_tokens": self.max_new_tokens, "do_sample": False, **options}
        written = self.model.generate(**inputs, **settings)
        prompt = inputs["input_ids"]
        # Decoders give the prompt back before the answer, encoder-decoders do not.
        if written.shape[1] >= prompt.shape[1] and torch.equal(written[:, : prompt.shape[1]], prompt):
            written = written[:, prompt.shape[1] :]
        return self.processor.batch_decode(written, skip_special_tokens=True)


class RefusedError(ConnectionError):
    """An endpoint's error that would repeat."""


TRIES = 3
PASSING = (408, 409, 429)  # of the client's faults, those that pass; those of a server may, too


class Endpoint:
    """
    A model behind an OpenAI-style endpoint. The API key is read from OPENAI_API_KEY if it is set.

    Args:
        name (`str`): The endpoint's name of the model.
        url (`str`): Base URL, such as "http://localhost:8000/v1".
        max_new_tokens (`int`, defaults to 512): Maximum number of tokens of an answer.
        timeout (`float`, defaults to 120): Seconds to wait for a whole answer. A request that fails or returns no
            answer is sent up to three times.
    """

    def __init__(self, name: str, url: str, max_new_tokens: int = 512, timeout: float = 120):
        self.name = name
        self.url = url
        self.max_new_tokens = max_new_tokens
        self.timeout = timeout

    def answer(self, chats: Sequence[Messages]) -> list[str]:
        """
        Answers all chats in parallel.

        Raises:
            ConnectionError: if the endpoint is down, too slow, refuses, or returns no answer.
        """
        return asyncio.run(self._answer_all(chats))

    async def _answer_all(self, chats: Sequence[Messages]) -> list[str]:
        import openai

        key = os.environ.get("OPENAI_API_KEY", "none")
        async with openai.AsyncOpenAI(base_url=self.url, api_key=key, timeout=None, max_retries=0) as client:
            return await asyncio.gather(*(self._answer(client, chat) for chat in chats))

    async def _answer(self, client, chat: Messages) -> str:
        messages = [_for_endpoint(message) for message in chat]
        for number in range(1, TRIES + 1):
            try:
                return await self._ask(client, messages)
            except ConnectionError as error:
                if number == TRIES or isinstance(error, RefusedError):
                    raise
                await asyncio.sleep(0.2 * number)
        raise AssertionError

    def stream(self, chat: Messages, **options) -> Iterator[str]:
        """
        Streams the answer to one chat.

        Args:
            chat (`Messages`): The chat.
            options: Options of `chat.completions.create`, such as `temperature`.

        Raises:
            ConnectionError: as in `answer`.
        """
        import openai

        key = os.environ.get("OPENAI_API_KEY", "none")
        client: Any = openai.OpenAI(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=0)
        with (
            self._named_errors(),
            client,
            client.chat.completions.create(
                model=self.name,
                messages=[_for_endpoint(message) for message in chat],
                stream=True,
                **{"max_tokens": self.max_new_tokens, "temperature": 0, **options},
            ) as pieces,
        ):
            for piece in pieces:
                yield from (choice.delta.content for choice in piece.choices if choice.delta.content)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            passes = error.status_code in PASSING or error.status_code >= 500
            kind = ConnectionError if passes else RefusedError
            raise kind(f"The endpoint {self.url} refused with {error.status_code}: {error.message}") from error
        except (openai.APIError, json.JSONDecodeError) as error:
            raise ConnectionError(f"The endpoint {self.url} cannot be reached: {error.__cause__ or error}") from error

    async def _ask(self, client, messages: list[dict]) -> str:
        try:
            async with asyncio.timeout(self.timeout):
                with self._named_errors():
                    reply = await client.chat.completions.create(
                        model=self.name, messages=messages, max_tokens=self.max_new_tokens, temperature=0
                    )
        except TimeoutError as error:
            raise ConnectionError(f"The endpoint {self.url} gave no answer within {self.timeout:g} seconds.") from error
        try:
            text = reply.choices[0].message.content
        except (AttributeError, IndexError, TypeError):
            text = reply
        if isinstance(text, str) and text is not reply:
            return text
        raise ConnectionError(f"The endpoint {self.url} returned something that is not an answer: {reply!r:.200}")


def user(text: str, image=None) -> dict[str, Any]:
    """A user's message, about the file `image` if there is one."""
    seen = [] if image is None else [{"type": "image", "path": str(image)}]
    return {"role": "user", "content": [*seen, {"type": "text", "text": text}]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _as_text(name: str, message: dict) -> dict:
    if any(part["type"] != "text" for part in message["content"]):
        raise ValueError(f"'{name}' is a text-only model, but the questions are about images: use another model.")
    return {"role": message["role"], "content": "".join(part["text"] for part in message["content"])}


def _for_endpoint(message: dict) -> dict:
    if message["role"] == "assistant":
        said = message["content"]
        return {
            "role": "assistant",
            "content": said if isinstance(said, str) else "".join(part["text"] for part in said),
        }
    content = [part if part["type"] == "text" else _visual_part(part) for part in message["content"]]
    return {"role": message["role"], "content": content}


def _visual_part(part: dict) -> dict:
    kind = f"{part['type']}_url"
    return {"type": kind, kind: {"url": _data_url(part["path"])}}


def _data_url(path: str) -> str:
    """The unchanged file as a data URL. Its bytes tell the format: 49.jpg of OwlEval is a PNG."""
    with open(path, "rb") as file:
        data = file.read()
    kind = media_type(path)
    if not kind.startswith("video/"):
        with PIL.Image.open(io.BytesIO(data)) as image:
            kind = image.get_format_mimetype() or kind
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"

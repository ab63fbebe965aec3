"""
The fence of the server of OpenAI-style requests: `transformers serve` with our model loading, and with the gate before
its application.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import typer
from starlette.middleware.cors import CORSMiddleware
from transformers import AutoModelForImageTextToText
from transformers.cli.serve import Serve
from transformers.cli.serving import model_manager, server

from ..inference.optimizing import optimize
from ..loading import choose_template
from ..mplug_owl.download_mplug_owl import without_proxies
from ..mplug_owl.processing_mplug_owl import MplugOwlProcessor
from .gate import Allowed, Gate, refusal


LEANS_ON = {
    "transformers.cli.serve.Serve": "the command, its options and what follows from them",
    "transformers.cli.serving.model_manager.ModelManager": "loads the model; the command takes what is put there",
    "transformers.cli.serving.model_manager.ModelManager._load_model": "how: adapters have no configuration of a model",
    "transformers.cli.serving.model_manager.ModelManager._load_processor": "with the chat template that was chosen",
    "transformers.cli.serving.server.build_server": "makes the application, before which the gate is put",
}


# Of any type: their methods take what the version's own take.
Manager: Any = model_manager.ModelManager
Processor: Any = MplugOwlProcessor


class ServedProcessor(Processor):
    """The processor of a server, which refuses a chat that is too long before images are decoded."""

    context_length: float = math.inf

    def apply_chat_template(self, conversation, *args, **kwargs):
        if kwargs.get("num_frames") == 32:  # the server's default, which knows no model
            del kwargs["num_frames"]
        parts = [part for message in conversation for part in message["content"]]
        seen = self.num_positions() * sum(part["type"] != "text" for part in parts)  # at least
        inputs = None if seen > self.context_length else super().apply_chat_template(conversation, *args, **kwargs)
        length = seen if inputs is None else inputs["input_ids"].shape[-1]
        if length >= self.context_length:
            raise ValueError(
                f"The chat has {length} positions, but the language model's context length is {self.context_length}: "
                "shorten the text, or pass fewer images."
            )
        return inputs


class Models(Manager):
    """One model or adapter under the given name."""

    default: str
    chat_template: str | None
    fast: bool

    def __init__(self, *args: Any, force_model: str | None = None, **kwargs: Any):
        super().__init__(*args, force_model=force_model or self.default, **kwargs)

    def _load_model(self, model_id_and_revision: str, *args: Any, **kwargs: Any):
        quantization = self.get_quantization_config()
        name, revision = _source(model_id_and_revision)
        model = AutoModelForImageTextToText.from_pretrained(
            name,
            dtype=self.dtype,
            device_map=self.device,
            attn_implementation=self.attn_implementation,
            **revision,
            **({} if quantization is None else {"quantization_config": quantization}),
        )
        return optimize(model) if self.fast else model

    def _load_processor(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> Any:
        name, revision = _source(model_id_and_revision)
        processor: Any = ServedProcessor.from_pretrained(name, **revision)
        if self.chat_template is not None:
            choose_template(processor, self.chat_template)
        return processor

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> Any:
        model, processor = super().load_model_and_processor(*args, **kwargs)
        processor.context_length = model.context_length
        return model, processor


def _source(name: str) -> tuple[str, dict[str, str]]:
    """Splits a folder or REPO@REVISION into the name and the revision."""
    if os.path.exists(name):
        return name, {}
    repository, _, revision = name.partition("@")
    return repository, {"revision": revision} if revision else {}


def serve(
    arguments: Sequence[str], default: str, chat_template: str | None, allowed: dict[str, Any], fast: bool = False
) -> None:
    """
    Serves until it is interrupted. URLs in requests are fetched directly, without the environment's proxies.

    Args:
        arguments (`Sequence[str]`): Options of `transformers serve`.
        default (`str`): The model if the options name none.
        chat_template (`str`, *optional*): "original", "language_model" or a Jinja file; by default the checkpoint's.
        allowed (`dict`): Fields of [`Allowed`].
        fast (`bool`, defaults to `False`): Whether to optimize the model for latency.
    """

    build: Any = server.build_server

    def build_server(manager: Any, *handlers: Any, enable_cors: bool = False, **kwargs: Any):
        app = build(manager, *handlers, **kwargs)
        model, _ = manager.load_model_and_processor(manager.process_model_name(manager.force_model))
        open_to = Allowed(**{**allowed, "origins": ["*"] if enable_cors else allowed["origins"]})
        sees_videos = model.config.sees_videos
        app.add_middleware(Gate, model=manager.force_model, sees_videos=sees_videos, allowed=open_to)
        app.add_middleware(CORSMiddleware, allow_origins=open_to.origins, allow_headers=["*"])
        app.add_exception_handler(ValueError, _refuse)
        return app

    command = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    command.command()(Serve)
    Models.default, Models.chat_template, Models.fast = default, chat_template, fast
    # The command imports both when it starts.
    vars(model_manager)["ModelManager"], vars(server)["build_server"] = Models, build_server
    try:
        with without_proxies():
            command(list(arguments), prog_name="transformers-owl serve", standalone_mode=False)
    finally:
        vars(model_manager)["ModelManager"], vars(server)["build_server"] = Manager, build


async def _refuse(_, error: Exception):
    return refusal(error)

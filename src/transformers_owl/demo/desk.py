"""The model behind the page: answers to the questions of its conversation, and attention maps."""

import itertools
import logging
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import PIL.Image

from .. import MINIATURE
from ..evaluation.models import Endpoint
from ..inference import Chat
from ..loading import generation_options, memory_advice
from ..mplug_owl.image_processing_mplug_owl import read_image
from ..mplug_owl.video_processing_mplug_owl import visual_part
from .conversation import Turn, files, is_pending, messages
from .looking import heat_maps


MAX_FILES = 16  # of one conversation
ADVICE = "Lower the number of beams or the longest answer in the settings, or start again with fewer images."
NO_IMAGE = "This conversation has no image: anything that the answer says about one is made up."
PHOTOGRAPH = "This looks like a photo, but this model knows only drawings, so the answer is a guess."
LARGEST_MAP = (1024, 1024)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """
    The page's text about its model.

    Args:
        name (`str`): Name of the model.
        link (`str`, *optional*): URL with more information.
        knows (`str`, *optional*): A sentence on what the model knows, if that is little.
        knows_photographs (`bool`, defaults to `True`): Whether the model was trained on photographs.
    """

    name: str
    link: str | None = None
    knows: str | None = None
    knows_photographs: bool = True

    def __str__(self) -> str:
        return ". ".join(filter(None, (self.name, self.knows)))


def about(model: str) -> About:
    """The text about a model; of a folder only its last part, so that the page shows no path of this machine."""
    if model == MINIATURE:
        knows = "It knows drawings of a hundred things, digits, words and short clips, and nothing else."
        return About("the miniature", "https://arxiv.org/abs/2304.14178", knows, knows_photographs=False)
    if Path(model).is_dir():
        return About(Path(model).resolve().name)
    return About(model, f"https://huggingface.co/{model.partition('@')[0]}")


class Desk:
    """Answers the last question of a conversation; subclasses say how."""

    about: About
    sees_videos: bool
    looks = False
    side_by_side = 1

    def answer(
        self, turns: list[Turn], temperature: float = 0, top_p: float = 1, num_beams: int = 1, length: int = 512
    ) -> Iterator[tuple[list[Turn], str]]:
        """
        Yields the conversation and the answer so far, until the answer is complete and part of the conversation.
        Failures become error turns.
        """
        if not is_pending(turns):
            yield turns, ""
            return
        written = ""
        try:
            given = files(turns)
            if len(given) > MAX_FILES:
                raise ValueError(f"A conversation takes up to {MAX_FILES} images, not {len(given)}: start a new one.")
            options = generation_options(int(length), temperature, top_p, int(num_beams))
            with closing(self.stream(turns, options)) as answers:
                for written in answers:
                    yield turns, written
        except Exception as error:  # the page outlives every failure of a model, and the log has it
            yield [*turns, {"role": "error", "text": explain(error, files(turns))}], ""
            return
        answer = {"role": "assistant", "text": written}
        if note := self.note(turns):
            answer["note"] = note
        yield [*turns, answer], ""

    def note(self, turns: Sequence[Turn]) -> str | None:
        """A warning for the reader of an answer, if there is one."""
        if not files(turns):
            return NO_IMAGE
        given = [Path(file["path"]) for file in turns[-1]["files"]]
        if not self.about.knows_photographs and any(
            is_photograph(read_image(path)) for path in given if visual_part(path, True)["type"] == "image"
        ):
            return PHOTOGRAPH
        return None

    def stream(self, turns: list[Turn], options: dict[str, Any]) -> Generator[str, None, None]:
        """Yields the answer so far, until it is complete."""
        raise NotImplementedError

    def look(
        self, turns: list[Turn], number: int, span: tuple[int, int] | None = None
    ) -> list[tuple[str, PIL.Image.Image]]:
        """
        Heat maps over the images and video frames before an answer, with their captions.

        Args:
            turns (`Sequence[Turn]`): The conversation.
            number (`int`): Index of the answer's turn.
            span (`tuple[int, int]`, *optional*): Start and end of a word in characters; by default the whole answer.

        Raises:
            ValueError: without an image, and if the model gives no attention.
        """
        raise ValueError("An endpoint does not give attention maps.")


class OwlDesk(Desk):
    """
    A model in this process, which answers one question at a time.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model.
        processor ([`MplugOwlProcessor`]): Its processor.
        about ([`About`]): The page's text about it.
    """

    looks = True

    def __init__(self, model, processor, about: About):
        self.model = model
        self.processor = processor
        self.about = about
        self.sees_videos = model.config.sees_videos
        self.lock = Lock()

    def read(self, path: Path) -> dict[str, Any]:
        """The message part of a file. A `Path` is never read as a URL."""
        if not path.is_file():
            raise ValueError(f"{path.name} has been deleted, as images are after an hour: start a new conversation.")
        part = visual_part(path, self.sees_videos)
        return part if part["type"] == "video" else {"type": "image", "image": read_image(path)}

    def stream(self, turns: list[Turn], options: dict[str, Any]) -> Generator[str, None, None]:
        *earlier, asked = messages(turns, self.read)
        *seen, question = asked["content"]
        with self.lock, memory_advice(ADVICE):
            chat = Chat(self.model, self.processor, history=earlier)
            pieces: Any = chat.stream(question["text"], [part[part["type"]] for part in seen], **options)
            with closing(pieces):
                yield from itertools.accumulate(pieces)
        yield chat.messages[-1]["content"]  # a character of several tokens may have come in pieces

    def look(
        self, turns: list[Turn], number: int, span: tuple[int, int] | None = None
    ) -> list[tuple[str, PIL.Image.Image]]:
        read = messages(turns[: number + 1], self.read)
        with self.lock, memory_advice(ADVICE):
            maps = heat_maps(self.model, self.processor, read, span)
        for _, image in maps:
            image.thumbnail(LARGEST_MAP)
        return maps


class EndpointDesk(Desk):
    """
    A model behind an OpenAI-style endpoint, which answers several questions in parallel.

    Args:
        endpoint ([`Endpoint`]): The endpoint's model.
    """

    sees_videos = True
    side_by_side = 16

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self.about = About(endpoint.name)

    def read(self, path: Path) -> dict[str, Any]:
        kind = visual_part(path, self.sees_videos)["type"]
        if kind == "image":
            read_image(path)
        return {"type": kind, "path": str(path)}

    def stream(self, turns: list[Turn], options: dict[str, Any]) -> Generator[str, None, None]:
        taken = {"max_tokens": options["max_new_tokens"]}
        taken |= {name: options[name] for name in ("temperature", "top_p") if name in options}
        yield from itertools.accumulate(self.endpoint.stream(messages(turns, self.read), **taken))


def models_of(url: str) -> list[str]:
    """
    Lists the models of an endpoint.

    Raises:
        ConnectionError: if the endpoint does not list them.
    """
    import openai

    try:
        with openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=20) as client:
            return [model.id for model in client.models.list()]
    except openai.APIError as error:
        raise ConnectionError(f"The endpoint {url} does not list its models: {error.__cause__ or error}") from error


def at_endpoint(url: str, model: str | None) -> EndpointDesk:
    """
    A desk for a model of an endpoint, by default its only one.

    Raises:
        ValueError: for an unknown model, and without a name if there are several.
        ConnectionError: if the endpoint cannot be reached.
    """
    names = models_of(url)
    if model is None and len(names) == 1:
        model = names[0]
    if model not in names:
        raise ValueError(f"The endpoint {url} has no model {model!r}: give --model, one of {', '.join(names)}.")
    return EndpointDesk(Endpoint(model, url))


def is_photograph(image: PIL.Image.Image) -> bool:
    """Whether no single colour covers much of an image, as the background of a drawing does."""
    dots = image.convert("RGB").resize((64, 64), PIL.Image.Resampling.NEAREST).point([v // 16 for v in range(256)] * 3)
    return max(count for count, _ in dots.getcolors(64 * 64) or []) < 0.25 * 64 * 64


def explain(error: Exception, given: Sequence[Path]) -> str:
    """The page's message about a failure: without folders of the server, and only the type of unexpected errors."""
    if not isinstance(error, (ConnectionError, ImportError, MemoryError, ValueError)):
        logger.error("An answer failed.", exc_info=error)
        return f"The answer failed on the server ({type(error).__name__}): see its log."
    text = str(error)
    for path in given:
        text = text.replace(str(path), path.name)
    for folder in {path.parents[1] for path in given}:
        text = re.sub(rf"{re.escape(str(folder))}[^\s'\"]*", "a file", text)
    return text

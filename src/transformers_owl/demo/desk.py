"""What the page asks for: answers to the questions of its conversation, and where the model looked."""

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
NO_IMAGE = "There is no image in this conversation: whatever the answer says about one is made up."
PHOTOGRAPH = "This looks like a photograph. This model knows only drawings, so the answer is a guess."
LARGEST_MAP = (1024, 1024)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """
    What the page says about its model.

    Args:
        name (`str`): Its name.
        link (`str`, *optional*): Where more about it stands.
        knows (`str`, *optional*): What it can be asked about, where that is little.
        knows_photographs (`bool`, defaults to `True`): Whether an answer about one is more than a guess.
    """

    name: str
    link: str | None = None
    knows: str | None = None
    knows_photographs: bool = True

    def __str__(self) -> str:
        return ". ".join(filter(None, (self.name, self.knows)))


def about(model: str) -> About:
    """Of a folder its name alone: the page does not say where on this machine it lies."""
    if model == MINIATURE:
        knows = "It knows drawings of a hundred things, digits, words and short clips, and nothing else."
        return About("the miniature", "https://arxiv.org/abs/2304.14178", knows, knows_photographs=False)
    if Path(model).is_dir():
        return About(Path(model).resolve().name)
    return About(model, f"https://huggingface.co/{model.partition('@')[0]}")


class Desk:
    """Answers the question at the end of a conversation; how, its subclasses say."""

    about: About
    sees_videos: bool
    looks = False
    side_by_side = 1

    def answer(
        self, turns: list[Turn], temperature: float = 0, top_p: float = 1, num_beams: int = 1, length: int = 512
    ) -> Iterator[tuple[list[Turn], str]]:
        """
        The conversation, and what is written of the answer: again and again until it is whole and part of the
        conversation. What fails is an error there.
        """
        if not is_pending(turns):
            yield turns, ""
            return
        written = ""
        try:
            given = files(turns)
            if len(given) > MAX_FILES:
                raise ValueError(f"The conversation has {len(given)} images, {MAX_FILES} at most: start a new one.")
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
        """What the reader of an answer should know."""
        if not files(turns):
            return NO_IMAGE
        given = [Path(file["path"]) for file in turns[-1]["files"]]
        if not self.about.knows_photographs and any(
            is_photograph(read_image(path)) for path in given if visual_part(path, True)["type"] == "image"
        ):
            return PHOTOGRAPH
        return None

    def stream(self, turns: list[Turn], options: dict[str, Any]) -> Generator[str, None, None]:
        """What is written of the answer, again and again until it is whole."""
        raise NotImplementedError

    def look(
        self, turns: list[Turn], number: int, span: tuple[int, int] | None = None
    ) -> list[tuple[str, PIL.Image.Image]]:
        """
        Heat maps over the images, and over the frames of videos, up to an answer, with their captions.

        Args:
            number (`int`): Which of the turns is the answer.
            span (`tuple[int, int]`, *optional*): Where a word of it begins and ends; by default the whole of it counts.

        Raises:
            ValueError: without an image, and where the model does not tell.
        """
        raise ValueError("An endpoint does not tell where its model looked.")


class OwlDesk(Desk):
    """
    A model in this process, which answers one question at a time.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model.
        processor ([`MplugOwlProcessor`]): Its processor.
        about ([`About`]): What the page says about it.
    """

    looks = True

    def __init__(self, model, processor, about: About):
        self.model = model
        self.processor = processor
        self.about = about
        self.sees_videos = model.config.sees_videos
        self.lock = Lock()

    def read(self, path: Path) -> dict[str, Any]:
        """The part of a message that shows a file. As a `Path` it is a file, never a URL."""
        if not path.is_file():
            raise ValueError(f"{path.name} is no longer here: images are kept for an hour. Start a new conversation.")
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
    A model behind an OpenAI-style endpoint, which answers several questions side by side.

    Args:
        endpoint ([`Endpoint`]): The model there.
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
    The names of an endpoint's models.

    Raises:
        ConnectionError: if it does not tell them.
    """
    import openai

    try:
        with openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), timeout=20) as client:
            return [model.id for model in client.models.list()]
    except openai.APIError as error:
        raise ConnectionError(f"The endpoint {url} does not tell its models: {error.__cause__ or error}") from error


def at_endpoint(url: str, model: str | None) -> EndpointDesk:
    """
    A desk for a model of an endpoint, by default its only one.

    Raises:
        ValueError: for a model that it does not have, and without a name where it has several.
        ConnectionError: if it cannot be reached.
    """
    names = models_of(url)
    if model is None and len(names) == 1:
        model = names[0]
    if model not in names:
        raise ValueError(f"The endpoint {url} has no model {model!r}: give --model, one of {', '.join(names)}.")
    return EndpointDesk(Endpoint(model, url))


def is_photograph(image: PIL.Image.Image) -> bool:
    """Whether no colour of an image covers much of it, as the ground of a drawing does."""
    dots = image.convert("RGB").resize((64, 64), PIL.Image.Resampling.NEAREST).point([v // 16 for v in range(256)] * 3)
    return max(count for count, _ in dots.getcolors(64 * 64) or []) < 0.25 * 64 * 64


def explain(error: Exception, given: Sequence[Path]) -> str:
    """What a page says of a failure: no folder of the server, and no more than its kind where nobody foresaw it."""
    if not isinstance(error, (ConnectionError, ImportError, MemoryError, ValueError)):
        logger.error("An answer failed.", exc_info=error)
        return f"The answer failed on the server ({type(error).__name__}). Its log says more."
    text = str(error)
    for path in given:
        text = text.replace(str(path), path.name)
    for folder in {path.parents[1] for path in given}:
        text = re.sub(rf"{re.escape(str(folder))}[^\s'\"]*", "a file", text)
    return text

"""A chat in the terminal."""

import contextlib
import difflib
import json
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import typer

from ..inference import Chat
from ..loading import memory_advice
from ..mplug_owl.image_processing_mplug_owl import read_image
from ..mplug_owl.video_processing_mplug_owl import visual_part


HELP = {
    "/image": "PATH or URL ...: images or videos for the next question",
    "/clear": "a new conversation",
    "/system": "SENTENCE: another system sentence, and a new conversation",
    "/save": "FILE: write the conversation as JSON",
    "/help": "this list",
    "/quit": "leave; so does Ctrl-D. Ctrl-C stops an answer",
}
ADVICE = "Ask for shorter answers (--max-new-tokens), give fewer images, or start a new conversation with /clear."


class TerminalChat:
    """
    Reads questions and commands, and prints answers as they are written.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model.
        processor ([`MplugOwlProcessor`]): Its processor.
        options (`dict`): For `generate`.
        system (`str`, *optional*): A system sentence in place of the original's.
    """

    def __init__(self, model, processor, options: dict, system: str | None = None):
        self.model = model
        self.processor = processor
        self.options = options
        self.system = system
        self.sees_videos = model.config.sees_videos
        self.commands: dict[str, Callable[[str], None]] = {
            "/image": self.add_images,
            "/clear": self.clear,
            "/system": self.change_system,
            "/save": self.save,
            "/help": self.show_help,
        }
        self._begin()

    def _begin(self) -> None:
        self.chat = Chat(self.model, self.processor, self.system)
        self.waiting: list[tuple[str, PIL.Image.Image | str]] = []
        self.sources: list[str] = []

    def run(self, pictures: list[str]) -> None:
        """Talks until /quit or the end of the input, about the images first of all."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (lets `input` edit lines and remember them, where there is such a thing)
        _note("Ask a question. /help lists the commands.")
        first = [f"/image {shlex.join(pictures)}"]
        while True:
            try:
                line = first.pop() if first else input("You: ").strip()
                if line == "/quit":
                    return
                self.follow(line)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                _note("/quit or Ctrl-D leaves.")
            except (ImportError, MemoryError, OSError, ValueError) as error:
                _note(f"Error: {error}", typer.colors.RED)

    def follow(self, line: str) -> None:
        """Does what a line says."""
        name, _, rest = line.partition(" ")
        if not name.startswith("/"):
            return self.ask(line) if line else None
        if name not in self.commands:
            nearest = difflib.get_close_matches(name, HELP, n=1)
            hint = f"Did you mean {nearest[0]}?" if nearest else "/help lists the commands."
            raise ValueError(f"{name} is no command. {hint}")
        return self.commands[name](rest.strip())

    def ask(self, question: str) -> None:
        pictures = [picture for _, picture in self.waiting]
        try:
            with memory_advice(ADVICE), _interrupts(self.chat.stop) as stopped:
                typer.secho("Owl: ", fg=typer.colors.GREEN, bold=True, nl=False)
                for piece in self.chat.stream(question, pictures, **self.options):
                    print(piece, end="", flush=True)
                    if stopped:  # also by a Ctrl-C that came before the answer had begun
                        self.chat.stop()
        finally:
            print()
        if stopped:
            _note("Stopped.")
        self.sources += [source for source, _ in self.waiting]
        self.waiting = []

    def add_images(self, rest: str) -> None:
        for source in shlex.split(rest):
            if visual_part(source, self.sees_videos)["type"] == "video":
                self.add_video(source)
            else:
                picture = read_image(source)
                self.waiting.append((source, picture))
                _note(f"{source}: {picture.width} x {picture.height} pixels, for the next question.")
        if not self.waiting:
            _note("No image yet: /image PATH gives one.")

    def add_video(self, source: str) -> None:
        if not self.sees_videos:
            raise ValueError(f"{source} is a video, but this model sees images alone: take a video release.")
        frames = len(self.processor.video_processor([source])["pixel_values_videos"][0])
        self.waiting.append((source, source))
        _note(f"{source}: a video, of which {frames} frames are seen, for the next question.")

    def clear(self, _: str) -> None:
        self._begin()
        _note("A new conversation.")

    def change_system(self, sentence: str) -> None:
        if not sentence:
            raise ValueError("/system needs a sentence.")
        self.system = sentence
        self.clear("")

    def save(self, name: str) -> None:
        if not name:
            raise ValueError("/save needs the name of a file.")
        path = Path(name).expanduser()
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self._messages(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
        _note(f"Saved to {path}.")

    def _messages(self) -> list[dict]:
        """The conversation as `apply_chat_template` takes it, with images by path or URL."""
        sources = iter(self.sources)

        def named(part: dict) -> dict:
            if part["type"] == "text":
                return part
            source = next(sources)
            kind = "url" if source.startswith(("http://", "https://")) else "path"
            return {"type": part["type"], kind: source if kind == "url" else os.path.abspath(source)}

        return [
            {**message, "content": [named(part) for part in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in self.chat.messages
        ]

    def show_help(self, _: str) -> None:
        for name, what in HELP.items():
            _note(f"{name:8} {what}")


def _note(text: str, colour: str | None = None) -> None:
    typer.secho(text, fg=colour, dim=colour is None)


@contextmanager
def _interrupts(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Ctrl-C calls `stop` in here, and each one is in the list."""
    received: list[int] = []

    def handle(number: int, _) -> None:
        received.append(number)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)

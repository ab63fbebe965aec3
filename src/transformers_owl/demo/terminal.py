"""A chat in the terminal."""

import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unicodedata import east_asian_width

import PIL.Image
import typer

from ..inference import Chat
from ..journal import aside
from ..loading import memory_advice
from ..mplug_owl.configuration_mplug_owl import check_names
from ..mplug_owl.image_processing_mplug_owl import read_image
from ..mplug_owl.video_processing_mplug_owl import visual_part


HELP = {
    "/image": "PATH or URL ...: add images or videos to the next question",
    "/clear": "start a new conversation",
    "/system": "SENTENCE: set the system prompt, and start a new conversation",
    "/save": "FILE: save the conversation as JSON",
    "/load": "FILE: continue a saved conversation",
    "/help": "list the commands. Tab completes commands and paths, Alt-Enter starts a new line",
    "/quit": "leave, as do exit, quit and Ctrl-D. Ctrl-C stops an answer, and keeps its text so far",
}
LEAVE = {"/quit", "/exit", "quit", "exit"}
ADVICE = "Ask for shorter answers (--max-new-tokens), give fewer images, or start a new conversation with /clear."


class TerminalChat:
    """
    Reads questions and commands, and prints answers as they are written.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model.
        processor ([`MplugOwlProcessor`]): Its processor.
        options (`dict`): Options of `generate`.
        system (`str`, *optional*): A system prompt instead of the original's.
        name (`str`): Name of the model, and perhaps what it knows.
    """

    def __init__(self, model, processor, options: dict, system: str | None = None, name: str = ""):
        self.model = model
        self.processor = processor
        self.options = options
        self.system = system
        self.name = name
        self.sees_videos = model.config.sees_videos
        self.commands: dict[str, Callable[[str], None]] = {
            "/image": self.add_images,
            "/clear": self.clear,
            "/system": self.change_system,
            "/save": self.save,
            "/load": self.load,
            "/help": self.show_help,
        }
        self._begin([])

    def _begin(self, messages: list[dict]) -> None:
        self.chat = Chat(self.model, self.processor, self.system, messages)
        self.waiting: list[tuple[str, PIL.Image.Image | str]] = []
        self.sources: list[str] = []

    def run(self, images: list[str]) -> None:
        """
        Chats until /quit or the end of the input, starting with the given images.

        Raises:
            ValueError: and other errors, for a mistake in lines from a file or a pipe. In a terminal, mistakes are
                printed and the chat continues.
        """
        is_person = sys.stdin.isatty()
        read = typed_lines(COMPLETES) if is_person and sys.stdout.isatty() else piped_line
        _note(f"{self.name}\nAsk a question. /help lists the commands.".lstrip())
        first = [f"/image {shlex.join(images)}"]
        while True:
            try:
                line = first.pop() if first else read().strip()
                if line in LEAVE:
                    return
                self.follow(line)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                _note("/quit or Ctrl-D leaves.")
            except (ImportError, MemoryError, OSError, ValueError) as error:
                if not is_person:
                    raise
                _note(f"Error: {error}", typer.colors.RED)

    def follow(self, line: str) -> None:
        """Runs a line of input: a command or a question."""
        name, _, rest = line.partition(" ")
        if not name.startswith("/"):
            return self.ask(line) if line else None
        if name not in self.commands:
            check_names([name], HELP, "command")
        return self.commands[name](rest.strip())

    def ask(self, question: str) -> None:
        images = [image for _, image in self.waiting]
        try:
            with memory_advice(ADVICE), _interrupts(self.chat.stop) as stopped:
                typer.secho("Owl: ", fg=typer.colors.GREEN, bold=True, nl=False)
                words = Wrapped(len("Owl: "))
                for piece in self.chat.stream(question, images, **self.options):
                    words.write(piece)
                    if stopped:  # also by a Ctrl-C that came before the answer had begun
                        self.chat.stop()
                words.end()
        finally:
            print()
        if stopped:
            _note("Stopped. The text so far stays in the conversation.")
        self.sources += [source for source, _ in self.waiting]
        self.waiting = []

    def add_images(self, rest: str) -> None:
        for source in map(home, shlex.split(rest)):
            if visual_part(source, self.sees_videos)["type"] == "video":
                self.add_video(source)
            else:
                image = read_image(source)
                self.waiting.append((source, image))
                _note(f"{source}: {image.width} x {image.height} pixels, added to the next question.")
        if not self.waiting:
            _note("No image yet: add one by /image PATH.")

    def add_video(self, source: str) -> None:
        if not self.sees_videos:
            raise ValueError(f"{source} is a video, but this model takes images only: use a video release.")
        frames = len(self.processor.video_processor([source])["pixel_values_videos"][0])
        self.waiting.append((source, source))
        _note(f"{source}: a video, {frames} frames of it added to the next question.")

    def clear(self, _: str) -> None:
        self._begin([])
        _note("Started a new conversation.")

    def change_system(self, sentence: str) -> None:
        if not sentence:
            raise ValueError("/system needs a sentence: write `/system SENTENCE`.")
        self.system = sentence
        self.clear("")

    def save(self, name: str) -> None:
        if not name:
            raise ValueError("/save needs the name of a file: write `/save FILE`.")
        path = Path(home(name))
        with aside(path) as file:
            file.write((json.dumps(self._messages(), ensure_ascii=False, indent=2) + "\n").encode())
        _note(f"Saved to {path.absolute()}.")

    def load(self, name: str) -> None:
        if not name:
            raise ValueError("/load needs the name of a file: write `/load FILE`.")
        path = Path(home(name))
        try:
            messages = json.loads(path.read_text(encoding="utf-8"))
            seen = [part for message in messages for part in message["content"] if isinstance(message["content"], list)]
            sources = [part.get("path", part.get("url")) for part in seen if part["type"] != "text"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path.absolute()} is not a conversation that /save wrote.") from error
        for source in sources:
            if visual_part(source, self.sees_videos)["type"] == "image":
                read_image(source)
        has_system = bool(messages) and messages[0]["role"] == "system"
        self.system = messages[0]["content"] if has_system else None
        self._begin(messages[has_system:])
        self.sources = sources
        _note(f"Loaded {path.absolute()}: {len(messages[has_system:]) // 2} questions and answers.")

    def _messages(self) -> list[dict]:
        """The conversation in the format of `apply_chat_template`, with images by path or URL."""
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


def home(source: str) -> str:
    """A path with `~` expanded; URLs do not change."""
    return os.path.expanduser(source) if source.startswith("~") else source


def piped_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


# Commands, and whether paths come after them.
COMPLETES = {name: name in ("/image", "/save", "/load") for name in HELP}


def typed_lines(commands: Mapping[str, bool], **options) -> Callable[[], str]:
    """
    A function that reads a question from the terminal, with several lines by Alt-Enter or pasting, history by the arrow
    keys, and completion of commands and paths by Tab.

    Args:
        commands (`Mapping[str, bool]`): Commands, and whether paths follow each.
        options: Options of `PromptSession`.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings

    paths = PathCompleter(expanduser=True)

    class CommandCompleter(Completer):
        def get_completions(self, document, complete_event):
            text = document.text_before_cursor
            name, space, rest = text.partition(" ")
            if space and commands.get(name):
                yield from paths.get_completions(Document(rest.rpartition(" ")[2]), complete_event)
            elif text.startswith("/") and not space:
                yield from (Completion(known, -len(text)) for known in commands if known.startswith(text))

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
    session: PromptSession[str] = PromptSession(
        "You: ", completer=CommandCompleter(), complete_while_typing=False, multiline=True, key_bindings=keys, **options
    )
    return session.prompt


class Wrapped:
    """
    Prints streamed text, with line breaks between words.

    Args:
        column (`int`): Column in which the text starts.
    """

    def __init__(self, column: int):
        self.column = column
        self.width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        self.word = ""

    def write(self, text: str) -> None:
        if self.width is None:
            print(text, end="", flush=True)
            return
        for letter in text:
            if letter.isspace():
                self._place(letter)
            elif east_asian_width(letter) in "WF":  # a word of its own
                self._place("")
                self.word = letter
                self._place("")
            else:
                self.word += letter

    def end(self) -> None:
        self._place("")

    def _place(self, space: str) -> None:
        length = sum(1 + (east_asian_width(letter) in "WF") for letter in self.word)
        if self.width is not None and self.column + length > self.width and self.column > 0:
            print()
            self.column = 0
        self.column += length
        is_full = self.width is not None and self.column + len(space) > self.width
        ends = space == "\n" or (is_full and space != "")
        print(self.word, end="\n" if ends else space, flush=True)
        self.column = 0 if ends else self.column + len(space)
        self.word = ""


def _note(text: str, colour: str | None = None) -> None:
    typer.secho(text, fg=colour, dim=colour is None)


@contextmanager
def _interrupts(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Within it Ctrl-C calls `stop`, and is added to the list."""
    received: list[int] = []

    def handle(number: int, _) -> None:
        received.append(number)
        stop()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)

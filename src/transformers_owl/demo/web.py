"""A chat in the browser."""

import html
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr
import PIL.Image

from .. import pages
from ..inference import Chat, draw_attention, image_attention
from ..loading import generation_options, memory_advice
from ..mplug_owl.image_processing_mplug_owl import read_image
from ..mplug_owl.video_processing_mplug_owl import visual_part


MAX_FILE_SIZE = "20mb"
MAX_IMAGES = 16  # of one conversation
PICTURES = Path(__file__).parent / "pictures"
EXAMPLES: list[Any] = [
    [{"text": question, "files": [str(PICTURES / f"{name}.png") for name in names]}]
    for question, *names in (
        ("What is on the left?", "castle-and-octopus"),
        ("How many things are there?", "helicopters"),
        ("What number is written?", "number"),
    )
]
ADVICE = "Lower the number of beams or the longest answer in the settings, or start again with fewer images."
STYLE = """
.gradio-container main { max-width: 860px !important; width: 100%; margin: 0 auto !important; }
.bubble-wrap .message img { max-height: 220px; width: auto; }
.title { text-align: center; color: var(--body-text-color); overflow-wrap: anywhere; }
.title h1 { font-size: 1.5rem; margin: 8px 0 2px; }
.message-buttons-right { display: none; } /* what shares a question would upload its pictures */
.quiet { color: var(--body-text-color); opacity: 0.75; font-size: 0.9rem; }
"""


class OwlDesk:
    """
    What the page asks for; one answer at a time.

    Args:
        model ([`MplugOwlForConditionalGeneration`]): The model.
        processor ([`MplugOwlProcessor`]): Its processor.
    """

    def __init__(self, model, processor):
        self.model = model
        self.processor = processor
        self.sees_videos = model.config.sees_videos
        self.lock = Lock()

    def answer(
        self, message: dict, history: list[dict], temperature: float, top_p: float, num_beams: float, length: float
    ) -> Iterator[str]:
        """The answer so far, again and again until it is whole."""
        with _shown():
            if not message["text"].strip():
                raise ValueError("There is no question: write one to go with the image.")
            earlier = read_history(history, self.sees_videos)
            # Uploads come as paths, examples as gradio's descriptions of files.
            files = [file["path"] if isinstance(file, dict) else file for file in message["files"]]
            pictures = [read_upload(path, self.sees_videos) for path in files]
            _check_number(len(pictures) + len(_shown_parts(earlier)))
            options = generation_options(int(length), temperature, top_p, int(num_beams))
            with self.lock, memory_advice(ADVICE):
                written = ""
                for piece in Chat(self.model, self.processor, history=earlier).stream(
                    message["text"], pictures, **options
                ):
                    written += piece
                    yield written

    def look(self, history: list[dict], word: str) -> list[tuple[PIL.Image.Image, str]] | None:
        """Heat maps over the images of the conversation, for its last answer; none where that fails."""
        with _shown():
            messages = read_history(history, self.sees_videos)
            if not messages:
                raise ValueError("There is no answer yet: ask about an image first.")
            pictures = _shown_parts(messages)
            if any(part["type"] == "video" for part in pictures):
                raise ValueError("Maps are drawn over images, but the conversation has a video.")
            with self.lock, memory_advice(ADVICE):
                found = image_attention(self.model, self.processor, messages, word.strip() or None)
            return [
                (draw_attention(part["image"], attention.patches), f"{attention.positions.sum():.0%} of the attention")
                for part, attention in zip(pictures, found, strict=True)
            ]
        return None


def read_history(history: list[dict], sees_videos: bool) -> list[dict[str, Any]]:
    """The page's messages as the processor takes them; a question that got no answer is left out."""
    messages: list[dict[str, Any]] = []
    for asked, answered in pairwise(history):
        if (asked["role"], answered["role"]) == ("user", "assistant"):
            answer = "".join(part["text"] for part in answered["content"])
            messages.append({"role": "user", "content": [_read_part(part, sees_videos) for part in asked["content"]]})
            messages.append({"role": "assistant", "content": answer})
    return messages


def _read_part(part: dict, sees_videos: bool) -> dict[str, Any]:
    if part["type"] == "file":
        return visual_part(read_upload(part["file"]["path"], sees_videos), sees_videos)
    return {"type": "text", "text": part["text"]}


def read_upload(path: str, sees_videos: bool) -> PIL.Image.Image | Path:
    """An uploaded image, or the path of a video. As a `Path` it is a file, never a URL."""
    if sees_videos and visual_part(Path(path), sees_videos)["type"] == "video":
        return Path(path)
    try:
        return read_image(Path(path))
    except ValueError as error:
        raise ValueError(f"{Path(path).name} cannot be read as an image: give a whole PNG, JPEG or WebP.") from error


def _shown_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The images and videos of a conversation."""
    parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
    return [part for part in parts if part["type"] != "text"]


def _check_number(number: int) -> None:
    if number > MAX_IMAGES:
        raise ValueError(f"The conversation has {number} images, {MAX_IMAGES} at most: start a new one.")


@contextmanager
def _shown() -> Iterator[None]:
    """What a user can get wrong is shown on the page. A `gr.Error` would leave it waiting for the end of the answer."""
    try:
        yield
    except (ImportError, MemoryError, ValueError) as error:
        gr.Warning(str(error), title="No answer")


def build_page(desk: OwlDesk, name: str) -> gr.Blocks:
    """The page for the model called `name`, to be served with `css=STYLE`."""
    with gr.Blocks(title="mPLUG-Owl", analytics_enabled=False, delete_cache=(300, 3600)) as page:
        gr.HTML(
            f'<div class="title"><h1>mPLUG-Owl</h1><div class="quiet">{html.escape(name)}<br>'
            "It can be wrong with confidence. Pictures and words are not kept.</div></div>"
        )
        chat = gr.ChatInterface(
            desk.answer,
            multimodal=True,
            chatbot=gr.Chatbot(
                show_label=False, height="60vh", min_height=340, render_markdown=False, buttons=["copy"],
                layout="bubble", allow_file_downloads=False,
                placeholder="Add an image and ask about it.",
            ),
            textbox=gr.MultimodalTextbox(
                file_count="multiple", file_types=["image", "video"] if desk.sees_videos else ["image"],
                placeholder="Ask about an image", autofocus=True, submit_btn=True, stop_btn=True, max_lines=6,
            ),
            additional_inputs=_settings(),
            additional_inputs_accordion=gr.Accordion("Settings", open=False, render=False),
            examples=EXAMPLES,
            concurrency_limit=1,
            api_visibility="private",
            fill_height=False,
        )  # fmt: skip
        _add_attention(desk, chat)
    return page


def _settings() -> list[Any]:
    return [
        gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 always takes the likeliest word.", render=False),
        gr.Slider(0.1, 1, 0.9, step=0.05, label="Top-p", info="The likeliest words of this share.", render=False),
        gr.Slider(1, 5, 1, step=1, label="Beams", info="Beyond 1 the answer comes in one piece.", render=False),
        gr.Slider(16, 1024, 512, step=16, label="Longest answer", info="In tokens.", render=False),
    ]  # fmt: skip


def _add_attention(desk: OwlDesk, chat: gr.ChatInterface) -> None:
    """Where the model looked, below the conversation."""
    with gr.Accordion("Where it looked", open=False):
        word = gr.Textbox(label="A word of the last answer", info="Empty: the whole answer.", submit_btn="Show")
        maps = gr.Gallery(show_label=False, columns=2, object_fit="contain", interactive=False, buttons=["fullscreen"])
    word.submit(desk.look, [chat.chatbot, word], maps, concurrency_limit=1, api_visibility="private")
    # They are of the last answer: with another one they go.
    changes = [
        chat.textbox.submit,
        chat.chatbot.retry,
        chat.chatbot.undo,
        chat.chatbot.clear,
        chat.chatbot.example_select,
    ]
    gr.on(changes, lambda: None, None, maps, queue=False, show_progress="hidden", api_visibility="private")


def check_port(host: str, port: int) -> None:
    """Raises a ValueError if the port cannot be served at."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"{host}:{port} cannot be served at ({error.strerror}): choose another --port.") from error


@contextmanager
def serving(model, processor, name: str, host: str, port: int) -> Iterator[gr.Blocks]:
    """Serves the page at `http://HOST:PORT`; uploads lie in a folder that goes with it."""

    def build() -> gr.Blocks:
        return build_page(OwlDesk(model, processor), name).queue(max_size=64)

    with pages.serving(build, host, port, takes_uploads=True, css=STYLE, max_file_size=MAX_FILE_SIZE) as page:
        yield page

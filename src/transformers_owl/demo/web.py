"""The chat page in the browser."""

import base64
import html
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image

from .. import pages
from . import conversation
from .conversation import EMPTY, Box, Turn
from .desk import About, Desk, OwlDesk, explain
from .rendering import mark_words, render, render_answer


MAX_FILE_SIZE = "20mb"
# Gradio keeps some 50 KB for each of the last visitors. The conversation is in the browser: a forgotten one goes on.
VISITORS_REMEMBERED = 64
IMAGES = Path(__file__).parent / "pictures"
PAGE = Path(__file__).parent / "page"
EXAMPLES: list[Box] = [
    {"text": question, "files": names, **more}
    for question, names, more in (
        ("What is on the left?", ["castle-and-octopus.png"], {}),
        ("How many things are there?", ["helicopters.png"], {}),
        ("What number is written?", ["number.png"], {}),
        ("Was ist das?", ["sunflower.png"], {}),
        ("Which picture shows an elephant?", ["sunflower.png", "elephant.png"], {}),
        ("What is on the right?", ["castle-and-octopus.png"], {"next": "What kind of thing is it?"}),
        ("Describe the clip.", ["elephant-moves.mp4"], {}),
    )
]
WARNING = "It can be confidently wrong. Images and text are not kept on the server."
Log = dict[str, Any]
NOW: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class Page:
    """
    The page of a desk. Its conversation is sent with every event, as the value of the component that shows it.

    Args:
        desk ([`Desk`]): The desk that answers.
        folder (`str`): Folder of the files that the page may show; the example images are copied there.
    """

    def __init__(self, desk: Desk, folder: str):
        self.desk = desk
        self.examples = [
            {**example, "files": [shutil.copy(IMAGES / name, folder) for name in example["files"]]}
            for example in EXAMPLES
            if not any(name.endswith(".mp4") for name in example["files"])
            or (desk.sees_videos and find_spec("av") is not None)
        ]

    def log(self, turns: Sequence[Turn]) -> Log:
        return {"turns": list(turns), "html": render(turns, self.desk.looks)}

    def send(self, box: Box, log: Log) -> tuple[Any, Log]:
        if conversation.is_pending(log["turns"]):
            raise gr.Error("The answer is still being written.", visible=False, print_exception=False)
        turns, left = conversation.send(log["turns"], box)
        return self.box(left, is_answering=True), self.log(turns)

    def answer(self, log: Log, *settings: Any) -> Iterator[tuple[Any, dict]]:
        for turns, written in self.desk.answer(log["turns"], *settings):
            # Only the last one changes the conversation: one that is late, after a stop, does not bring it back.
            yield gr.skip() if turns is log["turns"] else self.log(turns), live(written)

    def settle(self, log: Log, written: dict, box: Box) -> tuple[Any, Log, dict]:
        turns, left = conversation.settle(log["turns"], written["text"], box)
        return self.box(left), self.log(turns), live("")

    def resume(self, turns: list[Turn] | None, written: str | None) -> tuple[Any, Any, Any]:
        """Restores the conversation that the browser kept over a reload, if it kept one."""
        if not turns:  # what was typed or sent while the page was loading stays
            return gr.skip(), gr.skip(), gr.skip()
        if not all(path.is_file() for path in conversation.files(turns)):
            turns = [{"role": "error", "text": "The images of the conversation have been deleted: start a new one."}]
        return self.settle({"turns": turns}, {"text": written or ""}, EMPTY)

    def undo(self, log: Log, box: Box) -> tuple[Any, Log]:
        turns, left = conversation.undo(log["turns"], box)
        return self.box(left), self.log(turns)

    def retry(self, log: Log, box: Box) -> tuple[Any, Log]:
        turns, left = conversation.retry(log["turns"], box)
        return self.box(left, is_answering=True), self.log(turns)

    def example(self, event: gr.EventData) -> tuple[Any, Log]:
        """Starts a new conversation, since the model would also see earlier images."""
        return self.send(self.examples[event.number], self.log([]))

    def clear(self) -> tuple[Log, dict]:
        return self.log([]), live("")

    def look(self, log: Log, event: gr.EventData) -> str:
        """The contents of the dialog."""
        turns: list[Turn] = log["turns"]
        span: tuple[int, int] | None = None
        if event.span is not None:
            start, end = map(int, event.span.split(","))
            span = (start, end)
        text = turns[event.turn]["text"]
        try:
            maps = self.desk.look(turns, event.turn, span)
        except Exception as error:
            return (
                f'<h2>Where it looked</h2><p role="alert">{html.escape(explain(error, conversation.files(turns)))}</p>'
            )
        word = "while it wrote the answer" if span is None else f"when it wrote “{html.escape(text[slice(*span)])}”"
        words = mark_words(text, text)
        if span is not None:
            place = f'data-span="{span[0]},{span[1]}"'
            words = words.replace(place, f'{place} aria-pressed="true"')
        shown = "".join(
            f'<figure><img src="{as_url(image)}" alt="Heat map: {caption}"><figcaption>{caption}</figcaption></figure>'
            for caption, image in maps
        )
        return (
            f'<h2>Where it looked {word}</h2><div data-turn="{event.turn}">{words}</div><div class="maps">{shown}</div>'
            '<div class="legend">less<i></i>more attention</div>'
        )

    def box(self, box: Box, is_answering: bool = False) -> Any:
        return gr.update(value=box, submit_btn=not is_answering, stop_btn=is_answering)


def live(written: str) -> dict[str, str]:
    """The component's value for an answer while it is streamed."""
    shown = f'<article class="turn owl"><div class="markdown">{render_answer(written)}</div></article>'
    return {"text": written, "html": shown if written else ""}


def as_url(image: PIL.Image.Image, size: int | None = None) -> str:
    """The image as a data URL."""
    shown = image.convert("RGB")
    if size is not None:
        shown.thumbnail((size, size))
    file = io.BytesIO()
    shown.save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def build_page(desk: Desk, folder: str) -> gr.Blocks:
    """Builds the page, to be served with the files in `PAGE`."""
    page = Page(desk, folder)
    with gr.Blocks(title=f"mPLUG-Owl: {desk.about.name}", analytics_enabled=False, delete_cache=(300, 3600)) as blocks:
        gr.HTML(title(desk.about))
        with gr.Column(elem_id="talk"):
            log = gr.HTML(
                page.log([]), js_on_load=(PAGE / "log.js").read_text(),
                html_template='<div role="log" aria-label="Conversation">${value.html}</div>',
            )  # fmt: skip
            written = gr.HTML(live(""), html_template="${value.html}", js_on_load=(PAGE / "live.js").read_text())
        box = gr.MultimodalTextbox(
            file_count="multiple", file_types=["image", "video"] if desk.sees_videos else ["image"], elem_id="box",
            label="Your question", show_label=False, placeholder="Ask about an image", autofocus=True, max_lines=6,
        )  # fmt: skip
        examples = gr.HTML(chips(page.examples), js_on_load=(PAGE / "examples.js").read_text())
        with gr.Accordion("Settings", open=False):
            settings = _settings(isinstance(desk, OwlDesk))
        maps = gr.HTML(
            "", elem_id="maps", js_on_load=(PAGE / "maps.js").read_text(),
            html_template='<dialog aria-label="Where it looked"><button type="button" class="close" data-do="close">'
            "Close</button>${value}</dialog>",
        )  # fmt: skip

        asking = [
            box.submit(page.send, [box, log], [box, log], **NOW),
            examples.example(page.example, None, [box, log], **NOW),
            log.retry(page.retry, [log, box], [box, log], **NOW),
        ]
        lane = {"concurrency_id": "answers", "concurrency_limit": desk.side_by_side, "api_visibility": "private"}
        answering = [
            asked.success(page.answer, [log, *settings], [log, written], show_progress_on=written, **lane)
            for asked in asking
        ]
        shown = [box, log, written]
        for answered in answering:
            answered.then(page.settle, [log, written, box], shown, **NOW)
        stopped = box.stop(lambda: None, None, None, cancels=answering, **NOW)
        stopped.then(page.settle, [log, written, box], shown, **NOW)
        log.undo(page.undo, [log, box], [box, log], **NOW)
        log.clear(page.clear, None, [log, written], **NOW)
        if desk.looks:
            for clicked in (log.look, maps.look):
                clicked(page.look, [log], maps, show_progress="hidden", **lane)
        kept = "() => ['owl-turns', 'owl-written'].map((name) => JSON.parse(sessionStorage.getItem(name)))"
        blocks.load(page.resume, [log, written], shown, js=kept, **NOW)
    return blocks


def title(about: About) -> str:
    name = html.escape(about.name)
    if about.link:
        name = f'<a href="{html.escape(about.link, quote=True)}" target="_blank" rel="noopener">{name}</a>'
    said = " ".join(filter(None, (about.knows, WARNING)))
    quiet = f'<div class="quiet">{html.escape(said)}</div>'
    return f'<div class="title"><h1>mPLUG-Owl</h1><strong>{name}</strong>{quiet}</div>'


def chips(examples: Sequence[Box]) -> str:
    """Buttons for the examples."""
    shown = []
    for number, example in enumerate(examples):
        seen = "".join(
            '<span aria-hidden="true">▶</span>'
            if path.endswith(".mp4")
            else f'<img src="{as_url(PIL.Image.open(path), 72)}" alt="">'
            for path in example["files"]
        )
        then = f" … {example['next']}" if "next" in example else ""
        name = html.escape(example["text"] + then)
        shown.append(f'<button type="button" data-example="{number}">{seen}{name}</button>')
    return f'<div class="examples" role="group" aria-label="Examples">{"".join(shown)}</div>'


def _settings(has_beams: bool) -> list[Any]:
    return [
        gr.Slider(0, 2, 0, step=0.1, label="Temperature", info="0 is greedy decoding; higher values vary more."),
        gr.Slider(0.1, 1, 0.9, step=0.05, label="Top-p", info="Sample from the likeliest tokens of this total."),
        gr.Slider(1, 5, 1, step=1, label="Beams", info="Above 1 the answer is not streamed.", visible=has_beams),
        gr.Slider(16, 1024, 512, step=16, label="Longest answer", info="In tokens."),
    ]


@contextmanager
def serving(desk: Desk, host: str, port: int) -> Iterator[gr.Blocks]:
    """Serves the page at `http://HOST:PORT`; its uploads are deleted at the end."""
    with pages.serving(
        lambda: build_page(desk, os.environ["GRADIO_TEMP_DIR"]).queue(max_size=64),
        host,
        port,
        takes_uploads=True,
        description=f"Ask {desk.about.name} about images.",
        css=(PAGE / "page.css").read_text(),
        js=(PAGE / "page.js").read_text(),
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=VISITORS_REMEMBERED,
    ) as page:
        yield page

"""Makes the images of the pages, with the miniature: `make docs-images`."""

import io
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.text import Text

from transformers_owl import MINIATURE
from transformers_owl.demo import web
from transformers_owl.demo.desk import OwlDesk, about
from transformers_owl.demo.looking import look
from transformers_owl.evaluation import rating_page
from transformers_owl.evaluation.rating_desk import RatingDesk
from transformers_owl.evaluation.records import Answers, Question
from transformers_owl.inference import Chat
from transformers_owl.loading import load


ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs/images"
DRAWING = "src/transformers_owl/demo/pictures/castle-and-octopus.png"
QUESTION = "Describe the picture."  # the words that the miniature was trained on


def heat_maps() -> None:
    """The drawing, and where the model looked when it wrote two of the words."""
    tiles = [("the image", PIL.Image.open(ROOT / DRAWING).convert("RGB"))]
    for word in ("castle", "octopus"):
        file = IMAGES / f"{word}.png"
        look(MINIATURE, [str(ROOT / DRAWING)], QUESTION, file, word)
        tiles.append((f"“{word}”", PIL.Image.open(file).convert("RGB")))
        file.unlink()
    side, space, line = tiles[0][1].width, 12, 24
    strip = PIL.Image.new("RGB", (len(tiles) * (side + space) - space, side + line), "white")
    draw = PIL.ImageDraw.Draw(strip)
    font = PIL.ImageFont.load_default(size=15)
    for number, (title, tile) in enumerate(tiles):
        left = number * (side + space)
        strip.paste(tile, (left, 0))
        draw.text((left + side / 2, side + 4), title, fill="#444444", font=font, anchor="ma")
    strip.save(IMAGES / "attention.png", optimize=True)


def terminal() -> None:
    """Two commands and what they print."""
    console = Console(record=True, width=124, file=io.StringIO(), force_terminal=True)
    for words in (
        ["caption"],
        ["caption", DRAWING, "--prompt", "What is on the left?"],
    ):
        typed = " ".join(f'"{word}"' if " " in word else word for word in ("transformers-owl", *words))
        console.print(Text(f"$ {typed}", style="bold green"))
        command = [sys.executable, "-m", "transformers_owl", *words]
        printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        console.print(Text(printed.replace(f"{ROOT}/", "")))
    console.save_svg(str(IMAGES / "terminal.svg"), title="transformers-owl")


@contextmanager
def seen(address: str, width: int, height: int) -> Iterator[Page]:
    """A page in Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_context(viewport={"width": width, "height": height}).new_page()
        view.goto(address)
        yield view


def save(view: Page, name: str) -> None:
    shot = PIL.Image.open(io.BytesIO(view.screenshot())).convert("RGB")
    shot.quantize(128).save(IMAGES / name, optimize=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def chat_page() -> None:
    """The web page after two questions."""
    port = free_port()
    desk = OwlDesk(*load(MINIATURE), about(MINIATURE))
    with web.serving(desk, "127.0.0.1", port), seen(f"http://127.0.0.1:{port}", 900, 900) as view:
        view.get_by_role("button", name="Send").wait_for()
        view.wait_for_timeout(1000)
        view.locator("#box input[type=file]").first.set_input_files(ROOT / DRAWING)
        view.locator("#box .thumbnail-item").wait_for()
        for number, question in enumerate((QUESTION, "What is on the right?")):
            view.locator("#box textarea").fill(question)
            view.locator("#box textarea").press("Enter")
            view.locator(".owl[data-text]").nth(number).wait_for()
        view.wait_for_timeout(1000)
        save(view, "page.png")


def rate_page() -> None:
    """The rating page: a drawing, and what the miniature answers by its likeliest words and by others."""
    model, processor = load(MINIATURE)
    torch.manual_seed(0)
    sampled = {"do_sample": True, "temperature": 2.5}
    answers = [Chat(model, processor).ask(QUESTION, [ROOT / DRAWING], **options) for options in ({}, sampled)]
    questions = {1: Question(1, QUESTION, ROOT / DRAWING, ("IU", "VU"))}
    systems = {f"{place}": Answers(IMAGES, f"{place}", {1: text}) for place, text in enumerate(answers)}
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        rating_page.serving(RatingDesk(questions, systems, Path(folder) / "ratings.jsonl"), "127.0.0.1", port),
        seen(f"http://127.0.0.1:{port}", 1000, 760) as view,
    ):
        view.get_by_label("Your name").fill("anna")
        view.get_by_role("button", name="Start").click()
        view.get_by_text("rated by anna").wait_for()
        view.keyboard.press("b")
        view.get_by_text("1 of 2 answers").wait_for()
        view.wait_for_timeout(1000)
        save(view, "rating.png")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    heat_maps()
    terminal()
    chat_page()
    rate_page()

"""Makes the images of the pages, with the miniature: `make docs-images`."""

import io
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

from transformers_owl import MINIATURE
from transformers_owl.demo.desk import OwlDesk, about
from transformers_owl.demo.looking import look
from transformers_owl.demo.web import serving
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


def page() -> None:
    """The web page after two questions."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model, processor = load(MINIATURE)
    with serving(OwlDesk(model, processor, about(MINIATURE)), "127.0.0.1", port), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_context(viewport={"width": 900, "height": 900}).new_page()
        view.goto(f"http://127.0.0.1:{port}")
        box = view.locator("#box textarea")
        view.locator("input[type=file]").first.set_input_files(ROOT / DRAWING)
        view.wait_for_timeout(2500)
        for question in (QUESTION, "What is on the right?"):
            box.fill(question)
            box.press("Enter")
            view.wait_for_timeout(4000)
        shot = PIL.Image.open(io.BytesIO(view.screenshot())).convert("RGB")
        shot.quantize(128).save(IMAGES / "page.png", optimize=True)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    heat_maps()
    terminal()
    page()

"""Memory and CPU time of files made to exhaust them, as in the table of SECURITY.md, on Linux.

python research/benchmarks/attacks.py

Each file goes through the processor, through the code of `transformers-owl caption`, and through a request to
`transformers-owl serve`, with the miniature. Memory is the peak above what the process held before.
"""

import base64
import contextlib
import io
import json
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import PIL.Image
import torch

from transformers_owl import MINIATURE, MplugOwlProcessor
from transformers_owl.collections.engines import GenerateEngine, Settings
from transformers_owl.collections.reading import Item
from transformers_owl.demo.caption import SAMPLES
from transformers_owl.mplug_owl.video_processing_mplug_owl import visual_part


MIB = 2**20
SIDE, HALF = 8190, 5790  # just under what the processor takes, and of half as many pixels


@dataclass(frozen=True)
class Cost:
    """
    What a file cost.

    Args:
        mib (`float`): Peak memory above that before, MiB.
        seconds (`float`): Of a processor.
        said (`str`): Why it was refused; empty if it was not.
    """

    mib: float
    seconds: float
    said: str


def write_gif(path: Path, side: int, frames: int = 1) -> None:
    """Of a colour, and by its header alone where it is too large to be decoded."""
    if side > SIDE or frames > 1:
        image = struct.pack("<4HB", 0, 0, side, side, 0) + b"\2\2\x4c\1\0"
        screen = struct.pack("<HH3B6B", side, side, 0x80, 0, 0, 0, 0, 0, 255, 255, 255)
        path.write_bytes(b"GIF89a" + screen + (b"," + image) * frames + b";")
    else:
        PIL.Image.new("P", (side, side)).save(path)


def write_grey_png(path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join([*(packer.compress(bytes(side + 1)) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def write_image(path: Path, mode: str, side: int = SIDE, **options) -> None:
    PIL.Image.new(mode, (side, side), "brown").save(path, **options)


def write_icon(path: Path) -> None:
    """It says that it has 256 x 256 pixels, and holds a PNG of more."""
    file = io.BytesIO()
    PIL.Image.new("RGBA", (13300, 13300)).save(file, "PNG")
    content = file.getvalue()
    path.write_bytes(struct.pack("<3H4B2H2I", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(content), 22) + content)


def write_many_scans(path: Path, scans: int) -> None:
    """A progressive JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (SIDE, SIDE), "brown").save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    more = scans - content.count(b"\xff\xda")
    path.write_bytes(content[:-2] + content[last:-2] * more + content[-2:])


def write_video(path: Path) -> None:
    """Twelve seconds of 1080p."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for number in range(300):
            level = (number % 256,) * 3
            frame = av.VideoFrame.from_image(PIL.Image.new("RGB", (1920, 1080), level)).reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# The file, how it is written, how many of it a call has.
ATTACKS: dict[str, tuple[str, Callable[[Path], None], int]] = {
    "GIF of 13300 x 13300": ("a.gif", lambda path: write_gif(path, 13300), 1),
    "6 GIFs of 8000 x 8000": ("b.gif", lambda path: write_gif(path, 8000), 6),
    "animated GIF of 8000 x 8000": ("c.gif", lambda path: write_gif(path, 8000, frames=20), 1),
    "grey PNG of 16000 x 16000": ("d.png", lambda path: write_grey_png(path, 16000), 1),
    "transparent PNG of 8190 x 8190": ("e.png", lambda path: write_image(path, "RGBA"), 1),
    "WebP of 5790 x 5790": ("f.webp", lambda path: write_image(path, "RGB", HALF, lossless=True), 1),
    "JPEG 2000 of 5790 x 5790": ("g.jp2", lambda path: write_image(path, "RGB", HALF), 1),
    "WebP of 8190 x 8190": ("l.webp", lambda path: write_image(path, "RGB", lossless=True), 1),
    "JPEG 2000 of 8190 x 8190": ("m.jp2", lambda path: write_image(path, "RGB"), 1),
    "icon of 13300 x 13300": ("n.ico", write_icon, 1),
    "progressive JPEG of 8190 x 8190": ("h.jpg", lambda path: write_image(path, "RGB", progressive=True), 1),
    "the same with 20 scans": ("i.jpg", lambda path: write_many_scans(path, 20), 1),
    "the same with 100 scans": ("j.jpg", lambda path: write_many_scans(path, 100), 1),
    "video of 12 seconds, 1080p, 300 frames": ("k.mp4", write_video, 1),
}


class Process:
    """What a process holds and has used, and the most that it held since the last [`Process.forget`]."""

    def __init__(self, number: int):
        self.folder = Path(f"/proc/{number}")

    def _kib(self, name: str) -> int:
        lines = self.folder.joinpath("status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def resident(self) -> float:
        return self._kib("VmRSS") / 1024

    def peak(self) -> float:
        return self._kib("VmHWM") / 1024

    def forget(self) -> None:
        self.folder.joinpath("clear_refs").write_text("5")

    def seconds(self) -> float:
        user, system = self.folder.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


FORKS = multiprocessing.get_context("fork")
Road = Callable[[str, int], Cost]


@contextlib.contextmanager
def processor() -> Iterator[Road]:
    """What sends a file, given as often as said, and tells what that cost."""
    prepare = MplugOwlProcessor.from_pretrained(MINIATURE)

    def call(path: str, times: int) -> object:
        chat = [{"role": "user", "content": [visual_part(path, sees_videos=True)] * times}]
        return prepare.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")

    yield in_a_fork(call)


@contextlib.contextmanager
def caption() -> Iterator[Road]:
    engine = GenerateEngine(Settings(str(MINIATURE), device="cpu", max_new_tokens=4))

    def call(path: str, times: int) -> object:
        visuals = [engine.prepare(Item(path, path)) for _ in range(times)]
        refused = [visual for visual in visuals if isinstance(visual, str)]
        if refused:
            raise ValueError(refused[0])
        return engine.answer(visuals, "What is it?")

    yield in_a_fork(call)


def in_a_fork(call: Callable[[str, int], object]) -> Road:
    """Each call in a process of its own, which holds the model already and nothing that earlier calls left."""

    def run(pipe, path: str, times: int) -> None:
        torch.set_num_threads(1)
        pipe.send(cost_of(os.getpid(), lambda: said(lambda: call(path, times))))

    def send(path: str, times: int) -> Cost:
        result, pipe = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=run, args=(pipe, path, times))
        process.start()
        pipe.close()
        cost = result.recv()
        process.join()
        return cost

    return send


def cost_of(number: int, send: Callable[[], str]) -> Cost:
    """What a call costs a process."""
    process = Process(number)
    process.forget()
    before, start = process.resident(), process.seconds()
    refusal = send()
    return Cost(process.peak() - before, process.seconds() - start, refusal)


def said(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def serve() -> Iterator[Road]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers_owl", "serve", str(MINIATURE), "--port", str(port)]
    server = subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def send(path: str, times: int) -> str:
        kind = visual_part(path, sees_videos=True)["type"]
        data = base64.b64encode(Path(path).read_bytes()).decode()
        form = "mp4" if path.endswith("mp4") else Path(path).suffix[1:]
        shown = {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{kind}/{form};base64,{data}"}}
        body = {"messages": [{"role": "user", "content": [shown] * times}], "max_tokens": 4}
        request = urllib.request.Request(
            f"http://localhost:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=300).close()
        except urllib.error.HTTPError as error:
            return json.loads(error.read())["error"]["message"]
        return ""

    try:
        while True:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise
                time.sleep(0.2)
        yield lambda path, times: cost_of(server.pid, lambda: send(path, times))
    finally:
        server.terminate()
        server.wait()


ROADS = {"processor": processor, "caption": caption, "serve": serve}


def costs(road: str, folder: Path) -> Iterator[tuple[str, Cost]]:
    """What each attack costs, by its name."""
    with ROADS[road]() as send:
        assert not send(str(SAMPLES[0]), 1).said
        for name, (file, _, times) in ATTACKS.items():
            yield name, send(str(folder / file), times)


def write_all(folder: Path) -> None:
    """The files, written by a process that keeps what that left in its memory."""
    for file, write, _ in ATTACKS.values():
        process = FORKS.Process(target=write, args=(folder / file,))
        process.start()
        process.join()


def main() -> None:
    print("| input | bytes | " + " | ".join(f"{road}, MiB and CPU s" for road in ROADS) + " |")
    print("|---|---|" + "---|" * len(ROADS))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_all(folder)
        rows: dict[str, list[str]] = {attack: [] for attack in ATTACKS}
        for road in ROADS:
            for attack, cost in costs(road, folder):
                refused = ", refused" if cost.said else ""
                rows[attack].append(f"{max(cost.mib, 0):.0f}, {cost.seconds:.1f}{refused}")
        for attack, cells in rows.items():
            size = (folder / ATTACKS[attack][0]).stat().st_size
            print(f"| {attack} | {size:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

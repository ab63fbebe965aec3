"""Captions a collection of drawings in tar shards with a bare loop, with the plain command and on Ray Data.

python research/benchmarks/captions.py [--images 20000] [--shards 40] [--folder build/captions] [--json FILE]

The drawings are those of the package, each with its own colour and place. One in a hundred is damaged, and the last
shard is truncated. The plain run comes first. Then come three runs on two workers: one undisturbed, one in which a
worker is killed, and one whose driver is killed and restarted. Each must write what the plain run wrote, every sample
once. The figures come last, from alternating runs of a bare loop, one worker and two workers: images per second from
the first block to the last, and the memory of all processes after each quarter. Ray's processes have the same priority
as the others.

--only proof, --only figures: run only one of the two parts.
--make FOLDER: only make the shards, with --damaged NUMBER and --cut.
--cost DOLLARS: the cost of a million captions if an hour of an H200 costs this much, computed from the figures of
docs/notes/performance-training.md.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from PIL import Image, ImageOps

from transformers_owl import MINIATURE
from transformers_owl.collections.engines import GenerateEngine, Settings
from transformers_owl.collections.inputs import find_parts
from transformers_owl.collections.on_ray import Blocks, caption_on_ray
from transformers_owl.collections.outputs import Output, batches
from transformers_owl.collections.reading import items
from transformers_owl.collections.running import Count, caption
from transformers_owl.demo.caption import SAMPLES


TOKENS = 20
ENVIRONMENT = {**os.environ, "RAY_worker_niceness": "0"}
# As Ray gives each worker: with another number of threads the sums round otherwise, which can change a caption.
ONE_THREAD = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
# Of one H200: seconds, as docs/notes/performance-training.md has them, and the limits of the card.
ENCODE_64, STEP, RECORDED_STEP = 30.7e-3, 58.9e-3, 6.7e-3
FLOPS, BANDWIDTH = 788e12, 4392e9
PARAMETERS, POSITIONS, KEY_VALUES = 6.7e9, 125, 2 * 32 * 4096 * 2  # of LLaMA-7B; the prompt; bytes a position
PREFILL_SHARE = 0.48  # of the rate of products, as in encoding


def drawing(number: int) -> bytes:
    """A drawing of the package, tinted and moved, as a PNG file."""
    with Image.open(SAMPLES[number % len(SAMPLES)]) as sample:
        image = sample.convert("RGB")
    colour = (number * 37 % 256, number * 91 % 256, number * 151 % 256)
    image = Image.blend(image, Image.new("RGB", image.size, colour), 0.25)
    shift = number // len(SAMPLES) % 12
    image = ImageOps.expand(image, border=(shift, 11 - shift, 0, shift), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def make(folder: Path, images: int, shards: int, damaged: int, cut: bool) -> str:
    """Writes the shards; every `images / damaged`-th file is damaged, and the last shard lacks its second half."""
    folder.mkdir(parents=True, exist_ok=True)
    bad = {round(number * images / damaged) for number in range(damaged)} if damaged else set()
    for shard in range(shards):
        path = folder / f"{shard:05}.tar"
        with tarfile.open(path, "w") as archive:
            for number in range(shard * images // shards, (shard + 1) * images // shards):
                data = drawing(number)
                data = data[: len(data) // 3] if number in bad else data
                member = tarfile.TarInfo(f"{number:06}.png")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        if cut and shard == shards - 1:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2])
    return str(folder / f"{{00000..{shards - 1:05}}}.tar")


def command(shards: str, output: Path, *options: str) -> list[str]:
    asked = ["--max-new-tokens", str(TOKENS), "--device", "cpu", "--output", str(output)]
    return [sys.executable, "-m", "transformers_owl", "caption", shards, *asked, *options]


def end(process: subprocess.Popen, what: str) -> None:
    """Ends a "worker", or the "driver" and all that it started, by SIGKILL."""
    own = psutil.Process(process.pid).children(recursive=True)
    models = [each for each in own if "Answerer" in " ".join(each.cmdline())]
    assert len(models) == 2, f"{len(models)} workers were found, but 2 were expected"
    if what == "worker":
        models[0].kill()
        return
    process.kill()
    for each in own:
        if each.is_running():
            each.kill()
    process.wait()


def run(shards: str, output: Path, *options: str, kill: str | None = None) -> float:
    """Seconds of a run; a worker or the driver is killed after a few blocks."""
    begun = time.monotonic()
    process = subprocess.Popen(command(shards, output, *options), env=ONE_THREAD, stdout=subprocess.DEVNULL)
    if kill is not None:
        store = Blocks(f"{output}.blocks")
        while len(store.names()) < 4:
            assert process.poll() is None, "the run has ended before it was killed: take more images"
            time.sleep(0.2)
        end(process, kill)
        if kill == "driver":
            process = subprocess.Popen(command(shards, output, *options), env=ONE_THREAD, stdout=subprocess.DEVNULL)
    assert process.wait() == 0
    return time.monotonic() - begun


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def prove(folder: Path, images: int, shards: int) -> list[dict]:
    """Rows of the table of runs; raises where one of them differs from the plain one."""
    pattern = make(folder / "damaged", images, shards, images // 100, cut=True)
    plain = folder / "plain.jsonl"
    seconds = run(pattern, plain)
    wanted, failed = rows(plain), rows(Path(f"{plain}.errors.jsonl"))
    assert len({row["image"] for row in wanted}) == len(wanted)
    found = [{"run": "plain", "seconds": seconds, "answers": len(wanted), "failures": len(failed)}]
    for kill in (None, "worker", "driver"):
        output = folder / f"ray-{kill}.jsonl"
        seconds = run(pattern, output, "--ray", "local", "--workers", "2", kill=kill)
        same = rows(output) == wanted and rows(Path(f"{output}.errors.jsonl")) == failed
        name = "two workers" if kill is None else f"two workers, {kill} killed"
        found.append({"run": name, "seconds": seconds, "answers": len(rows(output)), "same": same})
        print(found[-1], flush=True)
        assert same
    return found


def memory() -> float:
    """MiB of this process and those that it started, each page once."""
    total = 0
    for each in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 2**20


def one(kind: str, shards: str, output: str) -> dict:
    """A run that is measured: its rate between the first and the last answers, and memory after each quarter."""
    settings = Settings(str(MINIATURE), max_new_tokens=TOKENS, device="cpu")
    parts = find_parts([shards])
    total = sum(1 for part in parts for _ in items(part))
    at: list[tuple[float, int]] = []
    used: list[float] = []
    for read in followed(kind, settings, parts, output):
        at.append((time.monotonic(), read))
        if read * 4 >= total * (len(used) + 1):
            used.append(round(memory()))
    (begun, first), (ended, last) = at[0], at[-1]
    return {"kind": kind, "images_per_second": (last - first) / (ended - begun), "memory": used}


def followed(kind: str, settings: Settings, parts: list, output: str) -> Iterator[int]:
    """The number of images that are done, whenever it has grown."""
    if kind == "bare":
        engine = GenerateEngine(settings)
        stream = (item for part in parts for item in items(part))
        done = 0
        for some in batches(stream, settings.batch_size):
            done += len(engine.answer([engine.prepare(item) for item in some], settings.prompts[0]))
            yield done
        return
    count = Count(parts)
    target = Output(output, settings, parts)
    if kind == "plain":
        runs = caption(settings.load, settings, parts, target, count=count)
    else:
        runs = caption_on_ray(settings, parts, target, workers=int(kind), count=count)
    for _ in runs:
        yield count.read


def figures(folder: Path, images: int, shards: int, pairs: int) -> list[dict]:
    """Medians of alternating runs, and their ratios."""
    pattern = make(folder / "whole", images, shards, 0, cut=False)
    found: dict[str, list[dict]] = {}
    for pair in range(pairs):
        for kind in ("bare", "plain", "1", "2"):
            output = str(folder / f"figures-{kind}-{pair}.jsonl")
            asked = [sys.executable, __file__, "--one", kind, "--shards-at", pattern, "--output", output]
            said = subprocess.run(asked, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.setdefault(kind, []).append(json.loads(said.splitlines()[-1]))
            print(found[kind][-1], flush=True)
    rates = {kind: statistics.median(run["images_per_second"] for run in runs) for kind, runs in found.items()}
    table = [
        {"run": kind, "images_per_second": rate, "memory": found[kind][-1]["memory"]} for kind, rate in rates.items()
    ]
    ratios = {"two workers / one": rates["2"] / rates["1"], "one worker / bare loop": rates["1"] / rates["bare"]}
    return [*table, {**ratios, "plain / bare loop": rates["plain"] / rates["bare"]}]


def cost(dollars: float) -> list[dict]:
    """Seconds an image, hours and dollars a million of captions of 20 tokens by the 7B model on one H200."""
    encode = ENCODE_64 / 64
    prefill = 2 * PARAMETERS * POSITIONS / (FLOPS * PREFILL_SHARE)
    generate = encode + prefill + TOKENS * STEP / 64
    together = 256
    cache = together * (POSITIONS + TOKENS) * KEY_VALUES / BANDWIDTH
    step = RECORDED_STEP + cache + 2 * PARAMETERS * together / FLOPS
    engine = encode + prefill + TOKENS * step / together
    found = []
    for name, seconds in (("generate, batch 64", generate), ("vllm, 256 at once", engine)):
        hours = 1e6 * seconds / 3600
        found.append({"engine": name, "ms_per_image": 1e3 * seconds, "hours": hours, "dollars": dollars * hours})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("build/captions"))
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--only", choices=["proof", "figures"])
    parser.add_argument("--make", type=Path)
    parser.add_argument("--damaged", type=int, default=0)
    parser.add_argument("--cut", action="store_true")
    parser.add_argument("--cost", type=float)
    parser.add_argument("--one", choices=["bare", "plain", "1", "2"], help=argparse.SUPPRESS)
    parser.add_argument("--shards-at", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.make is not None:
        make(options.make, options.images, options.shards, options.damaged, options.cut)
        return
    if options.one is not None:
        print(json.dumps(one(options.one, options.shards_at, options.output)))
        return
    if options.cost is not None:
        found = cost(options.cost)
    else:
        options.folder.mkdir(parents=True, exist_ok=True)
        found = prove(options.folder, options.images, options.shards) if options.only != "figures" else []
        if options.only != "proof":
            found += figures(options.folder, options.images, options.shards, options.pairs)
    for row in found:
        said = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in row.items()}
        print(", ".join(f"{name}: {value}" for name, value in said.items()))
    if options.json is not None:
        options.json.write_text(json.dumps({"command": sys.argv, "rows": found}, indent=1))


if __name__ == "__main__":
    main()

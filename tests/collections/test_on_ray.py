"""Blocks make every answer be there once, whatever was done before; on Ray itself, where it is installed."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shards import cut, write_tar

from transformers_owl import MINIATURE
from transformers_owl.collections import on_ray, reading
from transformers_owl.collections.engines import Settings
from transformers_owl.collections.inputs import BLOCK, find_parts
from transformers_owl.collections.on_ray import Answerer, Blocks, caption_on_ray, read_parts, unfinished, with_done
from transformers_owl.collections.outputs import Output
from transformers_owl.collections.running import Count, caption


ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "research/benchmarks"))

from captions import end  # noqa: E402


MODEL = str(MINIATURE)


class Grey:
    """Answers by the grey level of what was decoded."""

    batch_size = 2

    def __init__(self):
        self.asked = []

    def answer(self, visuals, prompt):
        levels = [visual["image"].getpixel((3, 3))[0] for visual in visuals]
        self.asked += [(level, prompt) for level in levels]
        return [{"answer": f"{level}"} for level in levels]

    def prepare(self, item):
        return reading.decoded(item, reading.decoder_of(MODEL))


class HereAndNow(Settings):
    """Settings whose model is at hand, as an actor finds it."""

    engine_here = Grey()

    def load(self):
        return self.engine_here


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Of 7, 3 and 0 images, and a fourth that is cut off; blocks have 3."""
    monkeypatch.setattr(reading, "BLOCK", 3)
    (tmp_path / "in").mkdir()
    shards = [write_tar(tmp_path / f"in/{number}.tar", levels) for number, levels in enumerate(LEVELS)]
    return [*shards, cut(tmp_path / "in/3.tar", range(20, 28))]


LEVELS = [range(7), range(7, 10), range(0)]


@pytest.fixture
def at_once(monkeypatch):
    """The work of tasks and actors, in this process and in a random order, some blocks twice, until it is killed."""

    def make(seed: int, kill_after: int = 99, on_error: str = "skip"):
        def answer_parts(settings, parts, store, done, address, workers, on_error, count):
            left = unfinished(store, parts, count)
            packed = [{"part": [on_ray.pickle.dumps(each)]} for each in with_done(left, done)]
            blocks = [block for each in packed for block in read_parts(each, settings)]
            chance = random.Random(seed)
            blocks += chance.sample(blocks, len(blocks) // 3)
            chance.shuffle(blocks)
            answerer = Answerer(settings, store, on_error)
            for number, block in enumerate(blocks):
                if number == kill_after:
                    raise KeyboardInterrupt
                (result,) = answerer(block)["block"]
                yield from on_ray.pickle.loads(result)["failures"]

        monkeypatch.setattr(on_ray, "answer_parts", answer_parts)

    return make


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def settings_and_parts(names, prompts=("What?", "Why?"), max_new_tokens=None):
    return HereAndNow(MODEL, prompts, max_new_tokens=max_new_tokens), find_parts(names)


def run(names, output: str, prompts=("What?", "Why?"), max_new_tokens=None, **options) -> list[dict]:
    settings, parts = settings_and_parts(names, prompts, max_new_tokens)
    return list(caption_on_ray(settings, parts, Output(output, settings, parts), **options))


@pytest.mark.parametrize("where", ["", "file://"])
@pytest.mark.parametrize("seed", range(4))
def test_blocks_hold_what_a_plain_run_writes(where, seed, shards, tmp_path, at_once):
    """Also where the run was killed several times, a block was answered twice, or the output lies at an address."""
    settings, parts = settings_and_parts(shards)
    list(caption(settings.load, settings, parts, Output(str(tmp_path / "plain.jsonl"), settings, parts)))
    output = tmp_path / "ray.jsonl"
    for kill_after in (0, 2, 3, 99):
        at_once(seed, kill_after)
        if kill_after == 99:
            failures = run(shards, f"{where}{output}")
        else:
            with pytest.raises(KeyboardInterrupt):
                run(shards, f"{where}{output}")
            assert not output.exists()
    assert read(output) == read(tmp_path / "plain.jsonl")
    assert len({row["image"] for row in failures}) <= 1
    assert not Path(f"{output}.blocks").exists()
    if not where:
        assert read(tmp_path / "ray.jsonl.errors.jsonl") == read(tmp_path / "plain.jsonl.errors.jsonl")
    asked = len(HereAndNow.engine_here.asked)
    run(shards, f"{where}{output}")
    assert len(HereAndNow.engine_here.asked) == asked
    assert read(output) == read(tmp_path / "plain.jsonl")


@pytest.mark.parametrize("where", ["", "file://"])
def test_answers_with_other_settings_are_never_mixed(where, shards, tmp_path, at_once):
    output = f"{where}{tmp_path}/out.jsonl"
    at_once(0)
    run(shards[:1], output)
    with pytest.raises(ValueError, match="other settings: max_new_tokens None, now 9"):
        run(shards[:2], output, max_new_tokens=9)
    run(shards[:2], output, max_new_tokens=9, append=True)
    assert len(read(tmp_path / "out.jsonl")) == 20


def test_only_what_is_missing_is_answered(shards, tmp_path, at_once):
    output = tmp_path / "out.jsonl"
    at_once(0)
    run(shards[:1], str(output), ("What?",))
    asked = len(HereAndNow.engine_here.asked)
    run(shards[:2], str(output), ("What?",))
    assert {level for level, _ in HereAndNow.engine_here.asked[asked:]} == set(LEVELS[1])
    assert [row["answer"] for row in read(output)] == [f"{level}" for level in range(10)]


@pytest.mark.parametrize("changed", ["prompts", "parts", "max_new_tokens"])
def test_an_unfinished_run_is_not_mixed_with_another(changed, shards, tmp_path, at_once):
    at_once(0, kill_after=2)
    with pytest.raises(KeyboardInterrupt):
        run(shards, str(tmp_path / "out.jsonl"))
    before = Blocks(f"{tmp_path}/out.jsonl.blocks").names()
    with pytest.raises(ValueError, match=rf"holds an unfinished run with other settings \({changed} .*, now "):
        run(
            shards[:2] if changed == "parts" else shards,
            str(tmp_path / "out.jsonl"),
            ("How?",) if changed == "prompts" else ("What?", "Why?"),
            max_new_tokens=9 if changed == "max_new_tokens" else None,
        )
    settings, parts = settings_and_parts(shards)
    with pytest.raises(ValueError, match="holds an unfinished run on Ray: resume it by --ray"):
        list(caption(settings.load, settings, parts, Output(str(tmp_path / "out.jsonl"), settings, parts)))
    assert Blocks(f"{tmp_path}/out.jsonl.blocks").names() == before


def test_a_block_that_stops_the_run_is_not_kept(shards, tmp_path):
    settings, parts = settings_and_parts(shards[3:])
    store = Blocks(f"{tmp_path}/blocks")
    (tmp_path / "blocks").mkdir()
    answerer = Answerer(settings, store, "stop")
    (packed,) = with_done([(parts[0], frozenset())], set())
    found = [on_ray.pickle.loads(each) for each in read_all(packed, settings, answerer)]
    stopped = [block["name"] for block in found if block["failures"]]
    assert stopped and store.names() == {block["name"] for block in found} - set(stopped)


def read_all(packed, settings, answerer):
    for block in read_parts({"part": [on_ray.pickle.dumps(packed)]}, settings):
        yield from answerer(block)["block"]


def test_the_size_of_what_is_left_is_known(shards, tmp_path, at_once):
    at_once(1, kill_after=3)
    with pytest.raises(KeyboardInterrupt):
        run(shards, str(tmp_path / "out.jsonl"))
    _, parts = settings_and_parts(shards)
    count = Count(parts)
    left = unfinished(Blocks(f"{tmp_path}/out.jsonl.blocks"), parts, count)
    assert 0 < count.read < 10 + 8 and 0 < len(left) <= 4


# On Ray itself.
IMAGES = 700  # two shards of two blocks, and one of one
# As many threads as Ray gives each worker: others round otherwise, which changes one of these captions.
ENVIRONMENT = {**os.environ, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Drawings in shards, 1 % of them damaged, one shard cut off, and what the plain command answers."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("ray")
    asked = ["--make", str(folder / "in"), "--images", str(IMAGES), "--shards", "3", "--damaged", "7", "--cut"]
    subprocess.run([sys.executable, str(ROOT / "research/benchmarks/captions.py"), *asked], check=True)
    subprocess.run(command(folder, "plain.jsonl"), check=True, env=ENVIRONMENT)
    return folder


def command(folder: Path, output: str, *options: str) -> list[str]:
    shards = str(folder / "in/{00000..00002}.tar")
    asked = ["--max-new-tokens", "4", "--device", "cpu", "--output", str(folder / output)]
    return [sys.executable, "-m", "transformers_owl", "caption", shards, *asked, *options]


def blocks_of(folder: Path, output: str) -> int:
    return len(Blocks(f"{folder / output}.blocks").names() - {"run.jsonl"})


def wait_for_block(folder: Path, output: str, process: subprocess.Popen) -> None:
    while not blocks_of(folder, output):
        assert process.poll() is None
        time.sleep(0.2)


ON_RAY = ("--ray", "local", "--workers", "2")


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["nobody", "worker", "driver"])
def test_ray_answers_as_the_plain_command_does(killed, plain):
    output = f"{killed}.jsonl"
    process = subprocess.Popen(command(plain, output, *ON_RAY), env=ENVIRONMENT)
    try:
        if killed != "nobody":
            wait_for_block(plain, output, process)
            end(process, killed)
            if killed == "driver":
                assert not (plain / output).exists()
                done = blocks_of(plain, output)
                process = subprocess.Popen(command(plain, output, *ON_RAY), env=ENVIRONMENT)
                assert done >= 1
        assert process.wait(600) == 0
    finally:
        process.kill()
    assert read(plain / output) == read(plain / "plain.jsonl")
    assert read(plain / f"{output}.errors.jsonl") == read(plain / "plain.jsonl.errors.jsonl")
    answered, failed = read(plain / output), read(plain / f"{output}.errors.jsonl")
    assert len({row["image"] for row in answered}) == len(answered) > BLOCK
    assert len(failed) >= 5 and sum("broken shard" in row["error"] for row in failed) == 1

"""Runs write every answer once, in every format, go on where they were interrupted, and never destroy others."""

import csv
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image
from shards import cut, png, write_tar
from typer.testing import CliRunner

from transformers_owl import MINIATURE
from transformers_owl.cli import app
from transformers_owl.collections import running
from transformers_owl.collections.engines import LIKELIHOOD, GenerateEngine, Settings
from transformers_owl.collections.inputs import find_parts
from transformers_owl.collections.outputs import Output
from transformers_owl.collections.running import Count, caption
from transformers_owl.demo.caption import SAMPLES
from transformers_owl.inference import score_answers
from transformers_owl.training.sources import Shards


ODD = 'é 鴞, "🦉"\n\x85 \ud83e'
PROMPTS = ("What is it?", f"Why? {ODD}")


class Grey:
    """Answers by the grey level, and counts what it was asked."""

    batch_size = 2

    def __init__(self, fail_at: int = 99, score: tuple[str, ...] = ()):
        self.asked: Counter = Counter()
        self.fail_at, self.score = fail_at, score

    def prepare(self, item):
        try:
            return Image.open(item.content if isinstance(item.content, str) else io.BytesIO(item.content))
        except (OSError, TypeError) as error:
            return item.error or str(error)

    def answer(self, images, prompt):
        if sum(self.asked.values()) >= self.fail_at:
            raise KeyboardInterrupt
        levels = [image.getpixel((0, 0))[0] for image in images]
        self.asked.update((level, prompt) for level in levels)
        return [
            {"answer": f"{level} {ODD}", **{f"{LIKELIHOOD}{text}": -level / 7 for text in self.score}}
            for level in levels
        ]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "in").mkdir()
    for level in range(7):
        (tmp_path / "in" / f"{level}.png").write_bytes(png(level))
    return [str(tmp_path / "in" / f"{level}.png") for level in range(7)]


def run(names, output, engine=None, prompts=PROMPTS, model="owl", score=(), given=None, **options):
    engine = engine or Grey(score=score)
    settings = Settings(model, prompts, score, **(given or {}))
    parts = find_parts(names)
    rows = list(caption(lambda: engine, settings, parts, Output(str(output), settings, parts), **options))
    return engine, rows


def read(path: Path) -> list[dict]:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def plain(text: str, path: Path) -> str:
    """Tables hold half a character as JSON escapes it."""
    return text if path.suffix == ".jsonl" else text.encode(errors="backslashreplace").decode()


def expected(names, path: Path, prompts=PROMPTS) -> set[tuple]:
    return {
        (name, plain(prompt, path), plain(f"{Path(name).stem} {ODD}", path)) for name in names for prompt in prompts
    }


def found(path: Path) -> list[tuple]:
    return [(row["image"], row["prompt"], row["answer"]) for row in read(path)]


TABLES = pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])


@TABLES
@pytest.mark.parametrize("fail_at", [0, 1, 5, 9, 13])
def test_an_interrupted_run_goes_on_without_doubles_and_holes(suffix, fail_at, files, tmp_path):
    prompts = ("What?", "Why?") if suffix != ".jsonl" else PROMPTS
    output = tmp_path / f"out{suffix}"
    first = Grey(fail_at)
    with pytest.raises(KeyboardInterrupt):
        run(files, output, first, prompts)
    assert not output.exists()
    second, rows = run(files, output, prompts=prompts)
    assert len(found(output)) == len(rows) == 14
    assert set(found(output)) == expected(files, output, prompts)
    assert max(second.asked.values()) == 1
    assert sum(second.asked.values()) >= 14 - sum(first.asked.values())
    before = output.read_bytes()
    third, rows = run(files, output, prompts=prompts)
    assert not third.asked and len(rows) == 14
    assert set(found(output)) == expected(files, output, prompts)
    assert suffix == ".parquet" or output.read_bytes() == before
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.aside"))


@TABLES
def test_odd_characters_come_back(suffix, files, tmp_path):
    output = tmp_path / f"out{suffix}"
    run(files, output, prompts=PROMPTS[:1])
    assert set(found(output)) == expected(files, output, PROMPTS[:1])


@TABLES
def test_more_files_are_added(suffix, files, tmp_path):
    output = tmp_path / f"out{suffix}"
    run(files[:3], output, prompts=("What?",))
    second, _ = run(files, output, prompts=("What?",))
    assert set(second.asked) == {(level, "What?") for level in range(3, 7)}
    assert set(found(output)) == expected(files, output, ("What?",)) and len(found(output)) == 7


OTHERS = {
    "another prompt": {"prompts": ("Where?",)},
    "another model": {"model": "other"},
    "fewer files": {"fewer": True},
}


@TABLES
@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_a_second_run_never_destroys(other, is_whole, suffix, files, tmp_path):
    output = tmp_path / f"out{suffix}"
    if is_whole:
        run(files, output, prompts=("What?",))
    else:
        with pytest.raises(KeyboardInterrupt):
            run(files, output, Grey(6), ("What?",))
    kept = output if is_whole else output.with_name(output.name + ".partial")
    before = kept.read_bytes()
    changed = {"prompts": ("What?",), **OTHERS[other]}
    names = files[:2] if changed.pop("fewer", False) else files
    engine = Grey()
    with pytest.raises(ValueError, match="choose another --output"):
        run(names, output, engine, **changed)
    assert kept.read_bytes() == before and not engine.asked

    old = {row["image"] for row in (read(output) if is_whole else map(json.loads, before.splitlines()))}
    run(names, output, engine, append=True, **changed)
    rows = read(output)
    assert len(rows) == len({(row["image"], row["prompt"], row["model"]) for row in rows})
    asked = changed["prompts"][0]
    assert {row["image"] for row in rows if row["prompt"] == "What?" and row["model"] == "owl"} >= old
    new = {row["image"] for row in rows if row["prompt"] == asked and row["model"] == changed.get("model", "owl")}
    assert new >= set(names)


OTHER_SETTINGS = {
    "max_new_tokens": 20,
    "dtype": "float16",
    "num_frames": 8,
    "chat_template": "original",
    "load_in_4bit": True,
}


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_answers_with_other_settings_are_never_mixed(name, is_whole, files, tmp_path):
    output, given = tmp_path / "out.csv", {name: OTHER_SETTINGS[name]}
    if is_whole:
        run(files[:5], output, prompts=("What?",))
    else:
        with pytest.raises(KeyboardInterrupt):
            run(files, output, Grey(6), ("What?",))
    engine = Grey()
    with pytest.raises(ValueError, match=rf"other settings: {name} .*, now {OTHER_SETTINGS[name]!r}\. Choose another"):
        run(files, output, engine, ("What?",), given=given)
    assert not engine.asked
    engine, _ = run(files, output, engine, ("What?",), given=given, append=True)
    assert set(found(output)) == expected(files, output, ("What?",)) and 0 < len(engine.asked) < 7


def test_a_model_that_was_trained_again_is_another(files, tmp_path):
    output, model = tmp_path / "out.jsonl", tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    run(files[:5], output, prompts=("What?",), model=str(model))
    run(files[:6], output, prompts=("What?",), model=str(model))
    (model / "model.safetensors").write_bytes(b"others ")
    with pytest.raises(ValueError, match=r"other settings: weights '.{16}', now '.{16}'"):
        run(files, output, prompts=("What?",), model=str(model))
    output.unlink()
    engine, _ = run(files, output, prompts=("What?",), model=str(model))
    assert len(engine.asked) == 7


@TABLES
def test_rows_with_other_columns_are_never_mixed(suffix, files, tmp_path):
    output = tmp_path / f"out{suffix}"
    run(files, output, prompts=("What?",))
    before = output.read_bytes()
    for append in (True, False):
        with pytest.raises(ValueError, match=r"but this run writes image, .*, log_likelihood_b: choose another"):
            run(files, output, prompts=("What?",), score=("a", "b"), append=append)
    assert output.read_bytes() == before


@TABLES
def test_likelihoods_are_columns_of_numbers(suffix, files, tmp_path):
    output = tmp_path / f"out{suffix}"
    run(files[:3], output, prompts=("What?",), score=("a", "b"))
    run(files, output, prompts=("What?",), score=("a", "b"))
    assert [float(row["log_likelihood_b"]) for row in read(output)] == [-level / 7 for level in range(7)]


def test_captions_lie_beside_images(files, tmp_path):
    """Captions that somebody else wrote are kept, and so are those that were changed since."""
    run(files, "{}.txt", prompts=("What?",))
    texts = [Path(name).with_suffix(".txt") for name in files]
    wanted = [f"{level} {ODD}".strip().encode(errors="backslashreplace") for level in range(7)]
    assert [text.read_bytes() for text in texts] == wanted
    texts[0].write_text("mine")
    texts[1].unlink()
    engine, _ = run(files, "{}.txt", prompts=("What?",))
    assert not engine.asked
    assert texts[0].read_text() == "mine" and texts[1].read_bytes() == wanted[1]
    (tmp_path / "in/captions.jsonl").unlink()
    with pytest.raises(ValueError, match=r"exist, but no run .* wrote them: .*0\.txt"):
        run(files, "{}.txt", prompts=("What?",))


def test_two_images_never_share_a_caption(files, tmp_path):
    (tmp_path / "in/3.jpg").write_bytes(png(3))
    with pytest.raises(ValueError, match=r"3\.jpg and .*3\.png would share .*3\.txt"):
        run([str(tmp_path / "in")], "{}.txt", prompts=("What?",))


def test_shards_get_captions_that_training_reads(tmp_path):
    whole = write_tar(tmp_path / "a.tar", range(3))
    broken = cut(tmp_path / "b.tar", range(3, 7))
    (tmp_path / "out").mkdir()
    output = str(tmp_path / "out/{}.tar")
    _, rows = run([whole, broken], output, prompts=("What?",))
    answered = [row for row in rows if "answer" in row]
    assert [row["error"] for row in rows if "error" in row]
    with tarfile.open(tmp_path / "out/a.tar") as archive:
        names = [f"{level:03}.{suffix}" for level in range(3) for suffix in ("png", "txt", "caption.txt")]
        assert archive.getnames() == names
        assert archive.extractfile("002.png").read() == png(2)
    told = {}
    for name in ("a", "b"):
        shards = Shards(str(tmp_path / f"out/{name}.tar"), text_column="caption.txt")
        for files in shards.read(shards.shards[0]):
            if "caption.txt" in files:
                (said,) = (message["content"] for message in shards.sample(files)["messages"][1:])
                told[files["__key__"]] = said if isinstance(said, str) else said[0]["text"]
    assert len(told) == len(answered) and told["001"] == f"1 {ODD}".encode(errors="backslashreplace").decode()
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.tar"))]
    engine, _ = run([whole, broken], output, prompts=("What?",))
    assert not engine.asked
    (tmp_path / "out/captions.jsonl").unlink()
    with pytest.raises(ValueError, match="exist, but no run"):
        run([whole, broken], output, prompts=("What?",))
    assert len(times) == 2


def test_shards_are_never_written_over_themselves(tmp_path):
    shard = write_tar(tmp_path / "a.tar", range(3))
    with pytest.raises(ValueError, match="would overwrite itself"):
        run([shard], tmp_path / "{}.tar", prompts=("What?",))


@pytest.mark.parametrize("on_error", running.ON_ERROR)
def test_what_cannot_be_read_is_listed_and_tried_again(on_error, files, tmp_path):
    output = tmp_path / "out.jsonl"
    Path(files[3]).write_text("no image")
    if on_error == "stop":
        with pytest.raises(ValueError, match=r"3\.png: cannot identify"):
            run(files, output, on_error=on_error)
        return
    _, rows = run(files, output)
    (failure,) = [row for row in rows if "error" in row]
    errors = tmp_path / "out.jsonl.errors.jsonl"
    assert read(errors) == [failure] and failure["image"] == files[3]
    assert set(found(output)) == expected(files[:3] + files[4:], output)
    Path(files[3]).write_bytes(png(3))
    engine, _ = run(files, output)
    assert {level for level, _ in engine.asked} == {3}
    assert set(found(output)) == expected(files, output) and not errors.exists()


def test_the_total_is_known_for_files_and_guessed_for_shards(files, tmp_path):
    shards = [write_tar(tmp_path / f"{number}.tar", range(4)) for number in range(3)]
    settings, parts = Settings("owl"), find_parts([*files, *shards])
    count = Count(parts)
    totals = [count.total]
    for _ in caption(Grey, settings, parts, count=count):
        totals.append(count.total)
    assert totals[0] is None and totals[-1] == 19 and count.read == 19
    assert Count(find_parts(files)).total == 7


def test_answers_are_those_of_score_answers():
    """For each image the likelihoods, and the likelier answer."""
    texts, prompt = ("Yes", "No"), "Is there an elephant?"
    settings = Settings(str(MINIATURE), (prompt,), texts, batch_size=3, device="cpu", dtype="float32")
    rows = list(caption(settings.load, settings, find_parts([str(path) for path in SAMPLES])))
    engine = GenerateEngine(settings)
    chats = [
        [{"role": "user", "content": [{"type": "image", "path": row["image"]}, {"type": "text", "text": prompt}]}]
        for row in rows
    ]
    scores = score_answers(engine.model, engine.processor, chats, [texts] * len(chats))
    for row, (yes, no) in zip(rows, scores, strict=True):
        assert row["log_likelihood_Yes"] == pytest.approx(yes.log_likelihood, abs=1e-3)
        assert row["log_likelihood_No"] == pytest.approx(no.log_likelihood, abs=1e-3)
        assert row["answer"] == ("Yes" if yes.log_likelihood >= no.log_likelihood else "No")
    assert len({row["log_likelihood_Yes"] for row in rows}) == len(rows)


def test_the_command_asks_every_prompt_of_a_file_and_says_how_likely_answers_are(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is on the left?\n\nIs there text?\n")
    asked = ["caption", str(SAMPLES[0]), "--device", "cpu"]
    result = CliRunner().invoke(app, [*asked, "--prompts", str(prompts), "--output", str(tmp_path / "a.csv")])
    assert result.exit_code == 0, result.output
    rows = read(tmp_path / "a.csv")
    assert [row["prompt"] for row in rows] == ["What is on the left?", "Is there text?"]
    assert all(f"{SAMPLES[0]}: {row['prompt']} {row['answer']}" in result.stdout for row in rows)
    assert "castle" in rows[0]["answer"].lower()
    result = CliRunner().invoke(app, [*asked, "--prompt", "Is there a castle?", "--score", "Yes|No"])
    assert f"{SAMPLES[0]}: Yes (Yes -" in result.stdout

"""The command line on an original-format checkpoint and real photographs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
from PIL import Image
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from transformers_owl import MINIATURE, MplugOwlForConditionalGeneration
from transformers_owl.cli import app
from transformers_owl.demo import caption as captions
from transformers_owl.loading import load


IMAGES = Path(__file__).parent.parent / "examples/pictures"
ASTRONAUT, CAT = str(IMAGES / "astronaut.jpg"), str(IMAGES / "cat.jpg")


@pytest.fixture
def caption(llama):
    def run(*arguments):
        return CliRunner().invoke(app, ["caption", "--model", llama.checkpoint, "--max-new-tokens", "6", *arguments])

    return run


def test_caption_answers_about_photographs(caption, llama_model, llama_processor, tmp_path):
    Image.fromarray(skimage.data.coffee()).save(tmp_path / "coffee.png")
    coffee = str(tmp_path / "coffee.png")
    result = caption(ASTRONAUT, CAT, coffee, "--prompt", "What is it?", "--output", str(tmp_path / "answers.jsonl"))
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [ASTRONAUT, CAT, coffee]
    prompt = llama_processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
        add_generation_prompt=True,
    )
    for row in rows:
        inputs = llama_processor(text=prompt, images=row["image"], return_tensors="pt")
        written = llama_model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert row["answer"] == llama_processor.decode(written, skip_special_tokens=True)
        assert row["prompt"] == "What is it?"
        assert f"{row['image']}: {row['answer']}" in result.stdout
    assert len({row["answer"] for row in rows}) > 1


def test_an_interrupted_run_goes_on(caption, tmp_path, llama):
    output = tmp_path / "answers.jsonl"
    done = {"image": CAT, "model": llama.checkpoint, "prompt": "Describe the picture.", "answer": "done before"}
    partial = tmp_path / "answers.jsonl.partial"
    partial.write_text(json.dumps(done) + "\n" + '{"image": "cut of')
    assert caption(CAT, ASTRONAUT, "--output", str(output)).exit_code == 0
    rows = {row["image"]: row["answer"] for row in map(json.loads, output.read_text().splitlines())}
    assert rows[CAT] == "done before"
    assert rows[ASTRONAUT]
    assert not partial.exists()


@pytest.mark.parametrize("changed", [{"prompt": "Another question"}, {"model": "another"}])
def test_answers_to_something_else_are_kept(caption, tmp_path, llama, changed):
    done = {"image": CAT, "model": llama.checkpoint, "prompt": "Describe the picture.", "answer": "done before"}
    partial = tmp_path / "answers.jsonl.partial"
    partial.write_text(json.dumps(done | changed) + "\n")
    result = caption(CAT, ASTRONAUT, "--output", str(tmp_path / "answers.jsonl"))
    assert result.exit_code == 1
    assert "choose another --output" in result.stderr
    assert json.loads(partial.read_text()) == done | changed


def test_a_damaged_file_is_listed_and_stops_no_run(caption, tmp_path):
    output, bad = tmp_path / "answers.jsonl", tmp_path / "bad.png"
    bad.write_text("not an image")
    result = caption(CAT, str(bad), ASTRONAUT, "--batch-size", "1", "--output", str(output))
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["image"] for line in output.read_text().splitlines()] == [CAT, ASTRONAUT]
    (failure,) = map(json.loads, (tmp_path / "answers.jsonl.errors.jsonl").read_text().splitlines())
    assert failure["image"] == str(bad) and "bad.png' cannot be read" in failure["error"]
    assert f"1 files could not be read: see {output}.errors.jsonl" in result.stderr


def test_a_damaged_file_stops_a_run_that_should_stop(caption, tmp_path):
    output, bad = tmp_path / "answers.jsonl", tmp_path / "bad.png"
    bad.write_text("not an image")
    options = ["--batch-size", "1", "--output", str(output), "--on-error", "stop"]
    result = caption(CAT, str(bad), ASTRONAUT, *options)
    assert result.exit_code == 1
    assert "bad.png' cannot be read" in result.stderr
    assert not output.exists()
    assert json.loads((tmp_path / "answers.jsonl.partial").read_text())["image"] == CAT


def test_files_of_which_none_can_be_read_are_an_error(caption, tmp_path):
    (tmp_path / "bad.png").write_text("not an image")
    result = caption(str(tmp_path / "bad.png"))
    assert result.exit_code == 1 and "None of the files could be read" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such.png"], 1, "No such file: no-such.png"),
        ([CAT, "--promt", "x"], 2, "--prompt"),
        ([CAT, "--batch-size", "0"], 2, "batch-size"),
    ],
)
def test_mistakes_are_named(caption, arguments, code, message):
    result = caption(*arguments)
    assert result.exit_code == code
    assert message in result.stderr


def test_a_missing_model_is_named():
    result = CliRunner().invoke(app, ["caption", CAT, "--model", "./no/such/folder"])
    assert result.exit_code == 1
    assert "no/such/folder" in result.stderr


def test_a_missing_drawing_is_named(monkeypatch, tmp_path):
    missing = tmp_path / "owl.png"
    monkeypatch.setattr(captions, "SAMPLES", [*captions.SAMPLES, missing])
    result = CliRunner().invoke(app, ["caption"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{missing} of transformers_owl is missing: install the package again" in result.stderr


def test_without_images_the_command_says_what_it_asks_about(monkeypatch):
    monkeypatch.chdir(Path(captions.__file__).parent)
    result = CliRunner().invoke(app, ["caption", "--max-new-tokens", "2"])
    assert "Asking the miniature about the five sample drawings" in result.stderr
    names = [line.partition(": ")[0] for line in result.stdout.splitlines()]
    assert names == [f"pictures/{path.name}" for path in captions.SAMPLES]


OWLEVAL = ["--owleval", ".", "--model", str(MINIATURE), "--output", "answers.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "begins", "said"),
    [
        (["answer", *OWLEVAL], "evaluation.records.read_owleval", "The answers so far are kept: the same command"),
        (["judge", "a.jsonl", *OWLEVAL], "evaluation.records.read_owleval", "The ratings so far are kept: the same"),
        (["train", "recipe.yaml"], "training.train.train", "The same command resumes from the last checkpoint"),
        (
            ["convert", "--checkpoint", "release", "--output", "out"],
            "conversion.checkpoints.Checkpoint.parse",
            "Finished files are kept: the same command resumes.",
        ),
        (["caption", CAT], "collections.inputs.find_parts", "Interrupted.\n"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_ctrl_c_says_what_is_kept(monkeypatch, arguments, begins, said):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"transformers_owl.{begins}", interrupt)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    assert result.stderr.startswith("Interrupted.")
    assert said in result.stderr


def test_the_package_runs_as_the_command():
    said = subprocess.check_output([sys.executable, "-m", "transformers_owl", "--help"], text=True)
    assert said.startswith("Usage: transformers-owl ")


def complete(*arguments, **environment) -> str:
    program = "from transformers_owl_cli.commands import app; app(prog_name='transformers-owl')"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.check_output(command, env={**os.environ, **environment}, text=True)


def test_the_shell_completes_commands_and_options():
    shell = {"_TRANSFORMERS_OWL_COMPLETE": "complete_bash"}
    assert complete(**shell, COMP_WORDS="transformers-owl cap", COMP_CWORD="1").split() == ["caption"]
    assert "--prompt" in complete(**shell, COMP_WORDS="transformers-owl caption --p", COMP_CWORD="2").split()
    script = complete("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete -o default -F _transformers_owl_completion transformers-owl" in script


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["web"], "gradio", "demo"),
        (["merge", "--adapter", "a", "--base", "b", "--output", "c"], "peft", "convert"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(words, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("transformers_owl.demo.web", "transformers_owl.conversion.merge"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert package in result.stderr and f'pip install ".[{extra}]"' in result.stderr


def test_the_version_is_that_of_the_installed_package(monkeypatch, tmp_path):
    installed = tmp_path / "transformers_owl-7.8.9.dist-info/METADATA"
    installed.parent.mkdir()
    installed.write_text("Metadata-Version: 2.4\nName: transformers-owl\nVersion: 7.8.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert CliRunner().invoke(app, ["--version"]).stdout == "7.8.9\n"


@pytest.mark.parametrize("command", ["caption", "look", "answer"])
def test_a_chat_template_reaches_the_model(command, llama, llama_processor, tmp_path, monkeypatch):
    template = tmp_path / "template.jinja"
    template.write_text(
        "{%- for message in messages %}Asked: {% if message.content is string %}{{ message.content }}{% else %}"
        "{%- for part in message.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}{% endif %}"
        "{%- endfor %} Said:"
    )
    prompts = []
    generate = MplugOwlForConditionalGeneration.generate

    def record(self, *args, **inputs):
        prompts.append(llama_processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True))
        return generate(self, *args, **inputs)

    monkeypatch.setattr(MplugOwlForConditionalGeneration, "generate", record)
    (tmp_path / "questions.jsonl").write_text('{"question_id": 1, "text": "Why?"}\n')
    asked = {
        "caption": [CAT, "--prompt", "Why?"],
        "look": [CAT, "--prompt", "Why?", "--output", str(tmp_path / "look.png")],
        "answer": ["--vicuna", str(tmp_path / "questions.jsonl"), "--output", str(tmp_path / "answers.jsonl")],
    }[command]
    options = ["--model", llama.checkpoint, "--max-new-tokens", "3", "--chat-template", str(template)]
    result = CliRunner().invoke(app, [command, *asked, *options])
    assert result.exit_code == 0, result.output
    (prompt,) = prompts
    assert prompt.startswith("Asked:") and prompt.endswith("Why? Said:")


@pytest.mark.parametrize("command", ["caption", "answer"])
@pytest.mark.parametrize(
    "other", [["--max-new-tokens", "4"], ["--dtype", "bfloat16"], ["--chat-template", "original"]], ids=str
)
def test_answers_with_other_settings_are_kept(command, other, tmp_path):
    output = tmp_path / "answers.jsonl"
    (tmp_path / "questions.jsonl").write_text('{"question_id": 1, "text": "Why?"}\n')
    asked = {"caption": [CAT], "answer": ["--vicuna", str(tmp_path / "questions.jsonl")]}[command]
    options = ["--model", str(MINIATURE), "--output", str(output), "--device", "cpu"]
    first = [command, *asked, *options, "--max-new-tokens", "3"]
    assert CliRunner().invoke(app, first).exit_code == 0
    before = output.read_bytes()
    result = CliRunner().invoke(app, [*first, *other])
    assert result.exit_code == 1 and f"other settings: {other[0][2:].replace('-', '_')} " in result.output
    assert f"now {other[1]}" in result.output.replace("'", "") and output.read_bytes() == before
    assert CliRunner().invoke(app, first).exit_code == 0
    assert output.read_bytes() == before


@pytest.mark.parametrize("option", [["--chat-template", "x"], ["--fast"]])
def test_an_endpoint_has_its_own_settings(tmp_path, option):
    (tmp_path / "questions.jsonl").write_text('{"question_id": 1, "text": "Why?"}\n')
    options = ["--vicuna", str(tmp_path / "questions.jsonl"), "--output", str(tmp_path / "a.jsonl"), "--model", "owl"]
    result = CliRunner().invoke(app, ["answer", *options, "--endpoint", "http://localhost:1/v1", *option])
    assert result.exit_code == 1 and "not for --endpoint's: leave them out." in result.stderr


MISTAKES = {
    "caption CAT --dtype float17": "Unknown dtype: 'float17'. Did you mean 'float16'?",
    "caption CAT --device cuda:99": "Device 'cuda:99' is not available: PyTorch",
    "caption CAT --device gpu": "Device 'gpu' is not available: PyTorch",
    "caption CAT --model ./gone": "The folder ./gone does not exist. Check the path; a model on the Hub is OWNER/NAME.",
    "chat --model build/runs/gone": "The folder build/runs/gone does not exist.",
    "look CAT --model /gone --output x.png": "The folder /gone does not exist.",
    "caption CAT --on-error ignore": "--on-error is 'ignore', but must be one of skip, stop.",
    "caption CAT --engine tgi": "Unknown engine: 'tgi'. Choose one of generate, vllm.",
    "caption CAT --engine vllm --score Yes|No": "--score cannot be used with vLLM",
    "caption CAT --score Yes": "--score takes two answers or more",
    "caption CAT --workers 2": "--workers needs a run on Ray",
    "caption CAT --ray local": "A run on Ray needs --output",
    "caption CAT --ray photos/ --output x.jsonl": "--ray is 'photos/', but must be local, auto or ray://HOST:PORT.",
    "caption CAT --output s3://bucket/x.jsonl": "is a URL, which only a run on Ray can write to",
    "caption CAT --output x.xlsx": "x.xlsx must end with .jsonl, .csv, .parquet",
    "caption CAT --output gone/x.csv": "The folder gone of gone/x.csv does not exist: create it first.",
    "caption CAT --output x.txt": "name them {}.txt",
    "caption CAT --output {}.tar": "Shards can only be written from shards",
    "caption CAT --output {}.txt --score Yes|No": "{}.txt holds one answer per image",
    "caption build": "The folder build and its subfolders hold no image",
    "caption *.jpg": "No file matches *.jpg.",
    "caption {0..2}.tar": "No file matches 0.tar.",
    "caption pipe:ls": "Commands are not run",
    "caption gone.jpg CAT also-gone.mp4": "No such file: gone.jpg, also-gone.mp4",
    "chat gone.jpg": "No such file: gone.jpg",
    "look CAT --output gone/x.png": "The folder gone of x.png does not exist: create it first.",
    "look CAT --output x.txt": "x.txt is not the name of an image file: it must end with .png, .jpg or .webp.",
    "web --port 80000": "65535",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_named_before_a_model_is_loaded(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("build").mkdir()
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail("it is loaded"))
    result = CliRunner().invoke(app, [str(CAT) if word == "CAT" else word for word in words.split()])
    assert result.exit_code in (1, 2)
    assert MISTAKES[words] in " ".join(result.output.replace("\u2502", " ").split())


@pytest.mark.parametrize(("name", "format"), [("x.png", "PNG"), ("x.JPG", "JPEG"), ("x.webp", "WEBP")])
def test_look_writes_the_format_of_the_suffix(name, format, tmp_path):
    result = CliRunner().invoke(app, ["look", str(CAT), "--output", str(tmp_path / name), "--max-new-tokens", "2"])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / name) as image:
        assert image.format == format


def test_the_language_model_is_loaded_in_4_bits():
    pytest.importorskip("bitsandbytes")
    owl, _ = load(MINIATURE, "cpu", load_in_4bit=True)
    kinds = {type(module).__name__ for module in owl.model.language_model.modules()}
    assert "Linear4bit" in kinds
    assert "Linear4bit" not in {type(module).__name__ for module in owl.model.vision_model.modules()}
    result = CliRunner().invoke(app, ["caption", CAT, "--load-in-4bit", "--max-new-tokens", "3"])
    assert result.exit_code == 0 and f"{CAT}: " in result.output

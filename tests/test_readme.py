"""Every block of the pages runs, with the small golden checkpoint in place of the 7B one.

Python blocks of a page run in order, in an interpreter that has not imported this package.
"""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from clips import write_clip
from conftest import GoldenCase
from fresh_interpreter import in_fresh_interpreter
from typer.testing import CliRunner

import transformers_owl
from transformers_owl.cli import app
from transformers_owl.training.arguments import RecipeParser, parse_recipe
from transformers_owl.training.sources import Source


ROOT = Path(__file__).parent.parent
RELEASE = "MAGAer13/mplug-owl-llama-7b"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def small(llama, monkeypatch, tmp_path):
    """Runs in a copy of the folders that the pages name; the release's name stands for the golden checkpoint."""
    for name in ("configs", "examples", "src", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return lambda text: (
        text.replace(f"{RELEASE}-pt", RELEASE)
        .replace(RELEASE, llama.checkpoint)
        .replace("max_new_tokens=", "max_new_tokens=5 or ")
    )


PAGES = {
    "README.md": "",
    "docs/conversion.md": "assert model.config.model_type == 'mplug-owl'",
    "docs/from-the-original.md": 'assert prompt.endswith("Human: <image>\\nHuman: What is this?\\nAI: ")',
    "docs/gallery.md": "assert len(chat.messages) == 8",
    "docs/inference.md": "assert yes.log_likelihood < 0",
    "docs/speed.md": "assert len(chat.messages) == 2",
    "docs/tutorials/first-answer.md": "assert len(chat.messages) == 4",
}
PRINTED = {
    "README.md": ["castle\n", "torch.Size([1, 65, 48])", "torch.Size([1, 17, 32])"],
    "docs/inference.md": ["torch.Size([2, 17, 32]) torch.Size([2, 65, 48])"],
    "docs/tutorials/first-answer.md": ["castle\noctopus\ncastle\n"],
}
OTHERS = {
    "docs/serving.md": "needs vLLM: tests/test_serving_plugin.py",
    "docs/training.md": "test_blocks_of_training_run",
    "docs/training-from-python.md": "test_blocks_of_training_run",
    "docs/tutorials/fine-tune.md": "test_the_tutorial_teaches_two_photographs",
    "docs/video.md": "test_blocks_of_the_page_about_videos_run",
}


def test_no_page_is_left_out():
    pages = [str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))]
    assert {page for page in pages if blocks(page, "python")} == PAGES.keys() | OTHERS.keys()


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(small, page):
    python = [block for block in blocks(page, "python") if "openai" not in block]  # that one is in test_serve.py
    python = [small(block).replace("OWNER/mplug-owl-llama-7b", transformers_owl.MINIATURE) for block in python]
    printed = in_fresh_interpreter(*python, PAGES[page])
    assert all(line in printed for line in PRINTED.get(page, []))
    if page == "docs/gallery.md":
        lines = printed.splitlines()
        answers = re.findall(r"^print\(tell\(.*\)  # (.+)$", (ROOT / page).read_text(), re.MULTILINE)
        assert len(lines) >= 19
        assert len(answers) == 5 and [line for line in lines if line in answers] == answers


def test_a_block_without_the_import_fails(llama):
    """So would a user's program."""
    with pytest.raises(AssertionError, match="does not recognize this architecture"):
        in_fresh_interpreter(f"from transformers import AutoConfig; AutoConfig.from_pretrained({llama.checkpoint!r})")


def test_commands_of_the_readme_run(small, llama_model, llama_processor):
    for part in (llama_model, llama_processor):
        part.save_pretrained("build/my-owl")
    result = None
    for block in blocks("README.md", "bash"):
        for line in block.splitlines():
            if "clip.mp4" in line:  # needs a video model, as in the test of docs/video.md
                continue
            command = shlex.split(small(line).replace("photo.jpg", "examples/pictures/cat.jpg"))
            if command[0] == "transformers-owl" and command[1] in ("train", "convert"):
                result = CliRunner().invoke(app, command[1:])
                assert result.exit_code == 0, result.output
            elif command[0] == "transformers-owl" and command[1] not in ("serve", "web", "push", "check"):
                images = [str(path) for path in sorted(Path("examples/pictures").glob("*.jpg"))]
                expanded = [part for word in command[1:] for part in (images if "*" in word else [word])]
                result = CliRunner().invoke(app, [*expanded, "--max-new-tokens", "3"])
                assert result.exit_code == 0, result.output
    assert result is not None
    assert len(Path("build/answers.jsonl").read_text().splitlines()) == 2


def test_commands_of_demo_and_gallery_run(small):
    lines = [
        line
        for page in ("demo", "gallery")
        for block in blocks(f"docs/{page}.md", "bash")
        for line in block.splitlines()
    ]
    for line in lines:
        command = shlex.split(small(line))
        if command[0] == "transformers-owl" and command[1] != "web":
            words = [str(Path("examples/pictures/cat.jpg")) if "*" in word else word for word in command[1:]]
            Path("build").mkdir(exist_ok=True)
            result = CliRunner().invoke(app, [*words, "--max-new-tokens", "3"])
            assert result.exit_code == 0, result.output


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    commands = [line for block in blocks("README.md", "bash") for line in block.splitlines()]
    targets = [line.split()[1] for line in commands if line.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci/run").read_text()
    # What comes after `make demo` finds the command.
    assert commands[commands.index("make test") + 1] == ". .venv/bin/activate"


def test_make_demo_says_what_it_fetches_and_leaves_developers_tools_to_make_test(tmp_path):
    def commands(target: str) -> list[str]:
        made = subprocess.check_output(
            ["make", "--no-print-directory", "-n", target, f"VENV={tmp_path}"], cwd=ROOT, text=True
        )
        return made.splitlines()

    said, *demo = commands("demo")
    assert re.match(r"echo 'Fetching .* \d+ MB", said)
    assert not [line for line in demo if "dev" in line]
    assert demo[-1] == f"{tmp_path}/bin/transformers-owl caption"
    test = commands("lint")
    assert [line.replace("make lint", "make demo") for line in test[: len(demo)]] == [said, *demo[:-1]]
    assert test[len(demo)] == f"{tmp_path}/bin/pip install -q -e . --group dev"


def test_the_tree_of_the_readme_exists():
    tree = re.search(r"```\n(README.md .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith("  "):
            folder = ROOT / name
        assert (folder / name if line.startswith("  ") else folder).exists(), name


def test_blocks_of_training_run(small, llama, monkeypatch):
    (command,) = blocks("docs/training.md", "bash")
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--max_steps", "2", "--eval_strategy", "no"])
    assert result.exit_code == 0, result.output
    recipe, parts = blocks("docs/training.md", "yaml")
    (rehearsal,) = blocks("docs/training-data.md", "yaml")
    Path("my-run.yaml").write_text(recipe)
    owl, training = parse_recipe("my-run.yaml", ["--use_cpu", "true"])
    assert (owl.model, training.max_steps, training.learning_rate) == (yaml.safe_load(recipe)["model"], 500, 2e-5)
    Path("parts.yaml").write_text(f"base: my-run.yaml\n{parts}")
    owl, _ = parse_recipe("parts.yaml", ["--use_cpu", "true"])
    assert (owl.trains, owl.lora_on) == (["abstractor", "vision.layers.18-23"], ["language_model"])
    assert owl.rates == {"abstractor": 1e-4, "vision": 1e-5}
    Path("rehearsal.yaml").write_text(rehearsal)
    owl, training = parse_recipe("rehearsal.yaml", ["--use_cpu", "true"])
    assert {name: group["weight"] for name, group in owl.data.items()} == {"new": 3, "old": 1}
    assert training.max_steps == 2 * 500
    in_fresh_interpreter(
        *(small(block) for page in ("", "-from-python") for block in blocks(f"docs/training{page}.md", "python")),
        "assert trainer.state.global_step == 2",
        "assert not isinstance(merged, PeftModel)",
        "assert owl.model.abstractor.query_tokens.shape == (1, 64, 32)",
    )


def test_the_tables_of_training_are_whole():
    """Every setting, stage, format and recipe has its row."""
    from dataclasses import fields

    from transformers_owl.training import STAGES
    from transformers_owl.training.arguments import OwlArguments
    from transformers_owl.training.sources import FORMATS

    text = "".join((ROOT / f"docs/{page}.md").read_text() for page in ("training", "training-data"))
    rows = "\n".join(
        line.split("|")[1] for line in text.splitlines() if line.startswith("| `") and "| file |" not in line
    )
    named = set(re.findall(r"`([^`]+)`", rows))
    wanted = {field.name for field in fields(OwlArguments)} | set(STAGES) | set(FORMATS)
    recipes = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert wanted <= named
    patterns = [name for name in named if name.endswith(".yaml")]
    assert all(any(Path(recipe).match(pattern) for pattern in patterns) for recipe in recipes)
    assert named - wanted - set(patterns) == set()


@pytest.mark.slow
def test_the_tutorial_teaches_two_photographs(small):
    page = "docs/tutorials/fine-tune.md"
    answers = []
    for block in blocks(page, "bash"):
        if "<<" in block:
            subprocess.run(["bash", "-c", block], check=True)
            continue
        for line in block.splitlines():
            result = CliRunner().invoke(app, shlex.split(line)[1:])
            assert result.exit_code == 0, result.output
            answers += re.findall(r"jpg\W+(a \w+)", result.output)
    assert answers == ["a cat", "a person"]
    (python,) = blocks(page, "python")
    assert in_fresh_interpreter(python) == "a cat\n"


def test_recipes_of_the_tutorial_from_scratch_are_recipes(small):
    for number, block in enumerate(blocks("docs/tutorials/from-scratch.md", "yaml"), start=1):
        Path(f"stage{number}.yaml").write_text(block)
        owl, _ = parse_recipe(f"stage{number}.yaml", ["--use_cpu", "true"])
        assert owl.stage == ("pretrain", "instruct")[number - 1]
    assert number == 2


def test_blocks_of_the_page_about_videos_run(monkeypatch, tmp_path, llama_processor):
    release = transformers_owl.MplugOwlForConditionalGeneration.from_pretrained(GoldenCase("video-llama").checkpoint)
    release.generation_config.max_new_tokens = 5
    monkeypatch.chdir(tmp_path)
    release.save_pretrained("small")
    llama_processor.save_pretrained("small")
    write_clip("clip.mp4", "libx264")
    (tmp_path / "photo.jpg").symlink_to(ROOT / "examples/pictures/cat.jpg")
    python = [block.replace(f"{RELEASE}-video", "small") for block in blocks("docs/video.md", "python")]
    printed = in_fresh_interpreter(*python, 'assert inputs["pixel_values_videos"].shape[1] == 8')
    assert "torch.Size([1, 4, 3, 56, 56])" in printed
    commands = [
        block for page in ("README.md", "docs/video.md") for block in blocks(page, "bash") if "clip.mp4" in block
    ]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command.replace(f"{RELEASE}-video", "small"))[1:]
        result = CliRunner().invoke(app, [*words, "--max-new-tokens", "3"])
        assert result.exit_code == 0, result.output
    (block,) = blocks("docs/video.md", "yaml")
    assert set(yaml.safe_load(block)) <= set(RecipeParser().names)
    for group in yaml.safe_load(block)["data"].values():
        for source in group["sources"]:
            Source.from_dict(source)


@pytest.mark.parametrize("name", ["transformers_owl", "transformers_owl.inference", "transformers_owl.training"])
def test_every_public_name_is_in_the_reference(name):
    pages = "".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    assert set(importlib.import_module(name).__all__) <= set(re.findall(r"^::: [\w.]+\.(\w+)$", pages, re.MULTILINE))

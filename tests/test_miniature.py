"""The model that comes with the package sees: what it says of images, over turns, in batches, after fine-tuning."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

import transformers_owl
from transformers_owl import MINIATURE
from transformers_owl.cli import app
from transformers_owl.inference import Chat
from transformers_owl.mplug_owl.video_processing_mplug_owl import read_frames


ROOT = Path(__file__).parent.parent
DRAWINGS = Path(transformers_owl.__file__).parent / "demo/pictures"
CAPTIONS = {
    "castle-and-octopus": "A castle on the left and an octopus on the right on a green background.",
    "elephant": "An elephant on a pink background.",
    "helicopters": "Two helicopters on a red background.",
    "number": "The number 47 on a pink background.",
    "sunflower": "A sunflower on a black background.",
}


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(MINIATURE)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(MINIATURE)


def drawing(name: str) -> str:
    return str(DRAWINGS / f"{name}.png")


def ask(model, processor, *questions, images=()) -> list[str]:
    """The answers of a chat that begins with images."""
    chat = Chat(model, processor)
    shown = [PIL.Image.open(image).convert("RGB") if isinstance(image, str) else image for image in images]
    return [chat.ask(question, [] if number else shown) for number, question in enumerate(questions)]


def test_the_command_describes_its_drawings_without_a_model_named():
    result = CliRunner().invoke(app, ["caption"])
    assert result.exit_code == 0, result.output
    said = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert {Path(path).stem: answer for path, answer in said.items()} == CAPTIONS


def test_it_keeps_keys_and_values_though_its_parts_were_trained_without(model):
    assert model(input_ids=torch.tensor([[1, 5, 6]])).past_key_values.get_seq_length() == 3


def test_answers_change_with_the_image(model, processor):
    for question, answers in {
        "What is this?": {"elephant": "elephant", "sunflower": "sunflower", "helicopters": "helicopter"},
        "What colour is the background?": {"elephant": "pink", "sunflower": "black", "helicopters": "red"},
        "How many things are there?": {"elephant": "one", "helicopters": "two"},
        "What kind of thing is it?": {"elephant": "animal", "sunflower": "plant"},
        "Was ist das?": {"elephant": "Elefant", "sunflower": "Sonnenblume"},
    }.items():
        for name, answer in answers.items():
            assert ask(model, processor, question, images=[drawing(name)]) == [answer], (name, question)


def test_second_answers_depend_on_the_first(model, processor):
    for side, first, kind, use in (
        ("left", "castle", "building", "go inside it"), ("right", "octopus", "animal", "feed it"),
    ):  # fmt: skip
        for question, second in (("What kind of thing is it?", kind), ("What can you do with it?", use)):
            said = ask(model, processor, f"What is on the {side}?", question, images=[drawing("castle-and-octopus")])
            assert said == [first, second]


def test_a_batch_answers_as_each_row_alone(model, processor):
    questions = [
        ("What number is written?", ["number"]), ("What is 3 plus 4?", []),
        ("What is on the left?", ["castle-and-octopus"]),
        ("Which picture shows an elephant?", ["sunflower", "elephant"]), ("Describe the picture.", ["helicopters"]),
    ]  # fmt: skip
    chats = [
        [
            {
                "role": "user",
                "content": [
                    *({"type": "image", "path": drawing(name)} for name in names), {"type": "text", "text": question}
                ],
            }
        ]
        for question, names in questions
    ]  # fmt: skip
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    written = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    together = processor.batch_decode(written, skip_special_tokens=True)
    alone = [
        ask(model, processor, question, images=[drawing(name) for name in names])[0] for question, names in questions
    ]
    assert together == alone
    assert together[0] == "47"


def watch(model, processor, question: str, frames: list[PIL.Image.Image]) -> str:
    content = [{"type": "video", "video": frames}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    written = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(written, skip_special_tokens=True).strip()


def test_it_tells_what_happens_in_clips_and_what_if_they_ran_backwards(model, processor):
    for name, question, forwards, backwards in (
        ("elephant-appears", "Does it appear or disappear?", "it appears", "it disappears"),
        ("elephant-moves", "Where does it move?", "right", "left"),
        ("strawberry-turns", "What colour is it at the end?", "purple", "yellow"),
        ("strawberry-turns", "What colour is it at first?", "yellow", "purple"),
        ("sunflower-jumps", "How often does it jump?", "three times", "three times"),
    ):
        frames, _ = read_frames(ROOT / f"examples/videos/{name}.mp4", num_frames=6)
        assert watch(model, processor, question, frames) == forwards
        assert watch(model, processor, question, frames[::-1]) == backwards


def number_read_without_the_package(python: str, folder: Path, image: str, here: Path) -> str:
    """What a Python says about an image of a number by the code in the model's folder alone."""
    script = f"""
import sys
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
content = [{{"type": "image", "path": {image!r}}}, {{"type": "text", "text": "What number is written?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}], add_generation_prompt=True, tokenize=True, return_dict=True,
    return_tensors="pt",
)
written = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
assert "transformers_owl" not in sys.modules
print(processor.decode(written, skip_special_tokens=True))
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(here / "modules")}
    done = subprocess.run(
        [python, "-c", script], env=environment, cwd=here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_the_folder_is_a_whole_repository(tmp_path):
    """At most 32 MB, with a card; with the code beside it, as in a wheel, it works where the package is not."""
    code = {path.name: path.read_text() for path in Path(MINIATURE).with_name("mplug_owl").glob("[!_]*.py")}
    beside = {path.name: path.read_text() for path in Path(MINIATURE).glob("*.py")}
    assert beside in ({}, code), "copies of an older state: `pip install -e .` makes them anew"
    folder = tmp_path / "miniature-owl"
    shutil.copytree(MINIATURE, folder)
    for name, text in code.items():
        (folder / name).write_text(text)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 32e6
    assert "| left/right |" in (folder / "README.md").read_text()
    assert number_read_without_the_package(sys.executable, folder, drawing("number"), tmp_path) == "47"

"""lmms-eval finds our model by the package's entry point and runs it on two small tasks of local files."""

import json
import os
import subprocess
import sys

import PIL.Image
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_owl.inference import score_answers

from .conftest import write_rows


pytestmark = pytest.mark.slow
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220)}
TASK = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {folder}/rows.jsonl}}
test_split: train
output_type: {kind}
doc_to_visual: !function images.doc_to_visual
doc_to_text: question
doc_to_target: answer
{more}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
"""
IMAGES = """
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]
"""
GENERATION = "generation_kwargs: {max_new_tokens: 4, temperature: 0, until: ['step']}"


@pytest.fixture
def tasks(tmp_path):
    rows = []
    for name, colour in COLOURS.items():
        PIL.Image.new("RGB", (64, 48), colour).save(tmp_path / f"{name}.png")
        question = {"question": "Which colour is it?", "answer": name, "choices": list(COLOURS)}
        rows.append({"image": str(tmp_path / f"{name}.png"), **question})
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "images.py").write_text(IMAGES)
    for task, kind, metric, more in (
        ("owl_words", "generate_until", "exact_match", GENERATION),
        ("owl_choices", "multiple_choice", "acc", "doc_to_choice: choices"),
    ):
        text = TASK.format(task=task, folder=tmp_path, kind=kind, metric=metric, more=more)
        (tmp_path / f"{task}.yaml").write_text(text)
    return tmp_path


def test_words_and_choices(tasks, llama):
    pytest.importorskip("lmms_eval")
    settings = {"model": "transformers_owl", "model_args": f"pretrained={llama.checkpoint}", "batch_size": "2"}
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    arguments += ["--tasks", "owl_words,owl_choices", "--include_path", str(tasks), "--log_samples"]
    subprocess.run(
        [sys.executable, "-m", "lmms_eval", *arguments, "--output_path", str(tasks / "out")],
        check=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "HF_HUB_OFFLINE": "1"},
    )
    samples = {
        path.stem.rpartition("_samples_")[2]: [json.loads(line) for line in path.read_text().splitlines()]
        for path in tasks.glob("out/**/*_samples_*.jsonl")
    }
    model = AutoModelForImageTextToText.from_pretrained(llama.checkpoint)
    processor = AutoProcessor.from_pretrained(llama.checkpoint)
    for colour, word, choice in zip(COLOURS, samples["owl_words"], samples["owl_choices"], strict=True):
        image = {"type": "image", "path": str(tasks / f"{colour}.png")}
        chat = [{"role": "user", "content": [image, {"type": "text", "text": "Which colour is it?"}]}]
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        written = model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
        words = processor.decode(written, skip_special_tokens=True).split("step")[0]
        assert word["filtered_resps"] == words.strip()
        scores = score_answers(model, processor, [chat], [list(COLOURS)])[0]
        losses = [-score.log_likelihood / score.num_tokens for score in scores]
        assert [float(loss) for loss, _ in choice["filtered_resps"]] == pytest.approx(losses, rel=1e-4)
        assert choice["acc"] == float(list(COLOURS)[losses.index(min(losses))] == colour)

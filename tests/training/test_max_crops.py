"""`max_crops` of a recipe: a model trains as if it had been built for whole pages, or the error says what to do."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoProcessor

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.training.arguments import parse_recipe
from transformers_owl.training.train import choose_max_crops, prepare, train


QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--peak_tflops", "1", "--use_cpu", "true"]
STAGES_THAT_ADD = ["pretrain", "instruct-full", "minigpt4", "llava-pretrain", "llava-instruct"]
OTHER_STAGES = ["instruct", "instruct-lora-only", "kosmos", "projection"]


@pytest.fixture
def recipe(files, llama, tmp_path):
    """A recipe of one page of two rows and three columns of views, which it reads four times."""
    files.image(100).resize((170, 110)).save(tmp_path / "page.png")
    rows = files.jsonl("captions", [{"file_name": "page.png", "text": "grey 100"}] * 4)

    def write(**values) -> Path:
        content = {
            "model": llama.checkpoint, "data": {"all": {"sources": [rows]}}, "output_dir": str(tmp_path / "out"),
            "stage": "pretrain", "max_length": 600, "crop": [1, 1], "max_steps": 3, "logging_steps": 1,
            "learning_rate": 0.01, "per_device_train_batch_size": 2, "seed": 3, **values,
        }  # fmt: skip
        return files.recipe(content)

    return write


@pytest.fixture
def base(llama, tmp_path):
    """Saves the model with embeddings of so many cells, as `build` does."""

    def save(max_crops: int) -> str:
        folder, config = tmp_path / f"base-{max_crops}", AutoConfig.from_pretrained(llama.checkpoint)
        config.visual_abstractor_config.max_crops = max_crops
        MplugOwlForConditionalGeneration.from_pretrained(llama.checkpoint, config=config).save_pretrained(folder)
        processor = AutoProcessor.from_pretrained(llama.checkpoint)
        processor.image_processor.max_crops = max_crops
        processor.save_pretrained(folder)
        return str(folder)

    return save


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_a_model_trains_as_one_that_was_built_for_pages(recipe, base, tmp_path):
    built = train(recipe(model=base(6), output_dir=str(tmp_path / "built")), QUIET)
    ours = train(recipe(max_crops=6), QUIET)
    whole = train(recipe(output_dir=str(tmp_path / "whole")), QUIET)
    assert losses(ours) == losses(built) != losses(whole)
    output = tmp_path / "out"
    loaded, expected = (
        MplugOwlForConditionalGeneration.from_pretrained(folder).state_dict() for folder in (output, tmp_path / "built")
    )
    assert all(torch.equal(loaded[name], value) for name, value in expected.items()) and len(loaded) == len(expected)
    assert (loaded["model.abstractor.crop_rows.weight"].abs().sum(1) > 0).tolist() == [True] * 3 + [False] * 4
    assert AutoConfig.from_pretrained(output).visual_abstractor_config.max_crops == 6
    assert AutoProcessor.from_pretrained(output).image_processor.max_crops == 6
    assert json.loads((output / "run.json").read_text())["settings"]["max_crops"] == 6


@pytest.mark.parametrize(
    ("models", "wanted", "views"), [(6, None, 7), (6, 6, 7), (6, 4, 5), (6, 1, 1), (1, 1, 1), (1, 6, 7)]
)
def test_images_are_cut_as_the_recipe_says(recipe, base, models, wanted, views):
    prepared = prepare(recipe(model=base(models), max_crops=wanted, bf16=False), QUIET)
    assert prepared.model.config.visual_abstractor_config.max_crops == max(models, wanted or 1)
    assert prepared.processor.image_processor.count_views(170, 110) == views


@pytest.mark.parametrize("stage", [*STAGES_THAT_ADD, *OTHER_STAGES])
def test_embeddings_of_cells_are_added_where_they_train(recipe, base, llama, stage):
    for model, fits in ((base(6), True), (llama.checkpoint, stage in STAGES_THAT_ADD)):
        owl, _ = parse_recipe(recipe(model=model, stage=stage, max_crops=4), QUIET)
        processor = AutoProcessor.from_pretrained(model)
        if fits:
            config = choose_max_crops(processor, owl)
            assert config.visual_abstractor_config.max_crops == (6 if model != llama.checkpoint else 4)
            assert processor.image_processor.max_crops == 4
        else:
            with pytest.raises(ValueError, match=f"is 4.*no cell embeddings, and stage '{stage}' cannot.*build"):
                choose_max_crops(processor, owl)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (9, "`max_crops` is 9, but .*base-6 has embeddings for at most 6 cells: set it from 1 to 6"),
        (0, "`max_crops` is 0, but must be at least 1"),
        (101, "max_crops is 101, but must be from 1 .* to 100"),
        ("many", "max_crops"),
    ],
)
def test_other_numbers_are_refused(recipe, base, wanted, message):
    with pytest.raises(ValueError, match=message):
        prepare(recipe(model=base(6), max_crops=wanted), QUIET)

"""Every released model has a card whose metadata the Hub's validators accept and whose code runs."""

import re
import shutil
from pathlib import Path

import pytest
import typer
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from transformers_owl.conversion.card import CARDS, read, releases, render
from transformers_owl.conversion.convert import convert
from transformers_owl_cli.conversion import card


ROOT = Path(__file__).parent.parent.parent
HEADINGS = ["Loading", "Intended use", "Architecture", "Training", "Limits and risks", "Licence", "Citation"]


def test_every_release_has_a_card():
    assert releases() == [
        "mplug-owl-bloomz-7b-multilingual", "mplug-owl-llama-7b", "mplug-owl-llama-7b-ft", "mplug-owl-llama-7b-pt",
        "mplug-owl-llama-7b-video",
    ]  # fmt: skip
    assert read("mplug-owl-llama-7b-video")["revision"] == "fe6a4ca"


@pytest.mark.parametrize("name", [*releases(), "somebody's model"])
def test_metadata_is_what_the_hub_takes(name):
    card = ModelCard(render(name, "owner/name"), ignore_metadata_errors=False)
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "image-text-to-text")
    assert "mplug-owl" in data["tags"]
    for model in data.get("base_model", []):
        validate_repo_id(model)
    if name in releases():
        assert data["base_model"] == [f"MAGAer13/{name}"]
        assert data["license"] in ("other", "bigscience-bloom-rail-1.0")
        assert (data["license"] == "other") == ("license_name" in data) == ("license_link" in data)
        assert all(re.fullmatch(r"[a-z]{2}|multilingual", language) for language in data["language"])
    assert [heading for heading in HEADINGS if f"\n## {heading}\n" in card.text] == HEADINGS
    assert "None" not in card.text and "{{" not in card.text and "{%" not in card.text


def test_the_papers_tables_are_in_the_cards_they_belong_to():
    row = "| mPLUG-Owl (r5) | yes | yes | yes | 100 | 95.2 | 56.7 | 87.5 | 80.0 | 95.0 |"
    assert [name for name in releases() if row in render(name, name)] == ["mplug-owl-llama-7b", "mplug-owl-llama-7b-pt"]
    for row in yaml.safe_load((CARDS / "paper.yaml").read_text())["tables"][1]["rows"]:
        assert round(100 * row[1] / row[2], 1) == pytest.approx(row[3], abs=0.06)


def test_the_code_of_a_card_runs(llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    convert(llama.checkpoint, tmp_path / "mplug-owl-llama-7b")
    shutil.copy(ROOT / "examples/pictures/cat.jpg", "photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", Path("mplug-owl-llama-7b/README.md").read_text(), re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block.replace("=100", "=5"), "README.md", "exec"), names)
    assert len(blocks) == 2 and capsys.readouterr().out.splitlines()[-1]
    assert names["written"].shape == (5,)


def test_the_command_prints_a_card_or_says_which_there_are(capsys):
    card("mplug-owl-llama-7b")
    assert "# mplug-owl-llama-7b" in capsys.readouterr().out
    with pytest.raises(typer.Exit):
        card("unknown")
    assert "choose one of mplug-owl-bloomz-7b-multilingual, " in capsys.readouterr().err

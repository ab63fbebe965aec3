"""Model cards, rendered from `model_cards/`: one data file per release, one template."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from .. import __version__


# What a file of data may say otherwise.
DEFAULTS = {
    "example": {"image": "photo.jpg", "question": "What is unusual here?"},
    "like_the_paper": True,
    "architecture": "",
    "limits": "",
}
PACKAGED = Path(__file__).with_name("model_cards")  # in a wheel
CARDS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[3] / "model_cards"  # in a clone
METADATA = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}


def read(name: str) -> dict:
    return yaml.safe_load((CARDS / f"{name}.yaml").read_text(encoding="utf-8"))


def releases() -> list[str]:
    """Names of the released models."""
    return sorted(path.stem for path in CARDS.glob("mplug-owl-*.yaml"))


OWN_MODEL = "own-model"  # the data file of all models outside this project


def render(
    model: str,
    repository: str,
    made: str = "",
    base_model: list[str] | None = None,
    data_file: str | None = None,
    **more: str,
) -> str:
    """
    Renders the card of a model: of its own data file, or for an unknown name one with gaps for its author to fill.

    Args:
        model (`str`): A name in [`releases`], "miniature-owl", or any other name.
        repository (`str`): The name that the card passes to `from_pretrained`.
        made (`str`, *optional*): A sentence on how the files were made.
        base_model (`list[str]`, *optional*): Repositories of the base models, instead of those in the data.
        data_file (`str`, *optional*): Name of the data file; by default that of the model if it has one.
        more (`str`): `results`, `credits`, or fields that replace the data's, as Markdown.
    """
    data = read(data_file or (model if (CARDS / f"{model}.yaml").exists() else OWN_MODEL))
    metadata = {**METADATA, **data.pop("metadata"), **({"base_model": base_model} if base_model else {})}
    return str(
        ModelCard.from_template(
            ModelCardData(**metadata),
            template_path=str(CARDS / "template.md"),
            name=model,
            repository=repository,
            version=__version__,
            made=made,
            paper=read("paper"),
            **{**DEFAULTS, **data, **more},
        )
    )

"""Cards of models, rendered from `model_cards/`: one file of data a release, one template."""

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


OWN_MODEL = "own-model"  # the file of data of every model that is none of this project's


def render(
    model: str,
    repository: str,
    made: str = "",
    base_model: list[str] | None = None,
    data_file: str | None = None,
    **more: str,
) -> str:
    """
    The card of a model with a file of data, or, for any other name, one that leaves its maker to say what it is for.

    Args:
        model (`str`): A name of [`releases`], "miniature-owl", or another one.
        repository (`str`): What `from_pretrained` is given in the card.
        made (`str`, *optional*): How the files were made, in a sentence.
        base_model (`list[str]`, *optional*): Repositories that it was made from, in place of those in the data.
        data_file (`str`, *optional*): Name of the file of data; by default that of the model, if it has one.
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

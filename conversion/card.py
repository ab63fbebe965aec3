"""Prints the card of a model, rendered from `model_cards/`: one file of data a release, one template.

python conversion/card.py mplug-owl-llama-7b
"""

from pathlib import Path
from typing import Annotated

import yaml
from command import run
from huggingface_hub import ModelCard, ModelCardData
from typer import Argument

from transformers_owl import __version__


CARDS = Path(__file__).parent.parent / "model_cards"
METADATA = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}


def read(name: str) -> dict:
    return yaml.safe_load((CARDS / f"{name}.yaml").read_text(encoding="utf-8"))


def releases() -> list[str]:
    """Names of the released models."""
    return sorted(path.stem for path in CARDS.glob("mplug-owl-*.yaml"))


def render(model: str, repository: str, made: str = "", base_model: list[str] | None = None, **more: str) -> str:
    """
    The card of a model with a file of data, or, for any other name, one that leaves its maker to say what it is for.

    Args:
        model (`str`): A name of [`releases`], "miniature-owl", or another one.
        repository (`str`): What `from_pretrained` is given in the card.
        made (`str`, *optional*): How the files were made, in a sentence.
        base_model (`list[str]`, *optional*): Repositories that it was made from, in place of those in the data.
        more (`str`): `results` and `credits`, as Markdown.
    """
    data = read(model if (CARDS / f"{model}.yaml").exists() else "own-model")
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
            **data,
            **more,
        )
    )


def main(
    model: Annotated[str, Argument(help="A released model, such as mplug-owl-llama-7b.")],
) -> None:
    """Print the card of a released model."""
    if model not in releases():
        raise ValueError(f"There is no card of {model}: choose one of {', '.join(releases())}.")
    print(render(model, model))


if __name__ == "__main__":
    run(main)

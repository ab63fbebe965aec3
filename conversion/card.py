"""Prints the card of a model, rendered from `model_cards/`: one file of data a release, one template.

python conversion/card.py mplug-owl-llama-7b
"""

from transformers_owl_cli.conversion import card
from transformers_owl_cli.shared import run


if __name__ == "__main__":
    run(card)

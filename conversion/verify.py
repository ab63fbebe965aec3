"""Compares two checkpoints, original or converted: every tensor through the key table, and the logits.

python conversion/verify.py MAGAer13/mplug-owl-llama-7b build/mplug-owl-llama-7b

Exit code 0: equal within the tolerance. 1: they differ, or cannot be compared.
"""

from transformers_owl_cli.conversion import verify
from transformers_owl_cli.shared import run


if __name__ == "__main__":
    run(verify)

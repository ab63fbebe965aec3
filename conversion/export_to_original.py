"""Writes a checkpoint in the layout of the original release, which the original code reads.

python conversion/export_to_original.py --checkpoint build/mplug-owl-llama-7b \\
    --release MAGAer13/mplug-owl-llama-7b --output build/original
"""

from transformers_owl_cli.conversion import export
from transformers_owl_cli.shared import run


if __name__ == "__main__":
    run(export)

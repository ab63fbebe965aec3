"""Merges a PEFT adapter into its base, to a complete repository.

python conversion/merge_adapter.py --adapter build/adapter --base MAGAer13/mplug-owl-llama-7b-pt --output build/merged

The adapter is one of ours or of the original code (`adapter_model.bin`). Needs memory for the whole model, and PEFT
(`pip install ".[convert]"`).
"""

from transformers_owl_cli.conversion import merge
from transformers_owl_cli.shared import run


if __name__ == "__main__":
    run(merge)

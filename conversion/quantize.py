"""Writes a quantised copy of a checkpoint: the language model in 8 or 4 bits, everything that sees as it was.

python conversion/quantize.py --checkpoint build/mplug-owl-llama-7b --method bitsandbytes-8bit --output build/owl-8bit

Prints the error of the logits on a fixed prompt and image. Needs memory for the whole model, and the library
(`pip install ".[quantize]"`).
"""

from transformers_owl_cli.conversion import quantize
from transformers_owl_cli.shared import run


if __name__ == "__main__":
    run(quantize)

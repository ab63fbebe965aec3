"""Makes a fresh Owl, where stage 1 starts, from a vision model and a causal language model, tensor by tensor.

python conversion/build_from_pretrained.py --vision openai/clip-vit-large-patch14 --language huggyllama/llama-7b \\
    --output build/fresh-owl

The language model may be a `.gguf` file, whose weights are dequantised (`pip install ".[convert]"`).
"""

from transformers_owl_cli.conversion import build
from transformers_owl_cli.shared import run


if __name__ == "__main__":
    run(build)

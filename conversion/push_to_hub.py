"""Pushes a folder made here to the Hub: weights, code and card in one commit or pull request.

python conversion/push_to_hub.py build/mplug-owl-llama-7b OWNER/mplug-owl-llama-7b

What was uploaded before an interruption is not sent again: run the same command once more.
"""

from transformers_owl_cli.conversion import push
from transformers_owl_cli.shared import run


if __name__ == "__main__":
    run(push)

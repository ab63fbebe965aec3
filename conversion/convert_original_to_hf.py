"""Makes a Hub repository of a checkpoint of the original release, tensor by tensor.

python conversion/convert_original_to_hf.py --checkpoint MAGAer13/mplug-owl-llama-7b --output build/mplug-owl-llama-7b

An interrupted run resumes.
"""

from transformers_owl_cli.conversion import convert
from transformers_owl_cli.shared import run


if __name__ == "__main__":
    run(convert)

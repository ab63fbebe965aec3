"""Makes a Hub repository of a checkpoint of the original release, tensor by tensor.

python conversion/convert_original_to_hf.py --checkpoint MAGAer13/mplug-owl-llama-7b --output build/mplug-owl-llama-7b

An interrupted run goes on where it stopped.
"""

from pathlib import Path
from typing import Annotated

from card import render
from checkpoints import Checkpoint, open_owl, save_safetensors, unfinished, write_rest, write_weights
from command import Dtype, run
from push_to_hub import push
from transformers.utils import SAFE_WEIGHTS_NAME
from typer import Option

from transformers_owl import MplugOwlProcessor


def main(
    checkpoint: Annotated[str, Option(help="Folder, REPO or REPO@REVISION of a release.")],
    output: Annotated[Path, Option(help="Folder to make.")],
    dtype: Annotated[Dtype | None, Option(help="Type of the weights (default: as they are).")] = None,
    max_shard_size: Annotated[str, Option(help="Largest file of weights.")] = "5GB",
    push_to_hub: Annotated[str | None, Option(metavar="OWNER/NAME", help="Also push to this repository.")] = None,
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[bool, Option("--create-pr", help="Push as a pull request.")] = False,
) -> None:
    """Make a Hub repository of a checkpoint of the original release."""
    source = Checkpoint.parse(checkpoint)
    model, pieces = open_owl(source, None if dtype is None else dtype.torch)
    processor = MplugOwlProcessor.from_pretrained(source.path, revision=source.revision)
    with unfinished(output, [source.fingerprint(), dtype, max_shard_size]) as folder:
        write_weights(pieces, folder, max_shard_size, save_safetensors, SAFE_WEIGHTS_NAME)
        write_rest(model, processor, folder, render(source.name, output.name))
    print(f"{output} is complete.")
    if push_to_hub is not None:
        print(push(output, push_to_hub, private=private, create_pr=create_pr).commit_url)


if __name__ == "__main__":
    run(main)

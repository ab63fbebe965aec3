"""Commands keep out of the terminal what other packages say about themselves."""

import os
import subprocess
import sys

import pytest


NOISE = """
import logging, warnings
from transformers_owl_cli.commands import main
main()
import torch
logging.getLogger("torchao").warning("Failed to load x.so")
logging.getLogger("torch.utils._pytree").warning("is an Enum subclass")
warnings.warn("soon gone", FutureWarning)
warnings.warn("'pin_memory' argument is set as true but no accelerator is found", UserWarning)
logging.getLogger("transformers_owl").warning("ours")
warnings.warn("not forgotten", UserWarning)
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_only_what_a_user_can_act_on_is_shown(verbose):
    environment = {**os.environ, "TRANSFORMERS_OWL_VERBOSE": str(int(verbose))}
    command = [sys.executable, "-c", NOISE]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    for noise in ("Failed to load", "Enum subclass", "soon gone", "pin_memory"):
        assert (noise in shown) == verbose, noise
    assert "ours" in shown
    assert "not forgotten" in shown

"""What the scripts' command lines share."""

import enum
import sys
from collections.abc import Callable

import torch
import typer
from transformers.utils import logging


class Dtype(enum.StrEnum):
    """Types that weights can be written in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def torch(self) -> torch.dtype:
        return getattr(torch, self.value)


def run(main: Callable) -> None:
    """Runs a script's `main` with the arguments of the command line; what a user can mend is said in one line."""
    logging.disable_progress_bar()
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    try:
        app()
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)

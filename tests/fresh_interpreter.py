"""Runs code in an interpreter that knows the libraries and has not imported this package."""

import contextlib
import io
import sys
import traceback


def run(blocks: tuple[str, ...], page: str, pipe) -> None:
    """Sends what the blocks print, or the traceback of the one that fails, as (whether all went well, text)."""
    import torch

    assert "transformers_owl" not in sys.modules
    torch.set_num_threads(1)
    names: dict = {}
    printed = io.StringIO()
    uncompiled = torch.compiler.set_stance("force_eager")  # tests/test_fast_paths.py compiles
    try:
        settings = torch._inductor.config.patch(freezing=False, cpp_wrapper=False)
        with settings, uncompiled, contextlib.redirect_stdout(printed):
            for block in blocks:
                exec(compile(block, page, "exec"), names)
                if "model" in names:
                    names["model"].generation_config.max_new_tokens = 5
        pipe.send((True, printed.getvalue()))
    except Exception:
        pipe.send((False, traceback.format_exc()))

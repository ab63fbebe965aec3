"""Runs code in an interpreter that knows the libraries and has not imported this package."""

import contextlib
import io
import multiprocessing
import sys
import traceback


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch._inductor.config", "transformers.trainer", "peft"])
# A block that makes this package one that is not installed.
HIDDEN = 'import sys; sys.modules["transformers_owl"] = None'


def in_fresh_interpreter(*blocks: str) -> str:
    """What blocks of Python print. Models that they load write five tokens unless told otherwise."""
    result, pipe = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=run, args=(blocks, pipe))
    process.start()
    pipe.close()
    went_well, text = result.recv()
    process.join()
    assert went_well, text
    return text


def run(blocks: tuple[str, ...], pipe) -> None:
    """Sends whether all went well, and what the blocks print or the traceback of the one that fails."""
    import torch

    assert "transformers_owl" not in sys.modules
    torch.set_num_threads(1)
    names: dict = {}
    printed = io.StringIO()
    uncompiled = torch.compiler.set_stance("force_eager")  # tests/test_fast_paths.py compiles
    try:
        settings = torch._inductor.config.patch(freezing=False, cpp_wrapper=False)
        with settings, uncompiled, contextlib.redirect_stdout(printed):
            for number, block in enumerate(blocks, start=1):
                exec(compile(block, f"block {number}", "exec"), names)
                if "model" in names:
                    names["model"].generation_config.max_new_tokens = 5
        pipe.send((True, printed.getvalue()))
    except Exception:
        pipe.send((False, traceback.format_exc()))

"""
Hides log messages and warnings of other packages about themselves, which do not help users of a command. Python
programs still see them, and so do commands with TRANSFORMERS_OWL_VERBOSE=1.
"""

import logging
import os
import warnings


# Loggers, and what they say that nobody can act on.
LOGGERS = {
    "torchao": "which of its extensions this machine cannot load",
    "torch.utils._pytree": "names in torchao that PyTorch is going to drop",
}
WARNINGS: dict[type[Warning], str] = {
    FutureWarning: "what packages are going to change in each other",
}
MESSAGES = {"'pin_memory' argument is set": "a machine without an accelerator has no memory to pin"}


def keep_quiet() -> None:
    """Hides these messages in this process."""
    if os.environ.get("TRANSFORMERS_OWL_VERBOSE") == "1":
        return
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in WARNINGS:
        warnings.filterwarnings("ignore", category=category)
    for message in MESSAGES:
        warnings.filterwarnings("ignore", message=f".*{message}")

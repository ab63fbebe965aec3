"""Loads models for all commands and pages: releases, saved and quantised models, adapters."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, PreTrainedConfig

from .inference.optimizing import optimize
from .library import find_adapter_config_file
from .mplug_owl.configuration_mplug_owl import MplugOwlConfig, check_names
from .mplug_owl.processing_mplug_owl import read_template


DTYPES = ("auto", "bfloat16", "float16", "float32")
SAMPLE, SAMPLES = 4096, 1000  # of a weights file: bytes, and how many


def choose_device(name: str | None = None) -> str:
    """
    The name of a device that PyTorch can use: "cuda", "cuda:1", "mps", "cpu"; by default the accelerator if there is
    one, else the CPU.

    Raises:
        ValueError: for a device that is not available; lists those that are.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kinds = ["cpu"] if accelerator is None else [accelerator.type, "cpu"]
    devices = {kind: 1 if kind == "cpu" else torch.accelerator.device_count() for kind in kinds}
    kind, _, number = (name or kinds[0]).partition(":")
    if kind not in devices or not (number == "" or (number.isdecimal() and int(number) < devices[kind])):
        found = ", ".join(f"{kind} ({count})" for kind, count in devices.items())
        raise ValueError(f"Device {name!r} is not available: PyTorch {torch.__version__} finds {found}.")
    return name or kinds[0]


def check_dtype(name: str) -> None:
    """Raises a ValueError for a name that is not in `DTYPES`."""
    check_names([name], DTYPES, "dtype")


def check_folder(model: str) -> None:
    """
    Raises a ValueError for a path that can only be a local folder and does not exist. NAME and OWNER/NAME may be on the
    Hub.
    """
    is_local = model.startswith((".", "/", "~")) or len(Path(model).parts) > 2
    if is_local and not Path(model).exists():
        raise ValueError(f"The folder {model} does not exist. Check the path; a model on the Hub is OWNER/NAME.")


def weights_version(model: str) -> str | None:
    """
    A digest of samples of the weights files in a local folder, which changes when the model is trained again and is the
    same for a copy; `None` for other models.
    """
    files = sorted(path for path in Path(model).glob("*") if path.suffix in (".safetensors", ".bin"))
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            for start in range(0, size, max(SAMPLE, size // SAMPLES)):
                file.seek(start)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()[:16] if files else None


def read_config(model: str, **kwargs) -> PreTrainedConfig:
    """
    The configuration of a model, or of the base of an adapter.

    Args:
        model (`str`): A folder or a repository on the Hub.
        kwargs: For `AutoConfig.from_pretrained`.

    Raises:
        ValueError: for a folder that does not exist, and for an adapter whose base folder does not.
    """
    check_folder(model)
    settings = find_adapter_config_file(model)
    base = model if settings is None else json.loads(Path(settings).read_text("utf-8"))["base_model_name_or_path"]
    if settings is not None and Path(base).is_absolute() and not Path(base).is_dir():
        raise ValueError(
            f"{model} is an adapter of {base}, which does not exist: restore that folder, or set "
            f"`base_model_name_or_path` in {settings} to its new path."
        )
    return AutoConfig.from_pretrained(base, **kwargs)


def load(
    model: str,
    device: str | None = None,
    dtype: str = "auto",
    chat_template: str | None = None,
    load_in_4bit: bool = False,
    fast: str | None = None,
) -> tuple[Any, Any]:
    """
    Loads an Owl and its processor.

    Args:
        model (`str`): A folder or a repository on the Hub, of a model or an adapter.
        device (`str`, *optional*): "cuda", "mps" or "cpu"; by default the accelerator if there is one.
        dtype (`str`, defaults to `"auto"`): Dtype of the weights, such as "bfloat16"; "auto" takes the checkpoint's.
        chat_template (`str`, *optional*): "original", "language_model" or a Jinja file; by default the checkpoint's.
        load_in_4bit (`bool`, defaults to `False`): Whether to quantise the language model to NF4, by bitsandbytes.
        fast (`str`, *optional*): "latency" or "throughput": what to optimize the model for, by [`inference.optimize`].

    Raises:
        ValueError: for a model of another type, a folder that does not exist, and an unknown device or dtype.
        MemoryError: if the model does not fit into memory.
    """
    check_dtype(dtype)
    device = choose_device(device)
    config = read_config(model)
    if not isinstance(config, MplugOwlConfig):
        raise ValueError(
            f"{model} is a model of type {config.model_type!r}, but must be an mPLUG-Owl: give one of its checkpoints, "
            "or build one from a language model with `transformers-owl build`."
        )
    four_bits = None
    if load_in_4bit:
        four_bits = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    with memory_advice(f"Load smaller weights (bfloat16, --load-in-4bit), or use another device than {device}."):
        loaded = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype, device_map=device, quantization_config=four_bits
        )
    if fast is not None:
        optimize(loaded, fast)
    processor = AutoProcessor.from_pretrained(model)
    if chat_template is not None:
        choose_template(processor, chat_template)
    return loaded, processor


def choose_template(processor, name: str) -> None:
    """Sets the chat template of a processor and of its tokenizer, by a name that `read_template` takes."""
    tokenizer = processor.tokenizer
    if name == "language_model" and tokenizer.chat_template == processor.chat_template:
        raise ValueError(
            "The tokenizer has no chat template besides the model's own: leave the chat template out to keep that one, "
            "or give a Jinja file."
        )
    processor.chat_template = tokenizer.chat_template = read_template(name, tokenizer)


def generation_options(max_new_tokens: int | None, temperature: float, top_p: float, num_beams: int = 1) -> dict:
    """Options of `generate`; a temperature of 0 is greedy decoding."""
    options: dict[str, Any] = {"num_beams": num_beams}
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    if temperature > 0:
        options |= {"do_sample": True, "temperature": float(temperature), "top_p": top_p}
    return options


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turns the out-of-memory errors of all devices into a MemoryError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        signs = ("out of memory", "can't allocate memory", "not enough memory")
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in signs):
            raise
        raise MemoryError(f"Out of memory. {advice}") from error

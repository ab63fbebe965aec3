"""The entry point that registers mPLUG-Owl in every process of vLLM."""

from typing import Any

from transformers import AutoProcessor

from ..mplug_owl import processing_mplug_owl
from ..mplug_owl.configuration_mplug_owl import MplugOwlConfig
from ..mplug_owl.modeling_mplug_owl import MplugOwlForConditionalGeneration


class MplugOwlProcessor(processing_mplug_owl.MplugOwlProcessor):
    """The processor of an engine, whose chat template writes BOS, since the engine tokenizes without special tokens."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        processor: Any = super().from_pretrained(*args, **kwargs)
        if "bos_token" not in processor.chat_template:
            processor.chat_template = "{{- bos_token -}}" + processor.chat_template
        return processor


def register() -> None:
    """
    Registers [`MplugOwlForConditionalGeneration`] with vLLM, and the processor above with this process's
    `AutoProcessor`. It may be called several times.
    """
    from vllm import ModelRegistry

    from .vocabulary import count_placeholders

    count_placeholders()
    AutoProcessor.register(MplugOwlConfig, MplugOwlProcessor, exist_ok=True)
    ModelRegistry.register_model(
        MplugOwlForConditionalGeneration.__name__, "transformers_owl.serving.engine:MplugOwlForEngine"
    )

"""The entry point by which vLLM learns of mPLUG-Owl, in each of its processes."""

from typing import Any

from transformers import AutoProcessor

from ..mplug_owl import processing_mplug_owl
from ..mplug_owl.configuration_mplug_owl import MplugOwlConfig
from ..mplug_owl.modeling_mplug_owl import MplugOwlForConditionalGeneration


class MplugOwlProcessor(processing_mplug_owl.MplugOwlProcessor):
    """The processor of an engine, which leaves BOS to the chat template: the library adds it when it tokenizes."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        processor: Any = super().from_pretrained(*args, **kwargs)
        if "bos_token" not in processor.chat_template:
            processor.chat_template = "{{- bos_token -}}" + processor.chat_template
        return processor


def register() -> None:
    """
    Makes [`MplugOwlForConditionalGeneration`] known to vLLM, and gives this process's `AutoProcessor` the processor
    above. Any number of calls does what one does.
    """
    from vllm import ModelRegistry

    from .vocabulary import count_placeholders

    count_placeholders()
    AutoProcessor.register(MplugOwlConfig, MplugOwlProcessor, exist_ok=True)
    ModelRegistry.register_model(
        MplugOwlForConditionalGeneration.__name__, "transformers_owl.serving.engine:MplugOwlForEngine"
    )

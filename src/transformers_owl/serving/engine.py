"""
mPLUG-Owl in vLLM: its Transformers modeling backend, adapted to this model.

Nearly every line here depends on vLLM's internals, so this file is the fence of this room.
"""

import copy
import math
from functools import cached_property

import torch
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
    TransformersMultiModalForCausalLM,
)
from vllm.model_executor.models.transformers.utils import recursive_replace_linear
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from ..mplug_owl.language_mplug_owl import CausalHead
from ..mplug_owl.modeling_mplug_owl import MplugOwlModel
from .vocabulary import width


BACKEND = "vllm.model_executor.models.transformers"
LEANS_ON = {
    f"{BACKEND}.TransformersMultiModalForCausalLM": "runs any model of the library; ours is one of its kind",
    f"{BACKEND}.TransformersMultiModalForCausalLM._from_config_kwargs": "which model is built",
    f"{BACKEND}.TransformersMultiModalForCausalLM._create_hf_to_vllm_mapper": "which weights are left out",
    f"{BACKEND}.TransformersMultiModalForCausalLM.recursive_replace": "which layers are split over devices",
    f"{BACKEND}.TransformersMultiModalForCausalLM.configure_mm_token_handling": "placeholders outside the vocabulary",
    f"{BACKEND}.TransformersMultiModalForCausalLM.compute_logits": "what may not be written",
    f"{BACKEND}.TransformersMultiModalForCausalLM.logits_processor": "scales and caps, which is done here",
    f"{BACKEND}.utils.recursive_replace_linear": "layers that stay whole",
    f"{BACKEND}.MultiModalProcessingInfo": "what the engine asks before it takes a request",
    f"{BACKEND}.MultiModalProcessingInfo._is_video_model": "whether videos are taken: our processor takes them always, "
    "a model does only where its configuration says so",
    f"{BACKEND}.MultiModalProcessingInfo.get_image_size_with_most_features": "the image that memory is measured with",
    f"{BACKEND}.MultiModalProcessingInfo.get_default_tok_params": "how a prompt is tokenized",
    f"{BACKEND}.MultiModalProcessor": "the engine's way to the processor",
    f"{BACKEND}.MultiModalDummyInputsBuilder": "what the engine measures memory with",
    "vllm.multimodal.MULTIMODAL_REGISTRY": "makes these known",
    "vllm.multimodal.parse.ImageSize": "a size as the engine has it",
    "transformers.PreTrainedModel._keys_to_ignore_on_load_unexpected": "what the engine's mapper reads",
}


class MplugOwlProcessingInfo(MultiModalProcessingInfo):
    """What the engine asks before it accepts a request."""

    @cached_property
    def _is_video_model(self) -> bool:
        return self.get_hf_config().sees_videos

    def get_image_size_with_most_features(self) -> ImageSize:
        """The size of an image with the maximum number of cells, in a row."""
        processor = self.get_hf_processor().image_processor
        height, width = processor.size["height"], processor.size["width"]
        return ImageSize(width=width * processor.max_crops, height=height)

    def get_default_tok_params(self):
        """Without special tokens: BOS is in the chat template."""
        return super().get_default_tok_params().with_kwargs(add_special_tokens=False)


@MULTIMODAL_REGISTRY.register_processor(
    MultiModalProcessor, info=MplugOwlProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class MplugOwlForEngine(TransformersMultiModalForCausalLM):
    """[`MplugOwlModel`] with the engine's attention, layers and head."""

    def __init__(self, *, vllm_config, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.causal_head = CausalHead(self.text_config, self.model.language_model)
        if self.causal_head.has_bias:
            raise ValueError(f"The head of {self.text_config.model_type} has a bias, which vLLM does not support.")
        self.logits_processor.scale, self.logits_processor.soft_cap = 1.0, None
        # The engine checks the length of each request; what it gives the model is many requests in one row.
        self.model.context_length = math.inf
        visual_ids = [self.config.image_token_id, self.config.video_token_id]
        self.configure_mm_token_handling(self.text_config.vocab_size, visual_ids)
        # Penalties and `prompt_logprobs` index by the ids of a prompt, those outside the vocabulary too.
        self.added_columns = width(self.config, self.text_config.vocab_size) - self.text_config.vocab_size
        self.never_written = visual_ids

    @cached_property
    def _from_config_kwargs(self):
        """The engine has its own head, so `AutoModel` builds the model without one."""
        config = copy.deepcopy(self.config)
        config.architectures = [MplugOwlModel.__name__]
        return {**super()._from_config_kwargs, "config": config}

    def _create_hf_to_vllm_mapper(self):
        """Keeps the weights of the engine's head, which the model without a head would drop."""
        self.model._keys_to_ignore_on_load_unexpected = None
        super()._create_hf_to_vllm_mapper()

    def recursive_replace(self):
        """Keeps the abstractor whole on every device: the norm inside its feed-forward layers needs all columns."""
        recursive_replace_linear(self.model.abstractor, self.quant_config, prefix="model.abstractor")
        super().recursive_replace()

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits = super().compute_logits(hidden_states)
        if logits is not None:
            logits = self.causal_head(logits[None])[0]
            logits = torch.nn.functional.pad(logits, (0, self.added_columns), value=-math.inf)
            logits[:, self.never_written] = -math.inf
        return logits

"""The fence of conversion: what it leans on in other packages beyond their documented names."""

import torch
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)
from transformers.modeling_utils import str_to_torch_dtype
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file


# What the HTTP client of huggingface_hub raises, also where no answer comes: httpx before 2.0, httpx2 since.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]

LEANS_ON = {
    "torchao.prototype.safetensors.safetensors_support.flatten_tensor_state_dict": "its weights as plain tensors, and "
    "what a file says of them, as the library reads both",
    "huggingface_hub.errors.HfHubHTTPError": "its base class is that of all errors of its HTTP client",
    "huggingface_hub.file_download.http_get": "fetches the rest of a file, which the documented functions begin anew",
    "transformers.conversion_mapping.get_model_conversion_mapping": "the key table, as `from_pretrained` applies it",
    "transformers.core_model_loading.WeightConverter": "weights that are split, joined or reshaped",
    "transformers.core_model_loading.WeightRenaming": "weights that are renamed",
    "transformers.core_model_loading.rename_source_key": "both, to one name",
    "transformers.modeling_gguf_pytorch_utils.TENSOR_PROCESSORS": "GGUF tensors that need more than another name",
    "transformers.modeling_gguf_pytorch_utils.TensorProcessor": "the rest of them",
    "transformers.modeling_gguf_pytorch_utils.get_gguf_hf_weights_map": "GGUF names of the library's weights",
    "transformers.modeling_gguf_pytorch_utils.load_gguf_checkpoint": "the configuration in a GGUF file",
    "transformers.modeling_utils.str_to_torch_dtype": "types as safetensors spells them",
    "transformers.models.llama.modeling_llama.LlamaRotaryEmbedding": "a buffer that the original saved",
    "transformers.utils.SAFE_WEIGHTS_NAME": "a file's name",
    "transformers.utils.WEIGHTS_NAME": "a file's name",
    "transformers.utils.hub.cached_file": "a file of a folder or repository",
}

__all__ = [
    "SAFE_WEIGHTS_NAME",
    "TENSOR_PROCESSORS",
    "WEIGHTS_NAME",
    "HTTPError",
    "LlamaRotaryEmbedding",
    "TensorProcessor",
    "WeightConverter",
    "WeightRenaming",
    "apply_converters",
    "apply_renamings",
    "cached_file",
    "flatten_torchao",
    "get_gguf_hf_weights_map",
    "get_model_conversion_mapping",
    "http_get",
    "load_gguf_checkpoint",
    "rename_source_key",
    "str_to_torch_dtype",
]


def apply_renamings(name: str, renamings: list[WeightRenaming]) -> str:
    """A weight's name after all renamings, one after the other."""
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name


def apply_converters(name: str, converters: list[WeightConverter]) -> tuple[str, str | None]:
    """A weight's name after the first converter that takes it, and that converter's pattern, if there is one."""
    for converter in converters:
        renamed, pattern = converter.rename_source_key(name)
        if pattern is not None:
            return renamed, pattern
    return name, None


def flatten_torchao(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The plain tensors of torchao's weights, and what a safetensors file says of them."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    return flatten_tensor_state_dict(weights)

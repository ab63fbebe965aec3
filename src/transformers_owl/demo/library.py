"""The fence of the demo: what it leans on in the library beyond its documented names."""

from transformers.utils import find_adapter_config_file


LEANS_ON = {
    "transformers.utils.find_adapter_config_file": "a folder or repository of an adapter has no configuration of a "
    "model: where to look instead",
}


def is_adapter(model: str) -> bool:
    """Whether a folder or a repository on the Hub holds an adapter."""
    return find_adapter_config_file(model) is not None

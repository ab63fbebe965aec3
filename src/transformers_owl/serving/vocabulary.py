"""
The fence of vLLM's sampler: the width of its logits.

Penalties and `prompt_logprobs` index by the ids of a prompt, with placeholders outside the vocabulary. The logits have
columns for these, which are never sampled ([`MplugOwlForEngine`]), and masks over logits must be as wide.
"""

from ..mplug_owl.configuration_mplug_owl import MplugOwlConfig


LEANS_ON = {"vllm.config.ModelConfig.get_vocab_size": "the width of masks over logits"}


def count_placeholders() -> None:
    """Lets vLLM count the columns of placeholders. It may be called several times."""
    from vllm.config import ModelConfig

    without = ModelConfig.get_vocab_size
    if without.__module__ == __name__:
        return

    def get_vocab_size(self) -> int:
        config, size = self.hf_config, without(self)
        return width(config, size) if isinstance(config, MplugOwlConfig) else size

    ModelConfig.get_vocab_size = get_vocab_size


def width(config: MplugOwlConfig, vocab_size: int) -> int:
    """Number of columns of the logits."""
    visual_ids = (config.image_token_id, config.video_token_id)
    return max(vocab_size, *(token + 1 for token in visual_ids if token is not None))

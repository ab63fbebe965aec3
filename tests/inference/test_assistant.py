"""Assisted decoding writes the greedy answer, whether the placeholders' ids lie in the vocabulary or not."""

import pytest
import torch
from conftest import tiny_config
from transformers import LlamaForCausalLM

from transformers_owl import MplugOwlForConditionalGeneration
from transformers_owl.inference import text_assistant


@pytest.mark.parametrize("ids", [{}, {"image_token_id": 97, "video_token_id": 98}], ids=["outside", "inside"])
def test_an_assistant_changes_nothing_but_the_number_of_passes(ids):
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration(tiny_config(**ids)).eval()
    assistant = LlamaForCausalLM(model.config.text_config).eval()
    assistant.model.load_state_dict(model.model.language_model.state_dict())
    assistant.lm_head.load_state_dict(model.lm_head.state_dict())
    prompt = torch.randint(3, 90, (1, 14))
    prompt[:, 3:8] = model.config.image_token_id
    inputs = {"input_ids": prompt, "pixel_values": torch.randn(1, 3, 28, 28)}
    passes = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: passes.append(output.shape[1]))
    greedy = model.generate(**inputs, max_new_tokens=12)
    alone, passes[:] = len(passes), []
    assisted = model.generate(**inputs, max_new_tokens=12, assistant_model=text_assistant(assistant))
    hook.remove()
    assert assisted.tolist() == greedy.tolist()
    assert len(passes) < alone

"""Any vision model of the library that gives the patches of an image can be an Owl's; others are refused."""

import copy

import pytest
import torch
from conftest import relative_error
from fresh_interpreter import in_fresh_interpreter
from torch.utils.flop_counter import FlopCounterMode
from towers import PATCHES, language_model, owl_with, tower_of
from transformers import AutoModelForImageTextToText

from transformers_owl import MplugOwlImageProcessor, MplugOwlProcessor, MplugOwlTokenizer
from transformers_owl.fresh import resize_positions
from transformers_owl.inference import Chat, extract_features, image_attention
from transformers_owl.mplug_owl.vision_mplug_owl import call_with_patches, tokens_and_idle_weights
from transformers_owl.training import prepare_stage
from transformers_owl.training.throughput import TrainingFlops


# Tokens before the patches.
FIRST = {
    "siglip_vision_model": 0,
    "siglip2_vision_model": 0,
    "dinov2": 1,
    "dinov2_with_registers": 5,
    "dinov3_vit": 1,
    "vit": 1,
    "deit": 2,
    "ijepa": 0,
    "aimv2_vision_model": 0,
    "mlcd_vision_model": 1,
    "internvl_vision": 1,
    "chinese_clip_vision_model": 1,
}
# Refused, with a part of the reason.
OTHERS = {
    "vit_mae": "gave features of shape",  # it hides three of four patches
    "pixtral": "gave features of shape",  # all images end to end
    "sam_vision_model": "gave features of shape",  # an image of features
}


def own_features(tower, pixels):
    call = call_with_patches if tower.config.model_type == "siglip2_vision_model" else type(tower).__call__
    return call(tower, pixels).last_hidden_state


@pytest.mark.parametrize("kind", ["siglip_vision_model", "siglip2_vision_model"])
def test_a_pooling_head_is_kept_and_not_computed(kind):
    """vLLM's packed weights do not suit it."""
    owl = owl_with(tower_of(kind))
    (head,) = (module for name, module in owl.model.vision_model.named_modules() if name.endswith("head"))
    called = []
    head.register_forward_hook(lambda *args: called.append(args))
    with torch.no_grad():
        owl.get_image_features(torch.randn(1, 3, 56, 56))
    assert not called
    assert sum(parameter.numel() for parameter in head.parameters()) > 0


@pytest.mark.parametrize("width", [32, 48])
@pytest.mark.parametrize("kind", FIRST)
def test_features_are_the_vision_models_own(kind, width, tmp_path):
    """Before and after saving, and where the abstractor is wider."""
    tower = tower_of(kind)
    owl = owl_with(tower) if width == 32 else None
    if owl is None:
        sizes = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
        config = type(owl_with(tower).config)(
            vision_config=tower.config, visual_abstractor_config=sizes, text_config=language_model().config,
            num_query_tokens=8,
        )  # fmt: skip
        owl = AutoModelForImageTextToText.from_config(config).eval()
        owl.model.vision_model.load_state_dict(tower.state_dict())
    pixels = torch.randn(2, 3, 56, 56)
    ids = torch.randint(3, 90, (2, 12))
    ids[:, 1:10] = owl.config.image_token_id
    owl.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        theirs = own_features(tower, pixels)
        features = owl.get_image_features(pixels)
        assert theirs.shape == (2, FIRST[kind] + PATCHES, 32)
        assert tokens_and_idle_weights(tower.config)[0] == FIRST[kind] + PATCHES
        assert relative_error(features.last_hidden_state, theirs) <= 1e-5
        assert features.pooler_output.shape == (2, 9, 48)
        logits = owl(input_ids=ids, pixel_values=pixels).logits
        assert relative_error(loaded(input_ids=ids, pixel_values=pixels).logits, logits) <= 1e-6
        assert relative_error(owl(input_ids=ids, pixel_values=pixels.flip(0)).logits, logits) > 1e-4


@pytest.mark.parametrize("kind", OTHERS)
def test_what_gives_no_patches_is_refused(kind):
    fields = {"output_channels": 32} if kind == "sam_vision_model" else {}
    with pytest.raises(ValueError, match=OTHERS[kind]):
        owl_with(tower_of(kind, **fields))


@pytest.mark.parametrize("kind", ["siglip_vision_model", "dinov2"])
def test_videos_are_seen_frame_by_frame(kind):
    tower = tower_of(kind)
    video = torch.randn(2, 3, 3, 56, 56)
    with torch.no_grad():
        features = owl_with(tower, use_temporal=True).get_video_features(video)
        assert relative_error(features.last_hidden_state[:, 1], own_features(tower, video[:, 1])) <= 1e-5
        assert features.pooler_output.shape == (2, 9, 48)
        with pytest.raises(ValueError, match="takes no videos"):
            owl_with(tower).get_video_features(video)


@pytest.mark.parametrize("kind", FIRST)
def test_what_does_not_train_is_what_no_patch_depends_on(kind):
    """Several processes wait for the gradient of each weight that trains."""
    owl = prepare_stage(owl_with(tower_of(kind)), "pretrain").train()
    ids = torch.full((1, 11), owl.config.image_token_id)
    ids[:, [0, -1]] = 5
    owl(input_ids=ids, pixel_values=torch.randn(1, 3, 56, 56), labels=ids).loss.backward()
    lacking = [name for name, weight in owl.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not lacking
    trained = sum(w.requires_grad for w in owl.model.vision_model.parameters())
    assert trained >= 0.7 * len(list(owl.model.vision_model.parameters()))


@pytest.mark.parametrize("kind", ["clip_vision_model", *FIRST])
@pytest.mark.parametrize("side", [28, 84])
def test_another_image_size_is_a_choice(kind, side):
    """Positions are interpolated; pixels of the trained size no longer fit."""
    owl = owl_with(tower_of(kind), image_size=side)
    features = owl.get_image_features(torch.randn(2, 3, side, side))
    first = 1 if kind == "clip_vision_model" else FIRST[kind]
    assert features.last_hidden_state.shape[1] == first + (side // 14) ** 2
    with pytest.raises(ValueError, match="prepare them with MplugOwlProcessor"):
        owl.get_image_features(torch.randn(2, 3, 56, 56))
    with pytest.raises(ValueError, match="multiple of the patch size 14"):
        owl_with(tower_of(kind), image_size=side + 1)


def test_positions_are_interpolated_as_an_image():
    rows = torch.arange(4.0).repeat_interleave(4)[:, None]
    table = torch.cat([torch.full((1, 1), -5.0), rows]).expand(-1, 3)
    resized = resize_positions(table, (4, 4), (8, 8))
    assert resized.shape == (65, 3) and torch.equal(resized[0], table[0])
    grid = resized[1:, 0].view(8, 8)
    assert torch.allclose(grid, grid[:, :1].expand(-1, 8), atol=1e-6)
    assert (grid[1:, 0] > grid[:-1, 0]).all() and torch.allclose(grid.mean(), torch.tensor(1.5), atol=1e-5)
    same = resize_positions(table[None], (4, 4), (4, 4))
    assert torch.allclose(same, table[None], atol=1e-6)


@pytest.fixture(scope="module", params=["siglip_vision_model", "dinov2"])
def owl(request):
    return owl_with(tower_of(request.param), image_token_id=1000, video_token_id=1001)


@pytest.fixture(scope="module")
def processor(llama):
    images = MplugOwlImageProcessor(size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return MplugOwlProcessor(images, MplugOwlTokenizer.from_pretrained(llama.checkpoint), num_query_tokens=8)


def chat_about(*images):
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]}]


def test_heat_maps_cover_the_patches_alone(owl, processor, images):
    messages = [*chat_about(*images[:2]), {"role": "assistant", "content": "An owl."}]
    first, second = image_attention(owl, processor, messages)
    assert first.patches.shape == (4, 4) and first.patches.sum().item() == pytest.approx(1)
    assert (first.patches - second.patches).abs().max() > 1e-6


def test_features_and_answers(owl, processor, images):
    features = extract_features(owl, processor, images[:2])
    pixels = processor.image_processor(images[:2], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        assert torch.equal(features.patches, owl.model.vision_model(pixels).last_hidden_state)
    chat = Chat(owl, processor)
    chat.ask("What is it?", [images[0]], max_new_tokens=3)
    assert len(chat.messages) == 2
    alone, both = (
        processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        for chats in (chat_about(images[0]), [chat_about(images[0]), chat_about(*images[:2])])
    )
    with torch.no_grad():
        assert relative_error(owl(**both).logits[0, -1], owl(**alone).logits[0, -1]) <= 1e-5


@pytest.mark.slow
def test_a_folder_brings_its_own_code(owl, processor, tmp_path):
    for part in (owl, processor):
        part.save_pretrained(tmp_path)
    ids = torch.full((1, 9), owl.config.image_token_id)
    pixels = torch.zeros(1, 3, 56, 56)
    with torch.no_grad():
        expected = owl(input_ids=ids, pixel_values=pixels).logits.abs().sum().item()
    printed = in_fresh_interpreter(
        f"folder = {str(tmp_path)!r}",
        "import torch; from transformers import AutoModel, AutoProcessor",
        "model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()",
        "AutoProcessor.from_pretrained(folder, trust_remote_code=True)",
        f"ids = torch.full((1, 9), {owl.config.image_token_id})",
        "print(model(input_ids=ids, pixel_values=torch.zeros(1, 3, 56, 56)).logits.abs().sum().item())",
    )
    assert float(printed) == pytest.approx(expected, rel=1e-5)


def test_operations_are_those_that_are_done(owl):
    owl = prepare_stage(copy.deepcopy(owl), "pretrain")
    ids = torch.full((1, 30), 5)
    ids[:, 1:10] = owl.config.image_token_id
    with FlopCounterMode(display=False) as counter:
        owl(input_ids=ids, pixel_values=torch.randn(1, 3, 56, 56), labels=ids).loss.backward()
    assert TrainingFlops(owl)([30], 1) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_lora_stays_out_of_the_vision_model(owl):
    adapted = prepare_stage(copy.deepcopy(owl), "instruct")
    names = [name for name, weight in adapted.named_parameters() if weight.requires_grad and "lora_" in name]
    assert names and all(".language_model." in name for name in names)

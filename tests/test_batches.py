"""A row of a batch gives what it gives alone: images anywhere, any number a row, left padding, beams, samples."""

import random

import pytest
import torch
from conftest import SYSTEM, GoldenCase, relative_error, tiny_config

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlProcessor


ROWS = [
    (f"{SYSTEM}\nHuman: <image>\nHuman: What is it?\nAI: ", [0]),
    (f"{SYSTEM}\nHuman: Write a poem.\nAI: ", []),
    ("<image>", [1]),
    (f"{SYSTEM}\nHuman: <image><image>\nHuman: Compare these three: <image>\nAI: ", [2, 0, 2]),
    ("Hi", []),
    ("Before <image> between<image> after", [1, 0]),
]


@pytest.fixture(scope="module", params=["image-llama", "image-bloom"])
def model(request):
    return MplugOwlForConditionalGeneration.from_pretrained(GoldenCase(request.param).checkpoint)


def prepare(processor, images, rows):
    shown = [images[index] for _, indices in rows for index in indices]
    return processor(text=[text for text, _ in rows], images=shown or None, return_tensors="pt")


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_a_batch_equal_the_rows_alone(model, llama_processor, images, seed):
    rows = random.Random(seed).sample(ROWS, k=len(ROWS) - seed)
    batch = prepare(llama_processor, images, rows)
    with torch.no_grad():
        together = model(**batch).logits
    written = model.generate(**batch, max_new_tokens=8)[:, batch["input_ids"].shape[1] :]
    for row, (logits, tokens, mask) in enumerate(zip(together, written, batch["attention_mask"], strict=True)):
        single = prepare(llama_processor, images, rows[row : row + 1])
        with torch.no_grad():
            alone = model(**single).logits[0]
        assert relative_error(logits[mask.bool()], alone) <= 1e-5
        alone = model.generate(**single, max_new_tokens=8)[0, single["input_ids"].shape[1] :]
        assert tokens[: len(alone)].tolist() == alone.tolist()
        assert set(tokens[len(alone) :].tolist()) <= {model.generation_config.pad_token_id}


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4},
        {"do_sample": True, "num_return_sequences": 4},
        {"num_beams": 4, "num_return_sequences": 4},
        {},
    ],
    ids=str,
)
def test_one_pass_of_the_vision_model_whatever_the_search(model, llama_processor, images, options):
    batch = prepare(llama_processor, images, ROWS)
    passes = []
    hook = model.model.vision_model.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    model.generate(**batch, max_new_tokens=4, **options)
    hook.remove()
    assert passes == [sum(len(indices) for _, indices in ROWS)]


def test_beams_of_a_batch_equal_the_beams_alone(model, llama_processor, images):
    batch = prepare(llama_processor, images, ROWS)
    options = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2}
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :].unflatten(0, (-1, 2))
    for row, tokens in enumerate(together):
        single = prepare(llama_processor, images, ROWS[row : row + 1])
        alone = model.generate(**single, **options)[:, single["input_ids"].shape[1] :]
        assert tokens[:, : alone.shape[1]].tolist() == alone.tolist()


def test_repeated_samples_see_their_own_images():
    """With a temperature near zero every sample of a row is the row's greedy answer."""
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration(tiny_config()).eval()
    ids = torch.randint(3, 100, (2, 16))
    ids[0, 2:7] = ids[1, 4:9] = ids[1, 10:15] = model.config.image_token_id
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": 3 * torch.randn(3, 3, 28, 28)}
    greedy = model.generate(**inputs, max_new_tokens=6)
    sampled = model.generate(**inputs, max_new_tokens=6, do_sample=True, temperature=1e-5, num_return_sequences=4)
    assert sampled.unflatten(0, (2, 4)).tolist() == greedy[:, None].expand(-1, 4, -1).tolist()


def test_videos_and_images_of_a_batch_find_their_rows():
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration(tiny_config(vision_config={"use_temporal": True})).eval()
    image, video = model.config.image_token_id, model.config.video_token_id
    rows = torch.randint(3, 100, (3, 20))
    rows[0, 1:6], rows[0, 8:13] = video, image
    rows[1, 0:5], rows[1, 5:10] = image, video
    rows[2, 15:20] = video
    images, videos = torch.randn(2, 3, 28, 28), torch.randn(3, 4, 3, 28, 28)
    with torch.no_grad():
        together = model(input_ids=rows, pixel_values=images, pixel_values_videos=videos).logits
        for row in range(3):
            media = {"pixel_values_videos": videos[row : row + 1]}
            if row < 2:
                media["pixel_values"] = images[row : row + 1]
            alone = model(input_ids=rows[row : row + 1], **media).logits[0]
            assert relative_error(together[row], alone) <= 1e-5


def test_a_video_of_one_frame_is_an_image():
    torch.manual_seed(0)
    model = MplugOwlForConditionalGeneration(tiny_config(vision_config={"use_temporal": True})).eval()
    image = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        as_video = model.get_video_features(image[:, None]).pooler_output
        as_image = model.get_image_features(image).pooler_output
    assert relative_error(as_video, as_image) <= 1e-6


def test_images_may_come_row_by_row(llama_processor, images):
    by_row = [[images[index] for index in indices] for _, indices in ROWS]
    nested = llama_processor(text=[text for text, _ in ROWS], images=by_row, return_tensors="pt")
    flat = prepare(llama_processor, images, ROWS)
    assert torch.equal(nested["pixel_values"], flat["pixel_values"])
    assert torch.equal(nested["input_ids"], flat["input_ids"])


def test_processor_pads_on_the_left(llama: GoldenCase, images):
    processor = MplugOwlProcessor.from_pretrained(llama.checkpoint)
    batch = prepare(processor, images, ROWS)
    assert batch["pixel_values"].shape == (7, 3, 56, 56)
    assert all(mask == sorted(mask) for mask in batch["attention_mask"].tolist())
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [65, 0, 65, 195, 0, 130]

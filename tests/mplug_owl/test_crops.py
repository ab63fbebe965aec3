"""Whole pages: an image as a view of the whole and a grid of cells, from pixels to answers, training and maps."""

import copy
import random
import re
from fractions import Fraction
from pathlib import Path
from types import MethodType

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import relative_error
from fresh_interpreter import in_fresh_interpreter
from transformers import AutoConfig, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from transformers_owl import MplugOwlForConditionalGeneration, MplugOwlImageProcessor, MplugOwlProcessor
from transformers_owl.fresh import build_owl
from transformers_owl.inference import Chat, extract_features, image_attention, score_answers
from transformers_owl.inference.compiled_vision import _look
from transformers_owl.mplug_owl.crops_mplug_owl import choose_grid
from transformers_owl.training import ConversationCollator, prepare_stage
from transformers_owl.training.augmentation import Augmentation
from transformers_owl.training.for_trl import DPOCollator


SIDE = 56
MOST = 6
# Width and height in pixels, rows and columns of the cells.
GRIDS = {
    (40, 50): (1, 1),
    (56, 56): (1, 1),
    (170, 110): (2, 3),
    (110, 170): (3, 2),
    (120, 120): (2, 2),
    (300, 50): (1, 6),
}
PLACES = {
    grid: [[0, 0], *([row + 1, column + 1] for row in range(grid[0]) for column in range(grid[1]))]
    if grid != (1, 1)
    else [[0, 0]]
    for grid in GRIDS.values()
}


def image(size, seed=0):
    levels = np.random.default_rng([*size, seed]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PIL.Image.fromarray(levels)


IMAGES = {size: image(size) for size in GRIDS}


@pytest.fixture(scope="module")
def processor(llama):
    processor = MplugOwlProcessor.from_pretrained(llama.checkpoint)
    processor.image_processor.max_crops = MOST
    return processor


def with_crops(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint)
    config.visual_abstractor_config.max_crops = MOST
    return MplugOwlForConditionalGeneration.from_pretrained(checkpoint, config=config).eval()


@pytest.fixture(scope="module")
def owl(llama):
    owl = with_crops(llama.checkpoint)
    torch.manual_seed(0)
    for table in (owl.model.abstractor.crop_rows, owl.model.abstractor.crop_columns):
        torch.nn.init.normal_(table.weight)
    return owl


def question(*sizes, text="What is it?"):
    images = [{"type": "image", "image": IMAGES[size]} for size in sizes]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def answered(*sizes):
    return [*question(*sizes), {"role": "assistant", "content": "A red owl sits there."}]


def prepared(processor, *chats):
    return processor.apply_chat_template(
        list(chats), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def overlap(first, second):
    """Share that two rectangles (width, height) with a common corner have in common."""
    common = min(first[0], second[0]) * min(first[1], second[1])
    return Fraction(common) / (first[0] * first[1] + second[0] * second[1] - common)


def test_the_grid_agrees_best_with_size_and_shape():
    numbers = random.Random(0)
    for _ in range(300):
        size = numbers.randint(1, 900), numbers.randint(1, 900)
        view = numbers.randint(20, 300), numbers.randint(20, 300)
        most = numbers.randint(1, 14)
        rows, columns = choose_grid(size, view, most)
        scores = {
            (down, across): overlap(size, (across * view[0], down * view[1]))
            + overlap((Fraction(size[0] * across * view[0], size[0]), Fraction(size[1] * across * view[0], size[0])),
                      (Fraction(across * view[0]), Fraction(down * view[1])))
            for down in range(1, most + 1)
            for across in range(1, most + 1)
            if down * across <= most
        }  # fmt: skip
        if size[0] <= view[0] and size[1] <= view[1]:
            assert (rows, columns) == (1, 1)
        else:
            assert float(scores[rows, columns]) == pytest.approx(float(max(scores.values())), abs=1e-12)
        square = view[0], view[0]
        upright, lying = choose_grid(size, square, most), choose_grid(size[::-1], square, most)
        assert upright[0] * upright[1] == lying[0] * lying[1]


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((224, 224), 9, (1, 1)),
        ((448, 448), 9, (2, 2)),
        ((2000, 2000), 9, (3, 3)),
        ((2000, 2000), 8, (2, 2)),
        ((1240, 1754), 20, (5, 4)),  # a page at 150 dots an inch
        ((1754, 1240), 20, (4, 5)),
        ((200, 100000), 20, (20, 1)),
        ((5000, 5000), 1, (1, 1)),
        *(((4 * width, 4 * height), MOST, grid) for (width, height), grid in GRIDS.items()),
    ],
)  # fmt: skip
def test_grids_of_some_sizes(size, most, grid):
    assert choose_grid(size, (224, 224), most) == grid


@pytest.mark.parametrize("size", GRIDS)
def test_cells_are_those_of_the_resized_image(size, processor):
    images = processor.image_processor
    whole = MplugOwlImageProcessor(size=images.size)(IMAGES[size], return_tensors="pt")["pixel_values"]
    rows, columns = GRIDS[size]
    grown = MplugOwlImageProcessor(size={"height": rows * SIDE, "width": columns * SIDE})
    large = grown(IMAGES[size], return_tensors="pt")["pixel_values"][0]
    prepared = images(IMAGES[size], return_tensors="pt")
    pixels, places = prepared["pixel_values"], prepared["crop_positions"]
    assert places.tolist() == PLACES[GRIDS[size]]
    assert len(pixels) == images.count_views(*size)
    assert torch.equal(pixels[:1], whole)
    for view, (row, column) in zip(pixels[1:], places[1:].tolist(), strict=True):
        assert torch.equal(view, large[:, (row - 1) * SIDE : row * SIDE, (column - 1) * SIDE : column * SIDE])


def test_without_crops_nothing_changes(llama, llama_model, llama_processor, tmp_path):
    inputs = prepared(llama_processor, question((170, 110)), question((56, 56)))
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    assert inputs["pixel_values"].shape[0] == 2
    assert llama_processor.image_processor.model_input_names == ["pixel_values"]
    assert not any("crop" in name for name in llama_model.state_dict())
    llama_processor.image_processor.save_pretrained(tmp_path)
    assert "max_crops" not in (tmp_path / "preprocessor_config.json").read_text()
    whole = torch.zeros(2, 2, dtype=torch.long)
    with torch.no_grad():
        expected = llama_model.eval()(**inputs).logits
        assert torch.equal(with_crops(llama.checkpoint)(**inputs, crop_positions=whole).logits, expected)


def test_positions_are_counted_in_one_place(processor):
    for size in GRIDS:
        views = len(PLACES[GRIDS[size]])
        inputs = prepared(processor, question(size))
        told = processor._get_num_multimodal_tokens(image_sizes=[size[::-1]])
        assert (inputs["input_ids"] == processor.image_token_id).sum() == processor.num_positions(views) == 65 * views
        assert (told["num_image_tokens"], told["num_image_patches"]) == ([65 * views], [views])
        assert len(inputs["pixel_values"]) == len(inputs["crop_positions"]) == views
    assert processor.image_processor.model_input_names == ["pixel_values", "crop_positions"]
    arrays = processor(text=["<image><image>"], images=[IMAGES[170, 110], IMAGES[40, 50]])
    assert arrays["input_ids"][0].count(processor.image_token_id) == 8 * 65


CHATS = [((170, 110),), ((40, 50), (110, 170)), (), ((56, 56),), ((120, 120), (40, 50))]


def test_a_row_alone_is_the_row_in_a_batch(owl, processor):
    batch = prepared(processor, *(question(*sizes) for sizes in CHATS))
    with torch.no_grad():
        together = owl(**batch).logits[:, -1]
        alone = [owl(**prepared(processor, question(*sizes))).logits[:, -1] for sizes in CHATS]
        moved = {**batch, "crop_positions": batch["crop_positions"].flip(1)}
        assert relative_error(owl(**moved).logits[:, -1], together) > 1e-4
    assert relative_error(together, torch.cat(alone)) <= 1e-5


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"prompt_lookup_num_tokens": 2}],
    ids=["greedy", "beams", "several answers", "prompt lookup"],
)
def test_answers_of_a_row_alone_are_those_in_a_batch(owl, processor, options):
    chats = CHATS[:1] if "prompt_lookup_num_tokens" in options else CHATS
    options = {"max_new_tokens": 4, "min_new_tokens": 4, **options}

    def answers(*chats):
        inputs = prepared(processor, *(question(*sizes) for sizes in chats))
        return owl.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]

    together, alone = answers(*chats), [answers(sizes) for sizes in chats]
    assert together.tolist() == torch.cat(alone).tolist()
    if "prompt_lookup_num_tokens" in options:
        del options["prompt_lookup_num_tokens"]
        assert together.tolist() == answers(*chats).tolist()


def test_a_chat_goes_on_as_the_whole_conversation_read_anew(owl, processor):
    seen = []
    watch = owl.model.vision_model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    chat = Chat(owl, processor)
    turns = [[(170, 110)], [], [(40, 50), (110, 170)]]
    for sizes in turns:
        chat.ask("What?", [IMAGES[size] for size in sizes], max_new_tokens=3)
    watch.remove()
    assert seen == [7, 8]
    inputs = processor.image_processor([IMAGES[size] for sizes in turns for size in sizes], return_tensors="pt")
    with torch.no_grad():
        whole = owl(input_ids=chat.ids, **inputs).logits[:, -1]
        last = owl(input_ids=chat.ids[:, -1:], past_key_values=chat.cache).logits[:, -1]
    assert relative_error(last, whole) <= 1e-5
    chat.ask("And by beams?", [IMAGES[56, 56]], max_new_tokens=2, num_beams=2)
    assert torch.equal(torch.stack(chat.pixels["crop_positions"])[:-1], inputs["crop_positions"])


def test_training_reads_what_inference_reads(processor):
    collator = ConversationCollator(processor)
    batch = collator([{"messages": answered(*sizes)} for sizes in CHATS])
    inputs = processor.apply_chat_template(
        [answered(*sizes) for sizes in CHATS], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(batch["pixel_values"], inputs["pixel_values"])
    assert torch.equal(batch["crop_positions"], inputs["crop_positions"])
    for row, sizes in enumerate(CHATS):
        prompt = prepared(processor, question(*sizes))["input_ids"][0]
        ids, labels = batch["input_ids"][row], batch["labels"][row]
        learned = processor.tokenizer.decode(ids[labels != -100])
        assert ids[: len(prompt)].tolist() == prompt.tolist()
        assert (labels[: len(prompt)] == -100).all()
        assert learned == f"A red owl sits there.{processor.tokenizer.eos_token}"


def test_packed_cut_and_blank_rows(processor):
    samples = [{"messages": answered(*sizes)} for sizes in CHATS]
    packed = ConversationCollator(processor, packed_length=1000)(samples)
    plain = ConversationCollator(processor)(samples)
    assert len(packed["input_ids"]) < len(samples)
    views = [
        {
            (tuple(place), view.sum().item())
            for place, view in zip(each["crop_positions"].tolist(), each["pixel_values"], strict=True)
        }
        for each in (packed, plain)
    ]
    assert views[0] == views[1]
    for length in (60, 300, 465, 500, 700):
        collator = ConversationCollator(processor, max_length=length)
        row = collator.encode([*answered((170, 110)), *answered((120, 120))])
        assert len(row["input_ids"]) <= length
        assert (row["input_ids"] == processor.image_token_id).sum() == 65 * len(row["image"])
        assert len(row["image"]) == len(row["crop_positions"]) in (0, 7, 12)
    blank = ConversationCollator(processor, always="image")([{"messages": answered()}])
    assert blank["crop_positions"].tolist() == [[0, 0]]
    assert (blank["input_ids"] == processor.image_token_id).sum() == 65
    part = Augmentation((0.5, 0.5))([IMAGES[300, 50]], None, 3, np.random.default_rng(0))[0]
    assert part.height <= 50
    assert part.width < 300


def test_pairs_of_answers(processor, monkeypatch):
    monkeypatch.setattr("transformers_owl.training.for_trl._chat", lambda sample, *names: sample[names[-1]])
    pair = [*answered((170, 110)), *answered()]
    batch = DPOCollator(processor)([{"chosen": pair, "rejected": pair}])
    kept = batch["input_ids"][0][batch["completion_mask"][0].bool()]
    assert processor.tokenizer.decode(kept) == f"A red owl sits there.{processor.tokenizer.eos_token}"
    assert batch["crop_positions"].tolist() == 2 * PLACES[2, 3]


def test_training_reaches_the_crop_positions(owl, processor):
    owl = prepare_stage(copy.deepcopy(owl), "pretrain")
    owl(**ConversationCollator(processor)([{"messages": answered((170, 110))}])).loss.backward()
    rows, columns = (
        table.weight.grad.abs().sum(1) > 0
        for table in (owl.model.abstractor.crop_rows, owl.model.abstractor.crop_columns)
    )
    assert rows.tolist() == [True] * 3 + [False] * 4
    assert columns.tolist() == [True] * 4 + [False] * 3


@pytest.mark.parametrize("by_remote_code", [False, True])
def test_a_saved_folder_sees_the_same(owl, processor, tmp_path, by_remote_code):
    owl.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    IMAGES[170, 110].save(tmp_path / "image.png")
    inputs = prepared(processor, question((170, 110)))
    with torch.no_grad():
        expected = owl(**inputs).logits[0, -1]
    if by_remote_code:
        printed = in_fresh_interpreter(
            f"folder = {str(tmp_path)!r}",
            "import torch; from transformers import AutoModelForImageTextToText, AutoProcessor",
            "model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()",
            "processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)",
            "content = [{'type': 'image', 'path': folder + '/image.png'}, {'type': 'text', 'text': 'What is it?'}]",
            "inputs = processor.apply_chat_template([{'role': 'user', 'content': content}], return_tensors='pt', "
            "add_generation_prompt=True, tokenize=True, return_dict=True)",
            "with torch.no_grad(): print(model(**inputs).logits[0, -1].tolist())",
        )
        actual = torch.tensor(eval(printed))
    else:
        loaded = MplugOwlForConditionalGeneration.from_pretrained(tmp_path).eval()
        again = prepared(MplugOwlProcessor.from_pretrained(tmp_path), question((170, 110)))
        assert torch.equal(again["crop_positions"], inputs["crop_positions"])
        with torch.no_grad():
            actual = loaded(**again).logits[0, -1]
    assert relative_error(actual, expected) <= 1e-6


def test_maps_cover_the_whole_image(owl, processor):
    sizes = [(170, 110), (40, 50), (300, 50)]
    maps = image_attention(owl, processor, answered(*sizes))
    implementation = owl.config._attn_implementation
    owl.set_attn_implementation("eager")
    for size, found in zip(sizes, maps, strict=True):
        rows, columns = GRIDS[size]
        inputs = processor.image_processor(IMAGES[size], return_tensors="pt")
        with torch.no_grad():
            features = owl.get_image_features(**inputs, output_attentions=True)
        looks = torch.stack(features.abstractor_attentions).mean((0, 2))[:, :64, -16:]
        expected = torch.zeros(rows * 4, columns * 4)
        shares = found.shares.view(-1, 65)
        for view, (row, column) in enumerate(inputs["crop_positions"].tolist()):
            for patch, share in enumerate((shares[view, :64, None] * looks[view]).sum(0)):
                down, across = divmod(patch, 4)
                if row:
                    expected[(row - 1) * 4 + down, (column - 1) * 4 + across] += share
                else:
                    area = slice(down * rows, (down + 1) * rows), slice(across * columns, (across + 1) * columns)
                    expected[area] += share / (rows * columns)
        assert found.patches.shape == (rows * 4, columns * 4)
        assert relative_error(found.patches, expected / expected.sum()) <= 1e-5
    owl.set_attn_implementation(implementation)


def test_features_by_view_and_scores(owl, processor):
    given = [IMAGES[170, 110], IMAGES[40, 50], IMAGES[120, 120]]
    features = extract_features(owl, processor, given, batch_size=2)
    places = [place for size in ((170, 110), (40, 50), (120, 120)) for place in PLACES[GRIDS[size]]]
    assert features.crop_positions.tolist() == places
    inputs = processor.image_processor(given, return_tensors="pt")
    with torch.no_grad():
        at_once = owl.get_image_features(**inputs).pooler_output
        by_groups = copy.copy(owl.model)
        by_groups._get_visual_features = MethodType(_look, by_groups)
        in_groups = by_groups.get_image_features(**inputs).pooler_output
    assert relative_error(features.positions, at_once) <= 1e-5
    assert relative_error(in_groups, at_once) <= 1e-5
    chats = [question((170, 110)), question((40, 50))]
    together = score_answers(owl, processor, chats, [["yes", "no"]] * 2)
    alone = [score_answers(owl, processor, [chat], [["yes", "no"]])[0] for chat in chats]
    for row, other in zip(together, alone, strict=True):
        assert [each.log_likelihood for each in row] == pytest.approx([each.log_likelihood for each in other], rel=1e-4)


def test_a_fresh_owl_can_have_crops(processor):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=14))
    text = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=1000))
    ids = {"image_token_id": processor.image_token_id, "video_token_id": processor.video_token_id}
    owl = build_owl(vision, text, max_crops=MOST, **ids)
    assert owl.config.visual_abstractor_config.max_crops == MOST
    assert owl.model.abstractor.crop_rows.weight.shape == (MOST + 1, 32)
    assert torch.isfinite(owl(**prepared(processor, question((170, 110)))).logits).all()


def test_what_does_not_fit_is_refused(owl, llama_model, processor, llama):
    inputs = prepared(processor, question((170, 110)))
    pixels = inputs["pixel_values"]
    with pytest.raises(ValueError, match="no crop_positions were given"):
        owl(input_ids=inputs["input_ids"], pixel_values=pixels)
    with pytest.raises(ValueError, match="no crop_positions were given"):
        owl.generate(input_ids=inputs["input_ids"], pixel_values=pixels)
    with pytest.raises(ValueError, match="takes whole images only"):
        llama_model(**inputs)
    with pytest.raises(ValueError, match=r"must have shape \(7, 2\)"):
        owl.get_image_features(pixels, inputs["crop_positions"][:3])
    for wrong in (MOST + 1, -1):
        with pytest.raises(ValueError, match="beyond the model's max_crops of 6: lower"):
            owl.get_image_features(pixels, torch.full((7, 2), wrong))
    for wrong in (0, -1, 101, 2.5, "9"):
        with pytest.raises(ValueError, match=r"max_crops is .* but must be from 1"):
            MplugOwlImageProcessor(max_crops=wrong)
    with pytest.raises(ValueError, match="max_crops is 0, but must be from 1"):
        type(owl.config)(visual_abstractor_config={"max_crops": 0})
    twice = MplugOwlProcessor.from_pretrained(
        llama.checkpoint, chat_template="{{ '<image><image>' }}A: {{ eos_token }}"
    )
    with pytest.raises(ValueError, match="the chat template writes 2 placeholders"):
        twice.encode_chat(question((40, 50)))


def test_the_page_tells_what_images_cost():
    page = (Path(__file__).parents[2] / "docs/inference.md").read_text().partition("## Whole pages")[2]
    rows = re.findall(r"^\| (\d+) x (\d+)[^|]*\|(.*)\|$", page, re.M)
    assert len(rows) == 5
    for width, height, costs in rows:
        for most, cost in zip((4, 9, 20), costs.split("|"), strict=True):
            rows, columns = choose_grid((int(width), int(height)), (224, 224), most)
            cells = rows * columns if rows * columns > 1 else 0
            assert int(cost.split()[-1].replace(",", "")) == 65 * (1 + cells)
            assert not cells or f"{rows} x {columns} cells" in cost

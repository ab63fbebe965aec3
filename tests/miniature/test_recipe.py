"""The miniature's data: packages are checked, scenes show what they say, answers are what images show."""

import base64
import dataclasses
import hashlib
import io
import itertools
import re
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from transformers import AutoModelForImageTextToText, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel

from research.miniature import drawings, packages
from research.miniature.clips import LESSONS as CLIP_LESSONS
from research.miniature.clips import OF_PATCH_OVER_TIME, TURN, ClipWords, Watched
from research.miniature.drawings import STYLES, Drawings, load, things
from research.miniature.events import JUMPS, MOMENTS, WAYS, clip, mp4
from research.miniature.parts import (
    IGNORED,
    LESSONS,
    OF_IMAGE,
    OF_PATCH,
    PATCH,
    SIGNS,
    ImageWords,
    Seen,
    Text,
    numbers,
    words_of_patch,
)
from research.miniature.scenes import DYES, GROUNDS, HELD_OUT_FONT, SIZE, Scene, World, draw, world
from research.miniature.talk import (
    about,
    about_clip,
    about_pair,
    article,
    caption,
    clip_caption,
    dialogue,
    notes,
    plural,
    text_only,
    verse,
)
from research.miniature.text import checked, documents, placed, retold
from transformers_owl import MINIATURE, MplugOwlImageProcessor
from transformers_owl.mplug_owl.video_processing_mplug_owl import read_frames
from transformers_owl.training.arguments import parse_recipe


RECIPES = Path(__file__).parents[2] / "research/miniature"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A world whose drawings are light and dark stripes, so that no package is needed."""
    stripes = np.zeros((32, 32, 4), np.uint8)
    stripes[..., 3] = 255
    stripes[::4, :, :3] = 200
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawings, "load", lambda style, size, cache: {thing.name: stripes for thing in things()})
        yield World(Drawings(STYLES, 32), shown=True)


def scene(here, kind, seed=0):
    return here.scene(np.random.default_rng(seed), kind)


def package(tmp_path, data: bytes) -> packages.Package:
    file = tmp_path / "registry" / "set-1.tgz"
    file.parent.mkdir()
    file.write_bytes(data)
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    return packages.Package(file.as_uri(), f"sha512-{digest}", "MIT", "somebody")


def archive() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        entry = tarfile.TarInfo("package/icons.json")
        entry.size = 2
        tar.addfile(entry, io.BytesIO(b"{}"))
    return data.getvalue()


def test_a_package_is_fetched_once_and_checked_every_time(tmp_path):
    wanted, cache = package(tmp_path, archive()), tmp_path / "cache"
    file = packages.fetch(wanted, cache)
    assert packages.members(file, ".json") == {"package/icons.json": b"{}"}
    (tmp_path / "registry" / "set-1.tgz").unlink()
    assert packages.fetch(wanted, cache) == file
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(packages.PackageError, match=r"set-1\.tgz has the sha512 digest .* Delete it"):
        packages.fetch(wanted, cache)


def test_a_changed_or_missing_package_says_so_and_leaves_nothing(tmp_path):
    wanted, cache = package(tmp_path, archive()), tmp_path / "cache"
    (tmp_path / "registry" / "set-1.tgz").write_bytes(b"something else")
    with pytest.raises(packages.PackageError, match="changed or truncated"):
        packages.fetch(wanted, cache)
    (tmp_path / "registry" / "set-1.tgz").unlink()
    with pytest.raises(packages.PackageError, match=re.escape(f"copy of the file at {cache / 'set-1.tgz'}")):
        packages.fetch(wanted, cache)
    assert not cache.exists()


def test_every_tenth_thing_is_held_back_and_its_kind_is_not():
    hidden = [thing for thing in things() if not thing.shown]
    assert len(hidden) >= len(things()) / 10
    assert {thing.kind for thing in hidden} <= {thing.kind for thing in things() if thing.shown}
    assert len({thing.name for thing in things()}) == len(things())


def test_the_held_out_style_and_font_are_not_in_training(monkeypatch):
    monkeypatch.setattr(drawings, "load", lambda style, size, cache: {})
    assert drawings.HELD_OUT_STYLE not in STYLES and drawings.FOREIGN_STYLE not in STYLES
    assert HELD_OUT_FONT not in world().fonts
    assert world((drawings.HELD_OUT_STYLE,)).fonts == (HELD_OUT_FONT,)


@pytest.mark.parametrize("kind", ["one", "two", "many", "writing"])
def test_a_seed_gives_a_scene_and_an_image(here, kind):
    first, second = scene(here, kind, 3), scene(here, kind, 3)
    assert first == second and scene(here, kind, 4) != first
    assert draw(first, here.drawings).tobytes() == draw(second, here.drawings).tobytes()
    assert all(item.thing.shown for item in first.items)


def test_an_image_has_the_ground_that_the_scene_names(here):
    """In a corner, where nothing lies: the hue of a coloured ground, the lightness of a grey one."""
    for seed in range(60):
        seen = scene(here, "writing", seed)
        hue, saturation, value = draw(seen, here.drawings, 96).convert("HSV").getpixel((1, 1))
        expected_hue, expected_saturation, expected_value = GROUNDS[seen.ground]
        assert abs(saturation / 255 - expected_saturation) < 0.25 and abs(value / 255 - expected_value) < 0.27
        if expected_saturation:
            assert abs((hue * 360 / 255 - expected_hue + 180) % 360 - 180) < 10


def test_dyed_things_have_the_hue_of_their_dye_and_undyed_ones_none(here):
    for seed in range(40):
        item = (seen := scene(here, "one", seed)).items[0]
        pixel = draw(seen, here.drawings).getpixel((round(96 * item.x), round(96 * item.y)))
        hue, saturation, _ = PIL.Image.new("RGB", (1, 1), pixel).convert("HSV").getpixel((0, 0))
        if item.dye:
            turn = abs((hue * 360 / 255 - DYES[item.dye][0] + 180) % 360 - 180)
            assert saturation > 60 and turn < 20
        else:
            assert saturation == 0


def test_left_is_left_and_right_is_right(here):
    for seed in range(20):
        seen = scene(here, "two", seed)
        assert seen.left.x < 0.5 < seen.right.x
        answers = {e.question: e.answer for e in about(seen, np.random.default_rng(seed)) if e.ability == "left/right"}
        assert answers["What is on the left?"] == seen.left.thing.name
        assert answers["What is on the right?"] == seen.right.thing.name
        (asked,) = answers.keys() - {"What is on the left?", "What is on the right?"}
        named = {"left": seen.left, "right": seen.right}[answers[asked]].thing.name
        assert asked == f"On which side is the {named}?"


def test_second_turns_depend_on_the_first_answer(here):
    """The same second question has another answer where the first one asked for the other side."""
    for seed in range(30):
        seen = scene(here, "two", seed)
        found = [e for e in about(seen, np.random.default_rng(seed)) if e.follow_up is not None]
        assert {e.answer for e in found} == {seen.left.thing.name, seen.right.thing.name}
        for e in found:
            item = seen.left if e.answer == seen.left.thing.name else seen.right
            other = seen.right if item is seen.left else seen.left
            if e.follow_up.question == "And what is on the other side?":
                assert e.follow_up.answer == other.thing.name
            if e.follow_up.question == "What kind of thing is it?":
                assert e.follow_up.answer == item.thing.kind
            if e.follow_up.question == "What colour is it?":
                assert e.follow_up.answer == item.dye != ""


def test_counts_captions_notes_and_verses_tell_the_scene(here):
    for seed in range(20):
        seen, random = scene(here, "many", seed), np.random.default_rng(seed)
        count = ("no", "one", "two", "three", "four", "five", "six")[len(seen.items)]
        assert {e.answer for e in about(seen, random) if e.ability == "count"} == {count}
        for text in (caption(seen), notes(seen, random), verse(seen)):
            assert seen.ground in text and seen.items[0].dye in text
            assert seen.items[0].thing.name in text or plural(seen.items[0].thing.name) in text.lower()


def test_yes_and_no_and_first_and_second_come_about_as_often(here):
    random = np.random.default_rng(0)
    answers = [
        e.answer for _ in range(400) for e in about(here.scene(random, "one"), random) if "Is there" in e.question
    ]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6
    pairs = [about_pair(here, random) for _ in range(200)]
    for scenes, found in pairs:
        first, second = (scene.items[0].thing for scene in scenes)
        assert found[0].answer == ("yes" if first.kind == second.kind else "no")
        answers = {e.question: e.answer for e in found}
        assert answers["What is in the first picture?"] == first.name
        assert answers["What colour is the background of the second picture?"] == scenes[1].ground
        asked = [e for e in found if e.question.startswith("Which picture")]
        assert [(e.question.split()[-1], e.answer) for e in asked] == [
            (f"{first.name}?", "the first"), (f"{second.name}?", "the second")
        ]  # fmt: skip
    assert 0.4 < sum(found[0].answer == "yes" for _, found in pairs) / len(pairs) < 0.6


def test_pairs_are_found_where_few_things_share_a_kind(here):
    """Of the things held back, two are animals and no others are of one kind."""
    hidden = World(here.drawings, shown=False)
    for seed in range(20):
        _, found = about_pair(hidden, np.random.default_rng(seed))
        assert found[0].answer in ("yes", "no")


@pytest.mark.parametrize(
    ("name", "several"),
    [("dog", "dogs"), ("mouse", "mice"), ("bus", "buses"), ("cherries", "cherries"), ("strawberry", "strawberries"),
     ("key", "keys"), ("tomato", "tomatoes"), ("fish", "fish"), ("church", "churches")],
)  # fmt: skip
def test_plurals(name, several):
    assert plural(name) == several


def test_forms_are_met_by_the_right_answers_and_not_by_others(here):
    for seed in range(40):
        random = np.random.default_rng(seed)
        for e in about(here.scene(random), random):
            assert e.is_met_by(e.answer)
            assert not e.is_met_by("It is a dog") and not e.is_met_by("")


def test_text_for_the_language_model_has_captions_in_chats_alone(here):
    """What stage 2 is to teach, it has not read: no question stands in a chat."""
    texts = documents(here, 0)
    for _ in range(300):
        document = next(texts)
        whole = " ".join(given + learned for given, learned in document)
        if "Human:" in whole:
            assert whole.count("Human:") == 1 and len(document) == 1 and "?" not in whole
        assert document[-1][1]


def test_yes_stands_where_the_thing_is_in_the_notes_and_no_elsewhere(here):
    random, answers = np.random.default_rng(0), []
    for _ in range(100):
        (noted, _), *asked = checked(here, random)
        for question, answer in asked:
            name = re.fullmatch(r"Is there (?:an? )?(.+) in the picture\?", question)[1]
            answers.append(answer)
            if re.search(rf"\b{name}\b", re.sub(r"(word|number) \w+", "", noted)):
                assert answer == "yes"
            else:
                assert answer == "no"
    assert 0.35 < answers.count("yes") / len(answers) < 0.6


def test_questions_on_pairs_are_answered_by_their_notes(here):
    random, asked = np.random.default_rng(0), set()
    for _ in range(60):
        for question, answer in placed(here, random):
            if not answer:
                sides = dict(part.split(" ", 1) for part in question[:-1].split(", ") if "background" not in part)
                continue
            name = re.search(r"(?:the|there an?|there) (\w+(?: \w+)*?)(?: on the \w+| in the picture)?\?", question)[1]
            side = next((side for side, what in sides.items() if f" {what}".endswith(f" {name}")), None)
            if question.startswith("On which side"):
                assert answer == side
            elif question.startswith("What colour"):
                assert sides[side] == f"{answer} {name}"
            elif question.startswith("Is there"):
                assert answer == ("yes" if side else "no")
            else:
                assert answer == ("yes" if question.endswith(f"on the {side}?") else "no")
            asked.add((question[:8], answer))
    assert {("Is there", "no"), ("Is there", "yes"), ("On which", "left"), ("On which", "right")} < asked


def test_keywords_are_told_again_in_another_order(here):
    random, turned = np.random.default_rng(0), 0
    for _ in range(20):
        document = retold(here, random)
        tellings = [given or learned for given, learned in document]
        for first, *again in (tellings[:3], tellings[3:]):
            for telling in again:
                assert sorted(telling[:-1].split(", ")) == sorted(first[:-1].split(", "))
                turned += telling != first
        assert [bool(learned) for _, learned in document] == [False, True, True] * 2
    assert turned > 20


def test_dialogues_ask_every_ability_once(here):
    for seed in range(30):
        random = np.random.default_rng(seed)
        abilities = [e.ability for e in dialogue(here.scene(random), random)]
        assert len(abilities) == len(set(abilities)) >= 3


def test_sums_of_text_only_questions_are_right():
    for seed in range(50):
        for e in text_only(np.random.default_rng(seed)):
            if found := re.fullmatch(r"What is (\d) plus (\d)\?", e.question):
                assert int(e.answer) == int(found[1]) + int(found[2])


def test_words_of_an_image_and_its_patches_tell_the_scene(here):
    """Close up, the patches lie where their places say, and a thing's patches say the thing and its colour."""
    for lesson in LESSONS:
        seen = Seen(here, lesson, seed=(1,))
        for number, row in enumerate(itertools.islice(seen, 20)):
            scene = dataclasses.replace(here, dyed=lesson.dyed).scene(np.random.default_rng([1, number]), lesson.kind)
            asked = dict(zip(OF_IMAGE, row["of_image"], strict=True))
            assert OF_IMAGE["ground"][asked["ground"]] == scene.ground
            assert OF_IMAGE["scene"][asked["scene"]] == scene.kind
            signs = [SIGNS[asked[name]] for name in OF_IMAGE if name.startswith("sign") and asked[name] != IGNORED]
            assert "".join(signs) == scene.writing
            if scene.items and scene.kind in ("one", "many", "close"):
                assert OF_IMAGE["name"][asked["name"]] == scene.items[0].thing.name
                assert OF_IMAGE["count"][asked["count"]] == len(scene.items)
            else:
                assert asked["name"] == asked["count"] == IGNORED
            of_patches = [
                {name: OF_PATCH[name][said] for name, said in zip(OF_PATCH, patch, strict=True) if said != IGNORED}
                for patch in row["of_patches"]
            ]
            things_said = {patch["name"] for patch in of_patches if "name" in patch}
            assert things_said == {item.thing.name for item in scene.items}
            colours_said = {patch["colour"] for patch in of_patches if "colour" in patch}
            assert colours_said == {item.dye for item in scene.items}
            assert {patch["sign"] for patch in of_patches if "sign" in patch} <= set(scene.writing)
            if scene.kind == "two":
                said = {patch["side"]: patch["name"] for patch in of_patches if "side" in patch}
                assert said == {"left": scene.left.thing.name, "right": scene.right.thing.name}
                assert {side: OF_IMAGE[side][asked[side]] for side in said} == said
            if lesson.dyed == 0:
                assert colours_said <= {""}
            rows, columns = np.divmod(row["places"].reshape(lesson.edge // PATCH, -1) - 1, SIZE // PATCH)
            assert np.ptp(rows) == np.ptp(columns) == lesson.edge // PATCH - 1


def test_signs_are_told_where_their_ink_is():
    """Of a word in black on white, the columns of ink of every letter lie where `sign_at` names it."""
    shown = Scene("writing", "white", writing="spoon", shade=(0.0, 1.0, 1.0))
    levels = np.asarray(draw(shown, None).convert("L"))
    inked = [x for x in range(SIZE) if levels[:, x].min() < 100]
    told = [shown.sign_at((x + 0.5) / SIZE, 0.5) for x in inked]
    assert set(told) == set(range(5))
    assert told == sorted(told)
    letters = [x for x in range(1, SIZE) if x in inked and x - 1 not in inked]  # the first column of each letter
    assert [shown.sign_at((x + 0.5) / SIZE, 0.5) for x in letters] == [0, 1, 2, 3, 4]
    assert shown.sign_at(0.5, 0.1) is None
    assert shown.sign_at(0.01, 0.5) is None


def test_the_last_lesson_tells_most_letters_and_their_order(here):
    place, sign = (list(OF_PATCH).index(name) for name in ("place", "sign"))
    told = asked = 0
    for seed in range(40):
        words = here.scene(np.random.default_rng(seed), "writing")
        middles = [(number + 0.5) / 6 for number in range(6)]
        patches = [numbers(OF_PATCH, words_of_patch(words, x, y, at)) for y in middles for at, x in enumerate(middles)]
        found = {patch[place]: SIGNS[patch[sign]] for patch in patches if patch[place] != IGNORED}
        assert all(words.writing[number] == letter for number, letter in found.items())
        told, asked = told + len(found), asked + len(words.writing)
    assert told > 0.8 * asked


CLIPS = range(60)


def a_clip(here, kind, seed):
    return clip(here, np.random.default_rng(seed), kind)


def test_the_way_of_a_thing_is_in_the_order_of_its_places(here):
    ways = set()
    for seed in CLIPS:
        shown = a_clip(here, "move", seed)
        (first,), *_, (last,) = (moment.items for moment in shown.moments)
        dx, dy = last.x - first.x, last.y - first.y
        assert WAYS[shown.event] == (round(np.sign(dx)), round(np.sign(dy)))
        assert abs(dx) + abs(dy) > 0.29
        ways.add(shown.event)
    assert ways == set(WAYS)


def test_things_come_go_and_turn_once(here):
    for seed in CLIPS:
        shown = a_clip(here, "appear", seed)
        seen = [bool(moment.items) for moment in shown.moments]
        assert seen == sorted(seen, reverse=shown.event == "disappear")
        assert 2 <= sum(seen) <= MOMENTS - 2
        shown = a_clip(here, "change", seed)
        dyes = [moment.items[0].dye for moment in shown.moments]
        assert len(list(itertools.groupby(dyes))) == 2
        assert (shown.item.dye, shown.event) == (dyes[0], dyes[-1])
        assert shown.ground not in dyes


def test_jumps_are_counted_by_their_order_alone(here):
    """Whatever their number, half of the moments are up."""
    counts = set()
    for seed in CLIPS:
        shown = a_clip(here, "jump", seed)
        ups = [moment.items[0].y < 0.5 for moment in shown.moments]
        assert sum(ups) == MOMENTS // 2
        assert shown.event == JUMPS[sum(is_up for is_up, _ in itertools.groupby(ups)) - 1]
        counts.add(shown.event)
    assert counts == set(JUMPS)


def test_what_is_said_of_a_clip_is_what_happens(here):
    for seed in CLIPS:
        shown = clip(here, np.random.default_rng(seed))
        said = clip_caption(shown)
        assert shown.item.thing.name in said
        assert shown.event in said
        assert said.endswith(f"on {article(shown.ground)} background")
        first, *_ = about_clip(shown, np.random.default_rng(seed))
        expected = shown.item.dye if "at first" in first.question else shown.event
        assert first.answer == (f"it {expected}s" if shown.kind == "appear" else expected)


def test_a_file_of_a_clip_gives_its_moments_back(here):
    frames = a_clip(here, "jump", 0).frames(here.drawings)
    read, _ = read_frames(mp4(frames), num_frames=MOMENTS)
    for frame, original in zip(read, frames, strict=True):
        assert np.abs(np.asarray(frame, int) - np.asarray(original, int)).mean() < 12


def test_the_predictor_of_images_sees_what_the_vision_model_sees(here):
    """It puts a CLIP vision model together anew, so that a close-up can lie anywhere; whole, both are the same."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE,
        patch_size=PATCH,
    )  # fmt: skip
    processor = MplugOwlImageProcessor(size={"height": SIZE, "width": SIZE})
    predictor = ImageWords(CLIPVisionModel(config), processor).eval()
    row = next(iter(Seen(here, LESSONS[-1], seed=(3,))))
    image, places = torch.from_numpy(row["image"])[None], torch.from_numpy(row["places"])[None]
    patches, summary = predictor.see(image, places)
    seen = predictor.vision((image.permute(0, 3, 1, 2) - predictor.mean) / predictor.std)
    torch.testing.assert_close(patches, seen.last_hidden_state[:, 1:])
    torch.testing.assert_close(summary[:, :32], seen.pooler_output)


def test_patches_of_a_clip_tell_what_happens_where_the_thing_is(here):
    """In every moment that shows it, and the images beside the clips tell no event."""
    event = list(OF_PATCH_OVER_TIME).index("event")
    for number, row in enumerate(itertools.islice(Watched(here, CLIP_LESSONS[0], seed=(1,)), 40)):
        random = np.random.default_rng([1, number])
        told = [set(patches[:, event]) - {IGNORED} for patches in row["of_patches"]]
        assert row["is_clip"] == (number % 4 > 0)
        if not row["is_clip"]:
            assert told == [set()] * MOMENTS
            continue
        shown = clip(here, random)
        said = OF_PATCH_OVER_TIME["event"].index(TURN if shown.kind == "change" else shown.event)
        assert told == [{said} if moment.items else set() for moment in shown.moments]
        for pixels, frame in zip(row["images"], shown.frames(here.drawings), strict=True):
            assert np.array_equal(pixels, np.array(frame))


def test_patches_of_a_clip_tell_where_the_thing_is_was_and_will_be(here):
    names = list(OF_PATCH_OVER_TIME)
    for number, row in enumerate(itertools.islice(Watched(here, CLIP_LESSONS[0], seed=(2,)), 40)):
        if not row["is_clip"]:
            continue
        shown = clip(here, np.random.default_rng([2, number]))
        for moment, patches in enumerate(row["of_patches"]):
            for when, offset in (("before", -1), ("now", 0), ("after", 1)):
                other = moment + offset
                items = shown.moments[other].items if 0 <= other < MOMENTS else ()
                columns, rows = (patches[:, names.index(f"{axis} {when}")] for axis in ("column", "row"))
                assert set(columns) == ({int(6 * items[0].x)} if items else {IGNORED})
                assert set(rows) == ({int(6 * items[0].y)} if items else {IGNORED})


def test_the_predictor_of_clips_keeps_images_and_their_words_together(here):
    """What it says of a clip depends on the order of its moments; images beside it change nothing."""
    owl = AutoModelForImageTextToText.from_pretrained(MINIATURE, dtype=torch.float32)
    processor = MplugOwlImageProcessor.from_pretrained(MINIATURE)
    predictor = ClipWords(owl.model.vision_model, processor, OF_PATCH_OVER_TIME).eval()
    batch = default_collate(list(itertools.islice(Watched(here, CLIP_LESSONS[0], seed=(1,)), 4)))
    with torch.no_grad():
        together = predictor(**batch)["logits"][-1].unflatten(0, (4, MOMENTS, -1))
        swapped = {name: value[[1, 0, 2, 3]] for name, value in batch.items()}
        of_swapped = predictor(**swapped)
        torch.testing.assert_close(of_swapped["logits"][-1].unflatten(0, (4, MOMENTS, -1)), together)
        torch.testing.assert_close(of_swapped["loss"], predictor(**batch)["loss"])
        alone = predictor.vision(predictor.pixels(batch["images"][1:2])).last_hidden_state[0, :, 1:]
        torch.testing.assert_close(predictor.of_patch[-1](alone), together[0], rtol=1e-4, atol=1e-4)
        reverse = {name: value.flip(1) if value.ndim > 1 else value for name, value in batch.items()}
        of_reverse = predictor(**reverse)["logits"][-1].unflatten(0, (4, MOMENTS, -1)).flip(1)
    torch.testing.assert_close(of_reverse[3:], together[3:], rtol=1e-4, atol=1e-4)  # in order: clips, then images
    assert all((of_reverse[:3] - together[:3]).abs().amax((1, 2, 3)) > 0.1)


def test_every_worker_has_clips_images_and_texts_of_its_own(here):
    lesson = CLIP_LESSONS[0]
    watched = DataLoader(Watched(here, lesson, seed=(1,)), batch_size=lesson.images, num_workers=2)
    first, second = itertools.islice(watched, 2)
    assert first["is_clip"].tolist() == second["is_clip"].tolist() == [False, True, True, True]
    assert all((a != b).any() for a, b in zip(first["images"], second["images"], strict=True))
    texts = Text(World(here.drawings), AutoTokenizer.from_pretrained(MINIATURE), (1, 0))
    first, second = itertools.islice(DataLoader(texts, batch_size=2, num_workers=2, collate_fn=list), 2)
    assert first != second


def test_drawings_that_lie_there_need_no_package(tmp_path, monkeypatch):
    package = packages.PACKAGES["noto"]
    pixels = np.full((8, 8, 4), 200, np.uint8)
    np.savez(tmp_path / f"{Path(package.name).stem}-8.npz", **{things()[0].name: pixels})
    monkeypatch.setitem(packages.PACKAGES, "noto", dataclasses.replace(package, url=f"file:///nowhere/{package.name}"))
    found = load("noto", 8, tmp_path)
    assert list(found) == [things()[0].name]
    assert (found[things()[0].name] == pixels).all()


def test_recipes_show_videos_to_models_that_see_them_alone():
    """An Owl that is built from a CLIP model and a language model sees images; the miniature sees videos, too."""
    groups = {
        name: set(parse_recipe(RECIPES / f"{name}.yaml", ["--bf16", "false"])[0].data)
        for name in ("pretrain", "instruct", "smollm2")
    }
    assert groups == {
        "pretrain": {"captions", "clips"}, "instruct": {"multimodal", "clips", "text"}, "smollm2": {"captions"}
    }  # fmt: skip

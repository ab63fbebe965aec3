"""Groups come in their ratio, every sample once an epoch with its own image; a stream goes on where it stopped."""

import collections
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_owl.training import BadSampleError, ConversationCollator
from transformers_owl.training import mixture as module
from transformers_owl.training.augmentation import Augmentation
from transformers_owl.training.mixture import Draw, Group, Mixture, MixtureLoader, Policy, interleave


def groups(**sources):
    return {
        name: Group.from_dict({"weight": weight, "sources": list(entries)})
        for name, (weight, *entries) in sources.items()
    }


def numbers(batch, processor) -> list[int]:
    """The samples of a batch, by their captions; their images must be their own."""
    found = []
    levels = iter(batch.get("pixel_levels", ()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        caption = processor.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True)
        number = int(caption.removeprefix("grey "))
        if (ids == processor.image_token_id).any():
            assert (next(levels) == number).all()
        found.append(number)
    assert next(levels, None) is None
    return found


@given(st.dictionaries(st.text("abcd", min_size=1, max_size=2), st.integers(1, 60), min_size=1, max_size=4))
def test_a_pattern_holds_the_ratio_in_every_stretch(weights):
    pattern = interleave(weights)
    total = sum(weights.values())
    for name, weight in weights.items():
        assert pattern.count(name) * total == weight * len(pattern)
        for length in range(len(pattern) + 1):
            assert abs(pattern[:length].count(name) - length * weight / total) < max(1, len(weights) - 1)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "world_size", "workers"),
    [(4, 1, 1, 1), (1, 4, 1, 2), (1, 1, 4, 1), (2, 3, 2, 2), (1, 2, 2, 3), (3, 4, 1, 2)],
)
def test_every_step_has_the_ratio_and_every_sample_comes_as_often(
    files, llama_processor, monkeypatch, batch_size, accumulation, world_size, workers
):
    """128 : 128 and other ratios, whatever the slots are, with groups of unequal sizes."""
    data = groups(text=(128, files.text(range(7))), images=(128, files.captions(range(100, 105))))
    rows = batch_size * accumulation * world_size
    slots = {}
    for rank, worker in itertools.product(range(world_size), range(workers)):
        mixture = Mixture(
            data, ConversationCollator(llama_processor), batch_size, accumulation, rank=rank, world_size=world_size
        )
        info = None if workers == 1 else SimpleNamespace(id=worker, num_workers=workers)
        monkeypatch.setattr(module, "get_worker_info", lambda info=info: info)
        stream = iter(mixture)
        slots[rank, worker] = itertools.chain([next(stream)], stream)  # starts it, while it is this worker's turn
    seen = collections.Counter()
    steps = 70 * workers
    for step in range(steps):
        in_step = collections.Counter()
        for part, rank in itertools.product(range(accumulation), range(world_size)):
            batch = next(slots[rank, (step * accumulation + part) % workers])
            for number in numbers(batch, llama_processor):
                in_step["images" if number >= 100 else "text"] += 1
                seen[number] += 1
        assert in_step["text"] == in_step["images"] == rows / 2
    for first, size in ((0, 7), (100, 5)):
        counts = [seen[first + number] for number in range(size)]
        assert sum(counts) == steps * rows / 2
        assert max(counts) - min(counts) <= 1 + world_size * workers


class NamesAlone:
    """A collator that shows which groups the rows of a batch are of."""

    processor = None

    def encode(self, messages):
        return {"input_ids": [0], "labels": torch.zeros(1), "name": messages}

    def pad(self, rows):
        return {"names": [row["name"] for row in rows]}


class Endless:
    """A group whose samples are its name."""

    start = [0]

    def __init__(self, name):
        self.name = name

    def draws(self, slot, slots, seed, cursor):
        for turn in itertools.count(cursor[0]):
            yield Draw([turn + 1], 0, lambda: {"messages": self.name, "source": ""})


@pytest.mark.parametrize("weights", [(1, 1), (2, 1), (1, 3), (128, 128), (5, 3), (1, 1, 1), (1, 2, 4), (7, 1)])
def test_the_ratio_is_exact_in_the_long_run_for_every_slot(monkeypatch, weights):
    """Also for a step of one row, and in every step within one row: the iterator itself, over a grid of settings."""
    monkeypatch.setattr(module, "open_visuals", lambda sample, collator: sample["messages"])
    shares = [weight // math.gcd(*weights) for weight in weights]
    data = {str(number): Group(weight, Endless(str(number))) for number, weight in enumerate(weights)}
    for batch_size, accumulation, world_size, workers in itertools.product((1, 2, 3), (1, 2, 3), (1, 2), (1, 2, 3)):
        rows = batch_size * accumulation * world_size
        steps = math.lcm(sum(shares), workers) * sum(shares)  # a round divides the first factor
        slots = collections.defaultdict(collections.Counter)
        in_step = collections.defaultdict(collections.Counter)
        for rank, worker in itertools.product(range(world_size), range(workers)):
            mixture = Mixture(data, NamesAlone(), batch_size, accumulation, rank=rank, world_size=world_size)
            info = SimpleNamespace(id=worker, num_workers=workers)
            monkeypatch.setattr(module, "get_worker_info", lambda info=info: info)
            for number, batch in zip(range(worker, steps * accumulation, workers), mixture, strict=False):
                slots[rank, worker].update(batch["names"])
                in_step[number // accumulation].update(batch["names"])
        setting = (batch_size, accumulation, world_size, workers)
        for drawn in slots.values():
            assert {name: drawn[name] * sum(shares) for name in data} == {
                name: share * drawn.total() for name, share in zip(data, shares, strict=True)
            }, setting
        for drawn in in_step.values():
            for name, share in zip(data, shares, strict=True):
                assert abs(drawn[name] - rows * share / sum(shares)) < max(1, len(weights) - 1), setting
        assert sum((drawn for drawn in slots.values()), collections.Counter()).total() == steps * rows


def test_one_epoch_counts_every_row_once(files, llama_processor):
    data = groups(all=(1, files.captions(range(10)), files.text(range(10, 17), "a.jsonl")))
    mixture = Mixture(data, ConversationCollator(llama_processor), batch_size=1)
    assert mixture.steps(2) == 34
    stream = iter(mixture)
    first, second = ([numbers(next(stream), llama_processor)[0] for _ in range(17)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(17))
    assert first != second


@pytest.mark.parametrize("shards", [[12], [5, 7], [4, 1, 9]])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_shards_are_split_once(files, llama_processor, monkeypatch, shards, slots):
    """Whether slots divide the shards or not; blocks are smaller than shards here."""
    monkeypatch.setattr(module, "BLOCK", 4)
    ends = list(itertools.accumulate(shards, initial=0))
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        files.shard(f"{number:05d}.tar", range(start, end))
    path = str(files.folder / f"{{00000..{len(shards) - 1:05d}}}.tar")
    data = groups(web=(1, {"format": "webdataset", "path": path}))["web"].data
    seen = collections.Counter()
    for slot in range(slots):
        for draw in data.draws(slot, slots, seed=0, cursor=[0, 0, 0]):
            if draw.epoch == 1:
                break
            seen[draw.load()["messages"][-1]["content"]] += 1
    assert seen == {f"grey {number}": 1 for number in range(ends[-1])}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_goes_on_where_it_stopped(files, llama_processor, monkeypatch, workers):
    """From every batch on, also with crops, shards and left-out samples."""
    monkeypatch.setattr(module, "BLOCK", 4)
    files.shard("0.tar", range(5))
    files.shard("1.tar", range(5, 12))
    bad = files.jsonl("captions", [{"file_name": "missing.png", "text": "x"}] * 3, "bad.jsonl")
    data = groups(
        web=(2, {"format": "webdataset", "path": str(files.folder / "{0..1}.tar")}),
        rows=(1, files.captions(range(100, 107)), bad),
    )
    collator = ConversationCollator(llama_processor)

    def make():
        return Mixture(data, collator, 3, 2, seed=5, augmentation=Augmentation(), policy=Policy("skip", 0.9))

    whole = list(itertools.islice(MixtureLoader(make(), workers), 13))
    for start in (1, 4, 6, 9):
        mixture = make()
        mixture.first = start
        mixture.cursors = {batch["report"]["worker"]: batch["report"]["cursors"] for batch in whole[:start]}
        for expected, batch in zip(whole[start:], MixtureLoader(mixture, workers), strict=False):
            assert batch["report"] == expected["report"]
            for name in ("input_ids", "labels", "pixel_levels"):
                assert torch.equal(batch[name], expected[name])


def test_crops_differ_between_epochs_and_samples_and_not_between_runs(files, llama_processor):
    image = files.image(0).resize((256, 192))  # so many places for a crop that no two draws meet
    image.putdata([(x, y, 0) for y in range(192) for x in range(256)])
    image.save(files.folder / "gradient.png")
    data = groups(all=(1, files.jsonl("captions", [{"file_name": "gradient.png", "text": "x"}] * 2)))

    def pixels(seed):
        stream = iter(Mixture(data, ConversationCollator(llama_processor), 1, seed=seed, augmentation=Augmentation()))
        return [next(stream)["pixel_levels"] for _ in range(4)]

    first = pixels(0)
    assert all(torch.equal(a, b) for a, b in zip(first, pixels(0), strict=True))
    for a, b in itertools.combinations(first + pixels(1)[:2], 2):
        assert not torch.equal(a, b)


@settings(max_examples=200)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 10**6))
def test_boxes_lie_in_the_image_and_have_their_share(width, height, seed):
    import numpy as np

    left, top, right, bottom = Augmentation((0.5, 1.0)).box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if width >= 30 and height >= 30 and 3 / 4 <= width / height <= 4 / 3:
        assert (right - left) * (bottom - top) >= 0.45 * width * height
        assert 0.7 <= (right - left) / (bottom - top) <= 1.43


def test_flip_is_a_choice():
    import numpy as np

    image = DataImage()
    assert not any(
        Augmentation((1, 1))([image], (8, 8), 3, np.random.default_rng(seed)) != [image] for seed in range(20)
    )
    flipped = [
        Augmentation((1, 1), flip=True)([image], (8, 8), 3, np.random.default_rng(seed))[0].getpixel((0, 0))
        for seed in range(40)
    ]
    assert 10 <= sum(pixel == (255, 0, 0) for pixel in flipped) <= 30


def DataImage():  # noqa: N802
    import PIL.Image

    image = PIL.Image.new("RGB", (8, 8), "blue")
    image.putpixel((7, 0), (255, 0, 0))
    return image


BAD = {
    "missing image": ("captions", {"file_name": "gone.png", "text": "x"}),
    "unreadable image": ("captions", {"file_name": "noise.png", "text": "x"}),
    "empty text": ("captions", {"file_name": "200.png", "text": "  "}),
    "malformed row": ("captions", {"file_name": "200.png"}),
}


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_data_stop_with_file_and_row(files, llama_processor, reason, workers):
    files.captions([200])
    (files.folder / "noise.png").write_bytes(b"noise")
    data = groups(all=(1, files.jsonl(BAD[reason][0], [BAD[reason][1]])))
    loader = MixtureLoader(Mixture(data, ConversationCollator(llama_processor), 1), workers)
    with pytest.raises(BadSampleError, match=rf"data\.jsonl, row 1: {reason}"):
        next(iter(loader))


def test_skipped_samples_are_counted_by_reason_and_listed(files, llama_processor):
    good = files.captions(range(200, 230))
    (files.folder / "noise.png").write_bytes(b"noise")
    bad = files.jsonl("captions", [row for _, row in BAD.values()], "bad.jsonl")
    long = files.jsonl("alpaca", [{"instruction": "word " * 300, "output": "x"}], "long.jsonl")
    mixture = Mixture(
        groups(all=(1, good, bad, long)), ConversationCollator(llama_processor, 200), 5, policy=Policy("skip", 0.2)
    )
    batches = list(itertools.islice(iter(mixture), 6))
    assert sorted(number for batch in batches for number in numbers(batch, llama_processor)) == list(range(200, 230))
    listed = [
        entry
        for batch in itertools.chain(batches, itertools.islice(iter(mixture), 7))
        for entry in batch["report"]["skipped"]
    ]
    assert {entry["reason"] for entry in listed} == {*BAD, "no answer left"}
    assert {entry["source"] for entry in listed} == {
        *(f"{files.folder}/bad.jsonl, row {number}" for number in (1, 2, 3, 4)), f"{files.folder}/long.jsonl, row 1"
    }  # fmt: skip


def test_too_many_bad_samples_stop_a_run(files, llama_processor):
    """Also where all are bad: no endless loop."""
    data = groups(all=(1, files.jsonl("captions", [BAD["missing image"][1]] * 3)))
    mixture = Mixture(data, ConversationCollator(llama_processor), 1, policy=Policy("skip"))
    with pytest.raises(
        ValueError, match=r"6 of 6 samples are unusable, which is more than max_skipped=0\.05 allows\. .*gone"
    ):
        next(iter(MixtureLoader(mixture)))


def test_samples_without_an_answer_left_are_left_out_and_counted(files, llama_processor):
    long = {"instruction": "word " * 300, "output": "grey 1"}
    data = groups(all=(1, files.jsonl("alpaca", [long, {"instruction": "a", "output": "grey 2"}])))
    mixture = Mixture(data, ConversationCollator(llama_processor, 100), 4)
    batch = next(iter(MixtureLoader(mixture)))
    assert numbers(batch, llama_processor) == [2, 2, 2, 2]
    assert {entry["reason"] for entry in batch["report"]["skipped"]} == {"no answer left"}


def shards_of(files, count: int, broken: list[int], gone: bool) -> dict:
    """Shards of five samples; broken ones are cut off after two that can be read, or missing."""
    for number in range(count):
        path = Path(files.shard(f"{number:05d}.tar", range(number * 5, number * 5 + 5)))
        if number in broken:
            path.write_bytes(path.read_bytes()[: 3 * 3 * 1024 + 512])
            if gone:
                path.unlink()
    return groups(web=(1, {"format": "webdataset", "path": str(files.folder / f"{{00000..{count - 1:05d}}}.tar")}))


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
@pytest.mark.parametrize("broken", [[], [1], [0, 3]])
def test_a_broken_shard_is_a_shard_and_no_sample(files, llama_processor, broken, slots, gone):
    """
    Whether slots share shards or divide them: what can be read comes once an epoch, each broken shard is listed once in
    it, and none counts among samples, of which not one may be left out here.
    """
    data = shards_of(files, 4, broken, gone)
    expected = [n for n in range(20) if n // 5 not in broken or (not gone and n % 5 < 2)]
    found, listed = [], []
    for rank in range(slots):
        mixture = Mixture(
            data, ConversationCollator(llama_processor), 1, policy=Policy("skip", 0.99), rank=rank, world_size=slots
        )
        mixture.policy.check = lambda seen, skipped, last: pytest.fail(f"{last} counts as a sample")
        stream = iter(mixture)
        while True:
            batch = next(stream)
            epoch = batch["report"]["cursors"]["web"][0]
            if epoch == 0:
                found += numbers(batch, llama_processor)
            listed += batch["report"]["skipped"]
            if epoch >= 1:
                break
    first = [entry["source"] for entry in listed]
    assert sorted(found) == expected
    for number in broken:
        assert 1 <= first.count(str(files.folder / f"{number:05d}.tar")) <= 2  # the second epoch has begun
    assert {entry["reason"] for entry in listed} <= {"broken shard"}
    assert len(set(first)) == len(broken)


@pytest.mark.parametrize(
    ("count", "broken", "share", "stops"),
    [
        (1, [0], 0.9, "1 of 1"),  # no endless loop
        (4, [1], 0.05, "1 of"),
        (4, [1], 0.25, None),
        (4, [1, 2], 0.25, "2 of"),
        (22, [3], 0.05, None),
        (22, [3, 9], 0.05, "2 of"),
        (22, [3], 0, "1 of"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_share_of_broken_shards_has_a_limit(files, llama_processor, count, broken, share, stops, workers):
    mixture = Mixture(
        shards_of(files, count, broken, True), ConversationCollator(llama_processor), 1, policy=Policy("skip", share),
        world_size=workers,
    )  # fmt: skip
    stream = MixtureLoader(mixture)
    if stops is None:
        list(itertools.islice(stream, count * 5 // workers))
        return
    with pytest.raises(ValueError, match=rf"{stops}.* tar shards are missing or truncated, .* max_skipped={share}"):
        list(itertools.islice(stream, count * 10))


@pytest.mark.parametrize("end", [0, 5120, 5300, 6000, 18432])
def test_broken_shards_are_named(files, llama_processor, end):
    """Cut off in a header, in a member, and between two of them."""
    files.shard("0.tar", range(6))
    whole = (files.folder / "0.tar").read_bytes()
    (files.folder / "0.tar").write_bytes(whole[:end])
    data = groups(web=(1, {"format": "webdataset", "path": str(files.folder / "0.tar")}))
    with pytest.raises(BadSampleError, match=r"0\.tar: broken shard"):
        list(itertools.islice(MixtureLoader(Mixture(data, ConversationCollator(llama_processor), 1)), 7))
    files.shard("1.tar", range(6, 12))
    data = groups(web=(1, {"format": "webdataset", "path": str(files.folder / "{0..1}.tar")}))
    loader = MixtureLoader(Mixture(data, ConversationCollator(llama_processor), 1, policy=Policy("skip", 0.9)))
    batches = list(itertools.islice(loader, 13))
    assert {number for batch in batches for number in numbers(batch, llama_processor)} <= set(range(12))
    assert {entry["reason"] for batch in batches for entry in batch["report"]["skipped"]} == {"broken shard"}


def test_too_few_samples_for_the_slots_are_an_error(files):
    files.shard("0.tar", [1])
    data = groups(web=(1, {"format": "webdataset", "path": str(files.folder / "0.tar")}))["web"].data
    with pytest.raises(ValueError, match=r"no sample for worker 2 of 2"):
        next(data.draws(1, 2, seed=0, cursor=[0, 0, 0]))


def test_epochs_of_shards_need_a_number_of_steps(files, llama_processor):
    files.shard("0.tar", [1])
    data = groups(web=(1, {"format": "webdataset", "path": str(files.folder / "0.tar")}))
    with pytest.raises(ValueError, match=r"tar shards of 'web' is unknown: set `max_steps`"):
        Mixture(data, ConversationCollator(llama_processor), 1).steps(1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"wieght": 1, "sources": []}, "Unknown setting of a group of data: 'wieght'. Did you mean 'weight'"),
        ({"weight": 0, "sources": [{}]}, r"needs a `weight` \(integer from 1\)"),
        ({"sources": [{"format": "alpaca"}]}, "must have `format` and `path`"),
        (
            {"sources": [{"format": "alpaca", "paht": "x"}]},
            "Unknown setting of a source of data: 'paht'. Did you mean 'path'",
        ),
        ({"sources": [{"format": "alpaca", "path": "x", "prompt": "y"}]}, "`prompt` is only for captions"),
        (
            {"sources": [{"format": "webdataset", "path": "x"}, {"format": "alpaca", "path": "x"}]},
            "cannot share a group",
        ),
    ],
)
def test_wrong_groups_are_named(entry, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Group.from_dict(entry)

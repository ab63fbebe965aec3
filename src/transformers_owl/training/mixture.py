"""The stream of training batches: groups of data in their ratio, split over ranks and workers, with exact resuming.

A *slot* is one worker of one rank. Micro-batch n of a rank comes from worker n % workers, so the slot of each row of
each optimizer step follows from the numbers alone. Each batch carries a report: the cursor of its slot, and the
skipped samples. The cursor of a run is the report of its last batch.
"""

import glob
import itertools
import math
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..mplug_owl.configuration_mplug_owl import check_names
from ..mplug_owl.processing_mplug_owl import read_chats, visuals_of
from .augmentation import Augmentation
from .collator import IGNORED, ConversationCollator
from .readers import Messages
from .sources import BadSampleError, BrokenShardError, Rows, Shards, Source


KEPT = ("type", "same_line")  # of a part whose image or video has been opened
BLOCK = 1000  # samples of a shard that are shuffled together
FEW_SAMPLES, FEW_SHARDS = 100, 20  # a share of fewer says little


class NoAnswerLeftError(BadSampleError):
    """A sample without an answer that begins within `max_length`."""


class Draw(NamedTuple):
    """
    A sample that `load` reads, its epoch, and the cursor of the slot after it. The end of a broken shard that several
    slots read goes to all of them, and is reported by one.
    """

    cursor: list[int]
    epoch: int
    load: Callable[[], dict[str, Any]]
    is_reported: bool = True


class RowGroup:
    """Files of rows, shuffled together in each epoch; every row comes once per epoch, in one of the slots."""

    start = [0]

    def __init__(self, files: list[Rows]):
        self.files = files
        self.ends = list(itertools.accumulate(len(file) for file in files))
        if self.ends[-1] == 0:
            raise ValueError(f"{', '.join(file.source.path for file in files)} has no rows.")

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: int) -> dict[str, Any]:
        file = int(np.searchsorted(self.ends, number, side="right"))
        return self.files[file][number - (self.ends[file - 1] if file else 0)]

    def paths(self) -> list[str]:
        """The files of rows; for a dataset folder all files in it, for a pattern those that match."""
        names = [file.source.path for file in self.files]
        paths = [Path(found) for name in names for found in sorted(glob.glob(name)) or [name]]
        return [str(found) for path in paths for found in (sorted(path.rglob("*")) if path.is_dir() else [path])]

    def draws(self, slot: int, slots: int, seed: int, cursor: list[int]) -> Iterator[Draw]:
        epoch, order = -1, np.empty(0, dtype=int)
        for turn in itertools.count(cursor[0]):
            drawn, place = divmod(turn * slots + slot, len(self))
            if drawn != epoch:
                epoch, order = drawn, np.random.default_rng([seed, drawn]).permutation(len(self))
            number = int(order[place])
            yield Draw([turn + 1], epoch, partial(self.__getitem__, number))


class ShardGroup:
    """
    Tar shards, shuffled in each epoch, and their samples shuffled in blocks of 1,000. If the number of slots divides
    the number of shards, each shard is read by one slot; otherwise every slot reads all shards and keeps its share.
    """

    start = [0, 0, 0]

    def __init__(self, sources: list[Shards]):
        self.shards = [(source, shard) for source in sources for shard in source.shards]

    def paths(self) -> list[str]:
        return [shard for _, shard in self.shards]

    def draws(self, slot: int, slots: int, seed: int, cursor: list[int]) -> Iterator[Draw]:
        epoch, first, done = cursor
        is_shared = len(self.shards) % slots != 0
        share = (slot, slots) if is_shared else (0, 1)
        while True:
            order = np.random.default_rng([seed, epoch]).permutation(len(self.shards))
            mine = order if is_shared else order[slot::slots]
            is_empty = first == done == 0
            for index in range(first, len(mine)):
                for draw in self._shard(int(mine[index]), share, seed, [epoch, index, done]):
                    is_empty = False
                    yield draw
                done = 0
            if is_empty:
                raise ValueError(f"The shards have no sample for worker {slot + 1} of {slots}: use fewer workers.")
            epoch, first = epoch + 1, 0

    def _shard(self, number: int, share: tuple[int, int], seed: int, cursor: list[int]) -> Iterator[Draw]:
        """The rest of a shard from the cursor on, block by block."""
        epoch, index, done = cursor
        source, shard = self.shards[number]
        files = _share(source.read(shard), *share)
        for first in itertools.count(0, BLOCK):
            block = list(itertools.islice(files, BLOCK))
            order = np.random.default_rng([seed, epoch, number, first]).permutation(len(block))
            for offset in range(max(done - first, 0), len(block)):
                item, is_own = block[order[offset]]
                yield Draw([epoch, index, first + offset + 1], epoch, partial(source.sample, item), is_own)
            if len(block) < BLOCK:
                return


def _share(items: Iterator, slot: int, slots: int) -> Iterator[tuple[Any, bool]]:
    """The items of a slot, and in every slot the end of a broken shard, each with whether it is the slot's own."""
    for number, item in enumerate(items):
        is_own = number % slots == slot
        if is_own or isinstance(item, BrokenShardError):
            yield item, is_own


@dataclass
class Group:
    """
    A group of data sources with its share of every batch.

    Args:
        weight (`int`): Rows of this group in the ratio of all groups, as in 128 : 128.
        data (`RowGroup` or `ShardGroup`): The rows or shards.
    """

    weight: int
    data: RowGroup | ShardGroup

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> "Group":
        if not isinstance(entry, dict):
            raise ValueError(f"A group of data is {entry!r}, but must have `weight` and `sources`.")
        check_names(entry, ("weight", "sources"), "setting of a group of data")
        weight = entry.get("weight", 1)
        if not (type(weight) is int and weight > 0 and isinstance(entry.get("sources"), list) and entry["sources"]):
            raise ValueError(f"A group of data is {entry}, but needs a `weight` (integer from 1) and a `sources` list.")
        for source in entry["sources"]:
            if not isinstance(source, dict):
                raise ValueError(f"A source of data is {source!r}, but must have `format` and `path`.")
        sources = [Source.from_dict(source) for source in entry["sources"]]
        streamed = [source.format == "webdataset" for source in sources]
        if any(streamed) and not all(streamed):
            raise ValueError("Tar shards and files of rows cannot share a group: put them into two groups.")
        options = [{name: value for name, value in vars(source).items() if name != "format"} for source in sources]
        if all(streamed):
            return cls(weight, ShardGroup([Shards(**option) for option in options]))
        return cls(weight, RowGroup([Rows(s.format, **option) for s, option in zip(sources, options, strict=True)]))


@dataclass
class Policy:
    """
    What to do with unusable samples.

    Args:
        on_error (`str`, defaults to `"stop"`): "stop" raises the first one; "skip" leaves them out and counts them.
        max_skipped (`float`, defaults to 0.05): Maximum share of a worker's samples that may be skipped, out of at
            least 100. Samples without an answer within `max_length` are always skipped, and count. It is also the
            maximum share of broken tar shards, out of at least 20 or all shards; these do not count as samples.
    """

    on_error: str = "stop"
    max_skipped: float = 0.05

    def __post_init__(self):
        check_names([self.on_error], ("stop", "skip"), "value of `on_error`")
        if not 0 <= self.max_skipped < 1:
            raise ValueError(f"`max_skipped` is {self.max_skipped}, but must be a share from 0 to less than 1.")

    def check(self, seen: int, skipped: int, last: BadSampleError) -> None:
        self._compare(skipped, seen, FEW_SAMPLES, "samples are unusable", last)

    def check_shards(self, begun: int, broken: int, shards: int, last: BrokenShardError) -> None:
        self._compare(broken, begun, min(FEW_SHARDS, shards), "tar shards are missing or truncated", last)

    def _compare(self, bad: int, seen: int, few: int, what: str, last: BadSampleError) -> None:
        if bad > self.max_skipped * max(seen, few):
            raise ValueError(
                f"{bad} of {seen} {what}, which is more than max_skipped={self.max_skipped} allows. The last of them: "
                f"{last}"
            ) from last


class Mixture(IterableDataset):
    """
    Endless micro-batches for one rank, each a batch of the collator's `pad` with a `report`.

    Args:
        groups (`dict[str, Group]`): Groups by name. If the sum of the reduced weights divides the rows of an optimizer
            step, every step has exactly the ratio of the groups, else within one row, and exactly in the long run; so
            do the draws of each worker of each rank.
        collator ([`ConversationCollator`]): Collator of the model.
        batch_size (`int`): Rows per micro-batch.
        accumulation (`int`): Micro-batches per rank and optimizer step.
        seed (`int`): Seed of order and augmentation.
        augmentation ([`Augmentation`], *optional*): Augmentation of the images, seeded by (seed, epoch, sample).
        policy ([`Policy`]): Policy for unusable samples, each replaced by the next sample of its group.
        rank, world_size (`int`): Rank of this process and number of processes.
    """

    def __init__(
        self, groups: dict[str, Group], collator: ConversationCollator, batch_size: int, accumulation: int = 1,
        seed: int = 0, augmentation: Augmentation | None = None, policy: Policy | None = None, rank: int = 0,
        world_size: int = 1,
    ):  # fmt: skip
        self.groups = groups
        self.collator = collator
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.seed = seed
        self.augmentation = augmentation
        self.policy = policy or Policy()
        self.rank = rank
        self.world_size = world_size
        self.pattern = interleave({name: group.weight for name, group in groups.items()})
        self.first = 0
        self.cursors: dict[int, dict[str, list[int]]] = {}

    def steps(self, epochs: float) -> int:
        """
        Optimizer steps in which every row of every group comes at least `epochs` times, those of small groups more
        often.

        Raises:
            ValueError: for tar shards, whose number of samples is unknown.
        """
        for name, group in self.groups.items():
            if isinstance(group.data, ShardGroup):
                raise ValueError(f"The number of samples in the tar shards of {name!r} is unknown: set `max_steps`.")
        assert self.steps_an_epoch is not None
        return math.ceil(Fraction(epochs) * self.steps_an_epoch)

    @property
    def steps_an_epoch(self) -> Fraction | None:
        """Fractional number of optimizer steps in which every row comes once; None for tar shards."""
        periods = Fraction(0)
        for name, group in self.groups.items():
            if isinstance(group.data, ShardGroup):
                return None
            periods = max(periods, Fraction(len(group.data), self.pattern.count(name)))
        return periods * len(self.pattern) / (self.batch_size * self.accumulation * self.world_size)

    def _round(self, workers: int) -> int:
        """
        The smallest number of steps that is a whole number of patterns and of worker turns. The pattern shifts by one
        row after each round: a round has the exact ratio, and so do the draws of each slot in as many rounds as the
        pattern has rows.
        """
        rows = self.batch_size * self.accumulation * self.world_size
        turns = workers // math.gcd(workers, self.accumulation)
        return math.lcm(len(self.pattern) // math.gcd(len(self.pattern), rows), turns)

    def __iter__(self) -> Iterator[dict[str, Any] | ValueError]:
        info = get_worker_info()
        workers, physical = (info.num_workers, info.id) if info else (1, 0)
        worker = (self.first + physical) % workers
        slot = _Slot(self, worker, workers)
        for number in itertools.count(self.first + physical, workers):
            step, part = divmod(number, self.accumulation)
            first = ((step * self.accumulation + part) * self.world_size + self.rank) * self.batch_size
            turn = first + step // self._round(workers)
            names = [self.pattern[(turn + row) % len(self.pattern)] for row in range(self.batch_size)]
            try:
                yield slot.batch(names)
            except ValueError as error:
                yield error  # raised by the loader: one from a worker would come with two tracebacks
                return


class MixtureLoader(DataLoader):
    """
    The loader of a [`Mixture`].

    Args:
        mixture ([`Mixture`]): The batches.
        workers (`int`): Number of worker processes; 0 reads in this process.
        pin_memory (`bool`): Whether to pin memory, for faster copies to a GPU.
        prefetch_factor (`int`, *optional*): Batches that each worker reads ahead.
    """

    def __init__(
        self, mixture: Mixture, workers: int = 0, pin_memory: bool = False, prefetch_factor: int | None = None
    ):
        # With a generator of its own it leaves the global one, which draws dropout, alone.
        super().__init__(
            mixture,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            generator=torch.Generator(),
        )

    def __iter__(self):
        for batch in super().__iter__():
            if isinstance(batch, ValueError):
                raise batch
            yield batch


class _Slot:
    """A worker of a rank: its streams, their cursors, and its skipped samples."""

    def __init__(self, mixture: Mixture, worker: int, workers: int):
        self.mixture = mixture
        self.worker = worker
        groups = {name: group.data for name, group in mixture.groups.items()}
        self.cursors = {name: data.start for name, data in groups.items()} | mixture.cursors.get(worker, {})
        slot, slots = mixture.rank * workers + worker, mixture.world_size * workers
        self.streams = {
            name: data.draws(slot, slots, mixture.seed, self.cursors[name]) for name, data in groups.items()
        }
        self.seen = self.skipped = 0
        self.begun, self.broken = dict.fromkeys(groups, 1), dict.fromkeys(groups, 0)  # shards of each group

    def batch(self, names: list[str]) -> dict[str, Any]:
        left_out: list[dict[str, str]] = []
        rows = [self._row(name, left_out) for name in names]
        report = {
            "worker": self.worker,
            "cursors": dict(self.cursors),
            "skipped": left_out,
            "lengths": [len(row["input_ids"]) for row in rows],
        }
        return {**self.mixture.collator.pad(rows), "report": report}

    def _row(self, name: str, left_out: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        """The next usable sample of the group."""
        while True:
            draw = next(self.streams[name])
            self.begun[name] += draw.cursor[:-1] != self.cursors[name][:-1]
            self.cursors[name] = draw.cursor
            try:
                row = self._encode(draw)
                self.seen += 1
                return row
            except BadSampleError as error:
                policy = self.mixture.policy
                if policy.on_error == "stop" and not isinstance(error, NoAnswerLeftError):
                    raise
                if draw.is_reported:
                    entry = {"group": name, "source": error.source, "reason": error.reason, "error": str(error)}
                    left_out.append(entry)
                if isinstance(error, BrokenShardError):
                    self.broken[name] += 1
                    shards = len(self.mixture.groups[name].data.paths())
                    policy.check_shards(self.begun[name], self.broken[name], shards, error)
                else:
                    self.seen, self.skipped = self.seen + 1, self.skipped + 1
                    policy.check(self.seen, self.skipped, error)

    def _encode(self, draw: Draw) -> dict[str, torch.Tensor]:
        sample = draw.load()
        messages = open_visuals(sample, self.mixture.collator)
        if self.mixture.augmentation is not None:
            number = zlib.crc32(sample["source"].encode())
            random = np.random.default_rng([self.mixture.seed, draw.epoch, number])
            processor = self.mixture.collator.processor.image_processor
            # An image that will be cut into cells keeps its pixels.
            size = (processor.size["width"], processor.size["height"]) if processor.max_crops == 1 else None
            for part in visuals_of(messages):
                frames = part["video"] if part["type"] == "video" else [part["image"]]
                frames = self.mixture.augmentation(frames, size, processor.resample, random)
                part[part["type"]] = frames if part["type"] == "video" else frames[0]
        return encode(messages, sample["source"], self.mixture.collator)


def interleave(weights: dict[str, int]) -> list[str]:
    """One period of the groups in the ratio of their weights, each spread as evenly as possible."""
    divisor = math.gcd(*weights.values())
    shares = {name: weight // divisor for name, weight in weights.items()}
    total = sum(shares.values())
    taken = dict.fromkeys(shares, 0)
    pattern = []
    for place in range(1, total + 1):
        name = max(shares, key=lambda name: place * shares[name] - total * taken[name])
        taken[name] += 1
        pattern.append(name)
    return pattern


def open_visuals(sample: dict[str, Any], collator: ConversationCollator) -> Messages:
    """
    The sample's messages with opened images, and lists of frames for videos.

    Raises:
        BadSampleError: for malformed messages, and for a missing or unreadable image or video.
    """
    try:
        messages = read_chats(sample["messages"])
    except ValueError as error:
        raise BadSampleError("malformed row", sample["source"], error) from error
    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [_opened(part, sample["source"], collator) for part in message["content"]]}
        for message in messages
    ]


def _opened(part: dict[str, Any], source: str, collator: ConversationCollator) -> dict[str, Any]:
    kind = part["type"]
    if kind not in ("image", "video"):
        return part
    try:
        return {name: value for name, value in part.items() if name in KEPT} | {kind: collator.open(part)}
    except ValueError as error:
        is_missing = "path" in part and not os.path.exists(part["path"])  # Path.exists raises for long names
        reason = f"{'missing' if is_missing else 'unreadable'} {kind}"
        raise BadSampleError(reason, source, error) from error


def encode(messages: Messages, source: str, collator: ConversationCollator) -> dict[str, torch.Tensor]:
    """
    Encodes messages as a row of the collator.

    Raises:
        BadSampleError: for messages that the chat template refuses, or without an answer within `max_length`.
    """
    try:
        row = collator.encode(messages)
    except ValueError as error:
        raise BadSampleError("malformed row", source, error) from error
    if (row["labels"] == IGNORED).all():
        raise NoAnswerLeftError("no answer left", source, f"none begins within max_length={collator.max_length}")
    return row

"""A run on Ray Data: tasks read and decode shards, actors run models, and every block is written to a file."""

import json
import logging
import os
import pickle
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..journal import Journal, changes, lines, log_resumed, partial_of
from .engines import Settings
from .inputs import Part, container_of
from .outputs import Output, batches
from .reading import blocks, decoded, decoder_of
from .running import (
    Count,
    Key,
    Row,
    answer_block,
    check_answering,
    check_earlier_output,
    list_failures,
    refuse,
    resume,
)


LOCAL = "local"
READER = 0.5  # CPUs of a task that reads; with those of an actor, Ray would make one operation of both


class Blocks:
    """
    A folder, local or at a URL of fsspec, with a file for each answered block: a header, then its rows. The name is
    made from the part and the first item, so a block that is answered twice has one file.
    """

    def __init__(self, where: str):
        self.where = where

    @property
    def system(self) -> Any:
        import fsspec

        return fsspec.url_to_fs(self.where)[0]

    def path(self, name: str) -> str:
        return f"{self.where}/{name}"

    def names(self) -> set[str]:
        """Names of the complete files."""
        if "://" not in self.where:
            found = os.listdir(self.where) if Path(self.where).is_dir() else []
        else:
            system = self.system
            system.invalidate_cache()
            found = system.ls(self.where, detail=False) if system.exists(self.where) else []
        return {Path(name).name for name in found if name.endswith(".jsonl")}

    def write(self, name: str, rows: list[Row]) -> None:
        data = lines(rows)
        if "://" in self.where:  # a store shows a file when it is whole
            system = self.system
            system.makedirs(self.where, exist_ok=True)
            with system.open(self.path(name), "wb") as file:
                file.write(data)
            return
        aside = Path(self.path(f"{name}.{uuid.uuid4().hex}"))
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path(name))

    def read(self, name: str) -> list[Row]:
        path = self.path(name)
        data = self.system.cat_file(path) if "://" in self.where else Path(path).read_bytes()
        return [json.loads(line) for line in data.split(b"\n") if line]

    def remove(self) -> None:
        if "://" in self.where:
            self.system.rm(self.where, recursive=True)
        else:
            shutil.rmtree(self.where)


def block_name(part: Part, start: int) -> str:
    return f"{part.key}-{start:09}.jsonl"


def read_parts(batch: dict[str, Any], settings: Settings) -> Iterator[dict[str, Any]]:
    """A task of Ray Data: yields the decoded blocks of parts that are not answered yet."""
    decode = decoder_of(settings.model, settings.num_frames)
    for packed in batch["part"]:
        part, finished, done = pickle.loads(packed)
        for start, items, is_last in blocks(part):
            if block_name(part, start) in finished:
                continue
            left = [item for item in items if not all((item.name, prompt) in done for prompt in settings.prompts)]
            block = {
                "name": block_name(part, start),
                "part": part.name,
                "items": len(items),
                "last": is_last,
                "shown": [(item.name, decoded(item, decode)) for item in left],
                "done": {(item.name, prompt) for item in left for prompt in settings.prompts} & done,
            }
            yield {"block": [pickle.dumps(block)]}


class Answerer:
    """An actor of Ray Data: a model that answers about blocks and writes the answers."""

    def __init__(self, settings: Settings, store: Blocks, on_error: str):
        self.settings, self.store, self.on_error = settings, store, on_error
        self.engine = settings.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"block": [pickle.dumps(self.answer(pickle.loads(packed))) for packed in batch["block"]]}

    def answer(self, block: dict[str, Any]) -> dict[str, Any]:
        rows = answer_block(self.engine, self.settings, block.pop("shown"), block.pop("done"))
        failures = [row for row in rows if "error" in row]
        if not failures or self.on_error != "stop":
            head = {name: block[name] for name in ("part", "items", "last")}
            self.store.write(block["name"], [head, *rows])
        return {**block, "failures": failures}


def caption_on_ray(
    settings: Settings,
    parts: list[Part],
    output: Output,
    address: str = LOCAL,
    workers: int | None = None,
    append: bool = False,
    on_error: str = "skip",
    count: Count | None = None,
) -> Iterator[Row]:
    """
    As `caption`, on Ray; yields unreadable items, and `{"block": NAME}` for every answered block. Answers are kept in
    the folder `OUTPUT.blocks` until the end of the run, from which the same run resumes.

    Args:
        address (`str`): "local" for this machine, "auto" for its cluster, or `ray://HOST:PORT`.
        workers (`int`, *optional*): Number of models; by default one per GPU, else one per CPU.
        settings, parts, output, append, on_error, count: As in `caption`.

    Raises:
        ValueError: as in `caption`, and if the blocks are of another run.
    """
    count = Count(parts) if count is None else count
    store = Blocks(f"{output.record}.blocks")
    if "://" in output.record:
        check_earlier_output(output, append)
        earlier = [row for _, row in output.rows()] if output.exists() else []
        check_answering(output, is_new=append or not earlier)
        done = {(row["image"], row["prompt"]) for row in earlier if row["model"] == settings.model}
        check_run(store, settings, parts)
        yield from answer_parts(settings, parts, store, done, address, workers, on_error, count)
        failures: list[Row] = []
        output.write([*earlier, *collected(store, parts, failures, done)])
        store.remove()
        return
    with Journal(partial_of(Path(output.record))) as journal:
        done = resume(output, journal, append)
        check_run(store, settings, parts)
        yield from answer_parts(settings, parts, store, done, address, workers, on_error, count)
        failures = []
        for rows in batches(collected(store, parts, failures, done), 1000):
            journal.append(rows)
        output.finish(journal)
        list_failures(output, failures)
        store.remove()


def check_run(store: Blocks, settings: Settings, parts: list[Part]) -> None:
    """
    Writes the settings of the run to its blocks, or compares them.

    Raises:
        ValueError: if the blocks are of another run.
    """
    run = {
        "columns": settings.columns,
        "model": settings.model,
        "prompts": list(settings.prompts),
        "parts": [part.key for part in parts],
        **settings.answering,
    }
    if "run.jsonl" not in store.names():
        if "://" not in store.where:
            Path(store.where).mkdir(exist_ok=True)
        store.write("run.jsonl", [run])
        return
    (before,) = store.read("run.jsonl")
    changed = changes(before, run)
    if changed:
        raise ValueError(
            f"{store.where} holds an unfinished run with other settings ({'; '.join(changed)}): finish it by its own "
            "command, choose another --output, or delete the folder."
        )


def collected(store: Blocks, parts: list[Part], failures: list[Row], done: set[Key]) -> Iterator[Row]:
    """New answers in the blocks, in the order of the parts; failures are added to the list."""
    for part in parts:
        start, is_last = 0, False
        while not is_last:
            head, *rows = store.read(block_name(part, start))
            failures += [row for row in rows if "error" in row]
            yield from (row for row in rows if "error" not in row and (row["image"], row["prompt"]) not in done)
            is_last = head["last"]
            start += head["items"]


def unfinished(store: Blocks, parts: list[Part], count: Count) -> list[tuple[Part, frozenset[str]]]:
    """Parts with missing blocks, with the names of their existing blocks."""
    there = store.names()
    found = []
    for part in parts:
        mine = sorted(name for name in there if name.startswith(part.key))
        heads = [store.read(name)[0] for name in mine]
        size = sum(head["items"] for head in heads)
        count.read += size
        if heads and heads[-1]["last"] and mine[-1] == block_name(part, size - heads[-1]["items"]):
            count.end(part, size)
        else:
            found.append((part, frozenset(mine)))
    return found


def with_done(
    left: list[tuple[Part, frozenset[str]]], done: set[Key]
) -> Iterator[tuple[Part, frozenset[str], set[Key]]]:
    """Each part with its finished items."""
    within: dict[str | None, set[Key]] = {}
    for image, prompt in done:
        within.setdefault(container_of(image), set()).add((image, prompt))
    for part, names in left:
        files = set(part.files)
        keys = {key for key in within.get(None, set()) if key[0] in files} if files else within.get(part.name, set())
        yield part, names, keys


def answer_parts(
    settings: Settings, parts: list[Part], store: Blocks, done: set[Key], address: str, workers: int | None,
    on_error: str, count: Count,
) -> Iterator[Row]:  # fmt: skip
    """Answers about all missing blocks."""
    left = unfinished(store, parts, count)
    log_resumed(count.read, "images in whole blocks")
    if not left:
        return
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    workers, gpus = start(address, workers, settings)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 2**20  # a block of ours is sent on when it is there
    packed = [{"part": pickle.dumps((part, names, keys))} for part, names, keys in with_done(left, done)]
    results = (
        ray.data.from_items(packed, override_num_blocks=len(packed))
        .map_batches(read_parts, batch_size=1, num_cpus=READER, fn_kwargs={"settings": settings})
        .map_batches(
            Answerer,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=0 if gpus else 1,
            num_gpus=gpus,
            fn_constructor_kwargs={
                "settings": replace(settings, images=settings.images // workers),
                "store": store,
                "on_error": on_error,
            },
        )
    )
    sizes: dict[str, int] = {}
    by_key = {part.key: part for part in parts}
    for row in results.iter_rows():
        block = pickle.loads(row["block"])
        key = block["name"].partition("-")[0]
        count.read += block["items"]
        sizes[key] = sizes.get(key, 0) + block["items"]
        if block["last"]:
            count.end(by_key[key], sizes[key])
        for failure in block["failures"]:
            refuse(failure, on_error)
            yield failure
        yield {"block": block["name"]}


def start(address: str, workers: int | None, settings: Settings) -> tuple[int, int]:
    """
    Joins a cluster, or starts one on this machine with one CPU for reading besides those of the models.

    Returns:
        `tuple[int, int]`: Number of workers, and of GPUs per worker.

    Raises:
        ValueError: if the cluster is too small for the workers.
    """
    import ray

    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not ray.is_initialized():
        if address == LOCAL:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            cores = os.cpu_count() or 1
            readers = max(1, cores // 4)
            ray.init(LOCAL, num_cpus=max(cores, workers or 0) + readers, include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    there = ray.cluster_resources()
    gpus = 0 if settings.device == "cpu" else int(there.get("GPU", 0))
    cpus = int(there.get("CPU", 0))
    wanted = workers or gpus or max(1, cpus - max(1, cpus // 5))
    if (gpus and wanted > gpus) or (not gpus and wanted >= cpus):
        have = f"{gpus} GPUs" if gpus else f"{cpus} CPUs, one of which reads files"
        raise ValueError(f"--workers is {wanted}, but the cluster has {have}: lower it.")
    return wanted, 1 if gpus else 0

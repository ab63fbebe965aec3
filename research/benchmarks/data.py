"""Loads data of a million rows, compared with `datasets`: a LLaVA file, a Parquet file and 1,000 tar shards.

python research/benchmarks/data.py [--rows 1000000] [--conversations 665000] [--shards 1000] [--pairs 3] [--json FILE]

The LLaVA file has 665,000 conversations. Both sides open the same files in turn, each time in a new process. `datasets`
starts with an empty cache, and runs once more with the cache that this leaves. The columns are the seconds to open, the
seconds from there to the first four rows of a shuffled epoch and to four rows from its middle, as a resumed run needs
them, and the peak memory in MB beyond that of the imports. Rows are medians of the pairs. The files take about 1.2 GB,
and the cache of `datasets` as much.
"""

import argparse
import io
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from growth import batches, files_of_rows, group_of, mixture_of
from machine import write_rows


COLUMNS = ("open", "first", "middle", "mb")
SAMPLES_A_SHARD = 20
BLOCK = 10_000  # rows of a Parquet row group
CAPTION = "an owl on a branch, seen from below at night"


def png() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (56, 56), (20, 90, 160)).save(file, "PNG")
    return file.getvalue()


def make_json(folder: Path, count: int) -> str:
    return str(next(files_of_rows(folder, "json", [count]))[1])


def make_parquet(folder: Path, count: int) -> str:
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image, "text": pa.string()})
    path = folder / "rows.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, count, BLOCK):
            rows = range(first, min(first + BLOCK, count))
            images = [{"bytes": png(), "path": f"{number}.png"} for number in rows]
            writer.write_table(pa.table([pa.array(images, image), pa.array([CAPTION] * len(rows))], schema=schema))
    return str(path)


def make_shards(folder: Path, count: int) -> str:
    (folder / "shards").mkdir()
    for shard in range(count):
        with tarfile.open(folder / f"shards/{shard:05}.tar", "w") as archive:
            for sample in range(SAMPLES_A_SHARD):
                for suffix, data in (("png", png()), ("txt", CAPTION.encode())):
                    member = tarfile.TarInfo(f"{sample:04}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return f"{folder}/shards/{{00000..{count - 1:05}}}.tar"


def ours(kind: str, path: str) -> tuple[Callable, Callable, Callable]:
    """What opens, reads from the start, and reads from the middle."""
    form = {"json": "llava", "parquet": "dataset", "shards": "webdataset"}[kind]

    def read(group: Any, middle: list[int] | None = None) -> None:
        mixture = mixture_of(group)
        if middle is not None:
            mixture.cursors = {0: {"rows": middle}}
        batches(mixture)

    def from_the_middle(group: Any) -> None:
        data = group.data
        read(group, [0, len(data.shards) // 2, 0] if kind == "shards" else [len(data) // 2])

    return lambda: group_of(form, path), read, from_the_middle


def theirs(kind: str, path: str) -> tuple[Callable, Callable, Callable]:
    """The same by `datasets`: rows by number, shards as a stream."""

    def open_shards() -> Any:
        first, last = path.partition("{")[2].partition("}")[0].split("..")
        files = [path.split("{")[0] + f"{number:05}.tar" for number in range(int(first), int(last) + 1)]
        rows = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)
        return rows.shuffle(seed=0, buffer_size=SAMPLES_A_SHARD)

    def open_rows() -> Any:
        return datasets.load_dataset(kind, data_files={"train": path}, split="train")

    def read(rows: Any) -> None:
        list(itertools.islice(rows if kind == "shards" else rows.shuffle(seed=0), 4))

    def from_the_middle(rows: Any) -> None:
        if kind == "shards":
            list(itertools.islice(rows.skip(rows.n_shards * SAMPLES_A_SHARD // 2), 4))
        else:
            shuffled = rows.shuffle(seed=0)
            list(itertools.islice(shuffled.select(range(len(rows) // 2, len(rows))), 4))

    return open_shards if kind == "shards" else open_rows, read, from_the_middle


MAKE = {"json": make_json, "parquet": make_parquet, "shards": make_shards}


def one(side: str, kind: str, path: str) -> dict[str, float]:
    """One side, measured in this process."""
    opened, read, from_the_middle = (ours if side == "ours" else theirs)(kind, path)
    before = psutil.Process().memory_info().rss
    times = [time.perf_counter()]
    rows = opened()
    times.append(time.perf_counter())
    read(rows)
    times.append(time.perf_counter())
    from_the_middle(rows)
    times.append(time.perf_counter())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = [after - start for start, after in itertools.pairwise(times)]
    return dict(zip(COLUMNS, [*seconds, max(most - before, 0) / 1e6], strict=True))


def measured(side: str, kind: str, path: str, cache: str) -> dict[str, float]:
    asked = [sys.executable, __file__, "--one", side, kind, path]
    quiet = {"HF_DATASETS_CACHE": cache, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    said = subprocess.run(asked, env={**os.environ, **quiet}, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=665_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=MAKE, default=[*MAKE])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one(*options.one)))
        return
    counts = {"json": options.conversations, "parquet": options.rows, "shards": options.shards}
    table = []
    for kind in options.only:
        found: dict[str, list[dict[str, float]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            path = MAKE[kind](Path(folder), counts[kind])
            for pair in range(options.pairs):
                for side, name in (("ours", "ours"), ("datasets", "datasets"), ("datasets", "datasets, cached")):
                    found.setdefault(name, []).append(measured(side, kind, path, f"{folder}/cache-{side}-{pair}"))
        for side, runs in found.items():
            row = {name: statistics.median(run[name] for run in runs) for name in COLUMNS}
            table.append({"data": kind, "count": counts[kind], "side": side, **row})
            shown = ", ".join(f"{name} {value:.3g}" for name, value in row.items())
            print(f"{kind:8} {side:17} {shown}", flush=True)
        write_rows(options.json, table)


if __name__ == "__main__":
    main()

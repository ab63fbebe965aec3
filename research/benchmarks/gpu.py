"""The 7B model on one GPU, with random weights in bfloat16, compared with the limits of the GPU.

python research/benchmarks/gpu.py [--only generate encode decode pretrain instruct] [--tiny] [--json FILE]

First, the script measures the limits of the GPU: the rate of matrix products and the memory bandwidth. The other
figures are shares of these:

- generate: `generate` itself at batch 1 and 8, without and with `optimize`. The first token after an image and 60
  tokens of text is compared with the rate of products, each further token with the bandwidth. `graphs` counts the
  compiled graphs, `later` those compiled again for longer prompts and answers. It has not run on a GPU
- encode: 64 images through vision model and abstractor, without compilation and with the layers compiled one by one
- decode: one token after an image and 60 tokens of text. "growing cache" is the plain model. "captured" is one step
  into a static cache, recorded as a CUDA graph and replayed. "compiled" also compiles the layers one by one, and
  "tuned" searches for the fastest kernels. The share is that of reading every weight of the language model once.
  `difference` is the distance of the logits from those of the library's own step with its static cache, in standard
  deviations of the logits. `same` is the share of tokens whose first choice is the same
- pretrain, instruct: an optimizer step of the recipes by `OwlTrainer`, with batches that are already in memory, full
  rows and one image per row. `mfu` uses the data sheet, as in training; `share` uses the measured rate. `gib` is the
  peak allocated memory, and `computed_gib` the memory computed by memory.py, which ignores compiled layers

`--tiny` tries the script on a CPU, with small sizes and plain calls instead of graphs.
"""

import argparse
import gc
import itertools
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import memory
import torch
import transformers
from machine import operations
from side_by_side import TEXT_TOKENS, ready
from training import CHECKPOINT, ReadyBatches, write_images
from transformers import CompileConfig, PrinterCallback, StaticCache, TrainerCallback
from transformers.initialization import no_init_weights

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration, MplugOwlProcessor
from transformers_owl.inference import optimize
from transformers_owl.inference.optimizing import compile_decoding
from transformers_owl.training import ConversationCollator, Mixture, prepare_stage
from transformers_owl.training.arguments import parse_recipe
from transformers_owl.training.compiling import compile_layers
from transformers_owl.training.throughput import TrainingFlops, peak_tflops


WARM_UP, STEPS = 2, 4
CACHE = 256
CHECKED_TOKENS = 4
VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {
    "text_config": {"model_type": "llama", **VISION, "num_key_value_heads": 4, "vocab_size": 1000},
    "vision_config": {**VISION, "image_size": 28},
    "visual_abstractor_config": {**VISION, "encoder_hidden_size": 64, "num_query_tokens": 4},
}
# Rows of a step, whether it is checkpointed, and whether its layers are compiled.
TRAINED = {
    "pretrain": ((64, True, False), (16, False, False), (16, False, True)),
    "instruct": ((4, True, False), (4, False, False), (8, False, False), (8, False, True)),
}


class Bench:
    """What all sections share: the device, sizes, limits, and the rows so far."""

    def __init__(self, tiny: bool, file: Path | None):
        self.tiny, self.file = tiny, file
        self.device = torch.device("cpu" if tiny else "cuda")
        self.config = MplugOwlConfig(**SMALL) if tiny else MplugOwlConfig()
        self.repeats = 3 if tiny else 20
        self.rows: list[dict[str, Any]] = []
        self.rate = self.bandwidth = 0.0

    def add(self, section: str, name: str, **figures) -> None:
        """Prints a row and writes all; what it took is free again."""
        self.rows.append({"section": section, "name": name, **figures})
        shown = (f"{key} {value:.4g}" for key, value in figures.items())
        print(f"{section:9} {name:30} {', '.join(shown)}", flush=True)
        if self.file is not None:
            head = {
                "command": shlex.join(["python", *sys.argv]),
                "card": "CPU" if self.tiny else torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
            self.file.write_text(json.dumps({**head, "rows": self.rows}, indent=1) + "\n")
        torch._dynamo.reset()
        gc.collect()
        if not self.tiny:
            torch.cuda.empty_cache()

    def seconds(self, run: Callable[[], object], repeats: int | None = None) -> float:
        """The median of some calls after three that do not count, by the device's clock."""
        for _ in range(3):
            run()
        times = []
        for _ in range(repeats or self.repeats):
            if self.tiny:
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            else:
                events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                events[0].record()
                run()
                events[1].record()
                events[1].synchronize()
                times.append(events[0].elapsed_time(events[1]) / 1e3)
        return statistics.median(times)

    def build(self) -> MplugOwlForConditionalGeneration:
        """Random weights in bfloat16, made on the device; buffers as the model makes them."""
        torch.manual_seed(0)
        with self.device, no_init_weights():
            model = MplugOwlForConditionalGeneration._from_config(self.config, dtype=torch.bfloat16)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(std=0.02)
            else:
                parameter.data.fill_(0 if name.endswith("bias") else 1)
        return ready({"owl": model}, torch.bfloat16)["owl"]

    def pixels(self, count: int) -> torch.Tensor:
        size = self.config.vision_config.image_size
        return torch.randn(count, 3, size, size, device=self.device, dtype=torch.bfloat16)

    def words(self, *shape: int) -> torch.Tensor:
        return torch.randint(3, self.config.text_config.vocab_size, shape)


def limits(bench: Bench) -> None:
    side, images, width = (256, 512, 64) if bench.tiny else (8192, 64 * 257, 1024)
    shapes = ((side, side, side), (images, width, 4 * width), (images, 4 * width, width), (images, width, width))
    for rows, inner, columns in shapes:
        a, b = (torch.randn(shape, device=bench.device).bfloat16() for shape in ((rows, inner), (inner, columns)))
        rate = 2 * rows * inner * columns / bench.seconds(lambda a=a, b=b: a @ b)
        bench.rate = max(bench.rate, rate)
        bench.add("limits", f"{rows} x {inner} x {columns}", tflops=rate / 1e12)
    size = 2**24 if bench.tiny else 2**32
    for dtype in (torch.bfloat16, torch.float32):
        matrix = torch.ones(size // dtype.itemsize // 8192, 8192, device=bench.device, dtype=dtype)
        vector, copy = torch.ones(8192, device=bench.device, dtype=dtype), torch.empty_like(matrix)
        ways: dict[str, tuple[Callable[[], Any], int]] = {
            "sum": (matrix.sum, size),
            "matrix x vector": (lambda m=matrix, v=vector: m @ v, size),
            "copy": (lambda m=matrix, c=copy: c.copy_(m), 2 * size),
        }
        for name, (run, moved) in ways.items():
            found = moved / bench.seconds(run)
            bench.bandwidth = max(bench.bandwidth, found)
            bench.add("limits", f"{name}, {str(dtype).removeprefix('torch.')}", gb_a_second=found / 1e9)


@torch.no_grad()
def encode(bench: Bench) -> None:
    count = 2 if bench.tiny else 64
    model, pixels = bench.build(), bench.pixels(count)
    model.set_attn_implementation("eager")  # the counter sees products of matrices alone
    needed = count * operations(lambda: model.get_image_features(pixels[:1]))
    model.set_attn_implementation("sdpa")
    for name in ("as it is", "compiled"):
        if name == "compiled":
            compile_layers(model)
        seconds = bench.seconds(lambda: model.get_image_features(pixels))
        bench.add("encode", f"{count} images, {name}", ms=seconds * 1e3, share=needed / seconds / bench.rate)


class LayerCache:
    """Keys and values of one layer, written at a position that all layers share: the layers' code is the same."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, position: torch.Tensor):
        self.keys, self.values, self.position = keys, values, position

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.index_copy_(2, self.position, keys)
        self.values.index_copy_(2, self.position, values)
        return self.keys, self.values


class Decoder:
    """
    A step of the language model of LLaMA's kind behind a prompt. All that changes from step to step lies in tensors
    that stay where they are, and nothing is read back, so a CUDA graph can hold it.
    """

    def __init__(self, model: MplugOwlForConditionalGeneration, cache: StaticCache, length: int):
        text = model.model.language_model
        device = model.device
        self.length = length
        self.token = torch.full((1, 1), 5, device=device)
        self.position = torch.full((1,), length, device=device)
        self.places = torch.arange(CACHE, device=device)
        # Copies, since the library's own tensors are marked as fixed, and every layer would have code for its own.
        self.caches = [LayerCache(layer.keys.clone(), layer.values.clone(), self.position) for layer in cache.layers]
        self.embed, self.rotary, self.norm, self.lm_head = text.embed_tokens, text.rotary_emb, text.norm, model.lm_head
        self.layers, self.head = list(text.layers), self.last

    def last(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(hidden))

    def step(self) -> torch.Tensor:
        hidden = self.embed(self.token)
        rotation = self.rotary(hidden, self.position[None])
        # Added to the scores, which every implementation of attention takes.
        hidden_places = torch.where(self.places <= self.position, 0.0, torch.finfo(hidden.dtype).min)
        mask = hidden_places.to(hidden.dtype)[None, None, None]
        for layer, cache in zip(self.layers, self.caches, strict=True):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotation, past_key_values=cache)
        logits = self.head(hidden)
        self.position.add_(1)
        return logits


def captured(bench: Bench, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A step as a graph that is replayed; on a CPU the step itself."""
    if bench.tiny:
        return step
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return logits

    return replay


@torch.no_grad()
def decode(bench: Bench) -> None:
    model = bench.build()
    ids = bench.words(1, model.config.num_query_tokens + 1 + TEXT_TOKENS)
    ids[:, 30 : 31 + model.config.num_query_tokens] = model.config.image_token_id
    prompt = {"input_ids": ids.to(bench.device), "pixel_values": bench.pixels(1)}
    text = model.model.language_model
    read = [*text.layers.parameters(), *text.norm.parameters(), *model.lm_head.parameters()]
    least = sum(parameter.nbytes for parameter in read) / bench.bandwidth
    tokens = 8 if bench.tiny else 64
    growing = model(**prompt, use_cache=True, logits_to_keep=1).past_key_values
    token = torch.full((1, 1), 5, device=bench.device)
    seconds = bench.seconds(lambda: model(input_ids=token, past_key_values=growing, use_cache=True))
    bench.add("decode", "growing cache", ms=seconds * 1e3, share=least / seconds)

    cache = StaticCache(config=model.config.text_config, max_cache_len=CACHE)
    model(**prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    decoder = Decoder(model, cache, ids.shape[1])
    words = bench.words(CHECKED_TOKENS, 1, 1).to(bench.device)
    expected = [model(input_ids=word, past_key_values=cache).logits.float() for word in words]
    layers = decoder.layers
    variants: dict[str, dict[str, Any] | None] = {
        "captured": None,
        "compiled, captured": {},
        "tuned, captured": {"options": {"coordinate_descent_tuning": True}},
    }
    for name, options in variants.items():
        if options is not None:
            decoder.layers = [torch.compile(layer, dynamic=False, **options) for layer in layers]
            decoder.head = torch.compile(decoder.last, dynamic=False, **options)
        step = captured(bench, decoder.step)
        decoder.position.fill_(decoder.length)
        pairs = []
        for word, theirs in zip(words, expected, strict=True):
            decoder.token.copy_(word)
            pairs.append((step().float().clone(), theirs))

        def steps(step=step) -> None:
            decoder.position.fill_(decoder.length)
            for _ in range(tokens):
                step()

        seconds = bench.seconds(steps, 5) / tokens
        figures = {
            "ms": seconds * 1e3,
            "share": least / seconds,
            "difference": max(((ours - theirs).abs().max() / theirs.std()).item() for ours, theirs in pairs),
            "same": sum((ours.argmax() == theirs.argmax()).item() for ours, theirs in pairs) / len(pairs),
        }
        bench.add("decode", name, **figures)


@torch.no_grad()
def generate(bench: Bench) -> None:
    config = bench.config
    visual, longest = config.num_query_tokens + 1, 8 if bench.tiny else 64
    for is_fast in (False, True):
        model = bench.build()
        model.generation_config.eos_token_id = None  # every answer has its full length
        text = model.model.language_model
        read = [*text.layers.parameters(), *text.norm.parameters(), *model.lm_head.parameters()]
        least = sum(parameter.nbytes for parameter in read) / bench.bandwidth
        if is_fast:
            optimize(model)
            if bench.tiny:
                on_cpu = CompileConfig(mode=None)
                on_cpu._compile_all_devices = True
                compile_decoding(model, on_cpu)
        for batch in (1, 8):

            def prompt(more: int = 0, batch=batch) -> dict[str, torch.Tensor]:
                ids = bench.words(batch, visual + TEXT_TOKENS + more)
                ids[:, 30 : 30 + visual] = config.image_token_id
                ids = ids.to(bench.device)
                return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": bench.pixels(batch)}

            def answer(new: int, more: int = 0, model=model, prompt=prompt) -> torch.Tensor:
                return model.generate(**prompt(more), max_new_tokens=new)

            stats = torch._dynamo.utils.counters["stats"]
            before = stats["unique_graphs"]
            first, whole = (bench.seconds(lambda new=new: answer(new), 3) for new in (1, longest + 1))
            graphs = stats["unique_graphs"] - before
            model.set_attn_implementation("eager")  # the counter sees products of matrices alone
            given = prompt()
            needed = operations(lambda model=model, given=given: model(**given, logits_to_keep=1))
            model.set_attn_implementation("sdpa")
            for more in (7, 40):
                answer(longest + more, more)
            seconds = (whole - first) / longest
            bench.add(
                "generate",
                f"batch {batch}, {'optimized' if is_fast else 'as it is'}",
                first_ms=first * 1e3,
                first_share=needed / first / bench.rate,
                ms=seconds * 1e3,
                share=least / seconds,
                graphs=graphs,
                later=stats["unique_graphs"] - before - graphs,
            )
        del model, text, read


class StepTimes(TrainerCallback):
    """When each optimizer step was done."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if not self.bench.tiny:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return statistics.median(b - a for a, b in itertools.pairwise(self.times[WARM_UP - 1 :]))


def computed_memory(bench: Bench, stage: str, rows: int, length: int, checkpointed: bool) -> float:
    """GiB, as in the table."""
    held = sum(memory.states(memory.build(bench.config, stage, torch.float32)).values())
    kept = memory.activations(memory.build(bench.config, stage, torch.bfloat16), rows, length)
    return (held + (kept.checkpointed if checkpointed else kept.whole)) / memory.GIB


def batch(bench: Bench, rows: int, length: int) -> dict[str, Any]:
    """As the data pipeline gives it: full rows, each of one image and text, and the report."""
    queries, size = bench.config.num_query_tokens + 1, bench.config.vision_config.image_size
    ids = bench.words(rows, length)
    ids[:, 1 : 1 + queries] = bench.config.image_token_id
    return {
        "input_ids": ids,
        "labels": ids,
        "attention_mask": torch.ones_like(ids),
        "use_cache": False,
        "pixel_levels": torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8),
        "report": {"lengths": [length] * rows, "worker": 0, "cursors": {}, "skipped": []},
    }


def train(bench: Bench, stage: str, rows: int, checkpointed: bool, compiled: bool) -> dict[str, float]:
    """A row of the recipe's step, of so many rows of the recipe's length."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder, "max_steps": WARM_UP + STEPS, "per_device_train_batch_size": rows,
            "global_batch_size": rows, "gradient_checkpointing": checkpointed, "report_to": "none",
            "save_strategy": "no", "disable_tqdm": True, "dataloader_num_workers": 0, "logging_steps": 1000,
            "use_cpu": bench.tiny,
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        owl, args = parse_recipe(memory.CONFIGS / f"{stage}.yaml", words)
        length = 96 if bench.tiny else owl.max_length
        if not bench.tiny:
            torch.cuda.reset_peak_memory_stats()
        model = prepare_stage(bench.build(), owl.stage, lora_dropout=0.0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if compiled:
            compile_layers(model)
        collator = ConversationCollator(MplugOwlProcessor.from_pretrained(str(CHECKPOINT)), length)
        mixture = Mixture(write_images(Path(folder), 2), collator, rows)
        times = StepTimes(bench)
        trainer = ReadyBatches(model, args, mixture, callbacks=[times])
        trainer.ready = [batch(bench, rows, length)]
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    needed = TrainingFlops(model)([length] * rows, rows)
    peak = bench.rate if bench.tiny else peak_tflops(bench.device, torch.bfloat16) * 1e12
    figures = {
        "s_a_step": times.seconds,
        "mfu": needed / times.seconds / peak,
        "share": needed / times.seconds / bench.rate,
        "computed_gib": computed_memory(bench, owl.stage, rows, length, checkpointed),
    }
    return figures if bench.tiny else {**figures, "gib": torch.cuda.max_memory_allocated() / memory.GIB}


def train_all(bench: Bench, stage: str) -> None:
    for rows, checkpointed, compiled in TRAINED[stage]:
        rows = rows // 4 if bench.tiny else rows
        name = f"{rows} rows{', checkpointed' * checkpointed}{', compiled' * compiled}"
        bench.add(stage, name, **train(bench, stage, rows, checkpointed, compiled))


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "generate": generate,
    "encode": encode,
    "decode": decode,
    "pretrain": lambda bench: train_all(bench, "pretrain"),
    "instruct": lambda bench: train_all(bench, "instruct"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--tiny", action="store_true", help="two layers of width 64, on a CPU")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bench = Bench(arguments.tiny, arguments.json)
    limits(bench)
    for name in arguments.only:
        SECTIONS[name](bench)


if __name__ == "__main__":
    main()

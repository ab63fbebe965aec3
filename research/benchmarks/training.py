"""Our training loop compared with a bare PyTorch loop, and our data pipeline with bare PIL and the same workers, on
CPU.

python research/benchmarks/training.py [--pairs 7] [--workers 2] [--json FILE]

The loop: `OwlTrainer` and a plain loop (forward, backward, clip, AdamW, schedule) train the same model on the same
ready batches, in stage 1 and in stage 2. The data: `Mixture` (row, image, random crop, resize, chat template, tokens,
labels, padding) is compared with a `DataLoader` that only decodes and resizes the same files with PIL. Both give bytes,
which become floats on the device. Runs alternate. A row gives medians in milliseconds (of a step of 8 rows, of 8
images) and the median ratio of the pairs.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from side_by_side import Report, alternate
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, TrainingArguments, get_cosine_schedule_with_warmup

from transformers_owl import MplugOwlConfig, MplugOwlForConditionalGeneration, MplugOwlProcessor
from transformers_owl.training import ConversationCollator, Mixture, OwlTrainer, prepare_stage
from transformers_owl.training.augmentation import Augmentation
from transformers_owl.training.mixture import Group, MixtureLoader


ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests/golden/image-llama/original_checkpoint"
TEXT = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0,
}  # fmt: skip
VISION = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
ABSTRACTOR = {**VISION, "encoder_hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2}
STEPS = 6
BATCH = 8


class ReadyBatches(OwlTrainer):
    """Our Trainer, fed with batches that lie in memory."""

    def get_train_dataloader(self):
        return ({**batch} for batch in itertools.cycle(self.ready))


def build(stage: str):
    torch.manual_seed(0)
    config = MplugOwlConfig(text_config=TEXT, vision_config=VISION, visual_abstractor_config=ABSTRACTOR)
    return prepare_stage(MplugOwlForConditionalGeneration(config), stage)


def write_images(folder: Path, count: int) -> dict:
    """Photographs of 640 x 480 with captions."""
    rows = []
    for number in range(count):
        name = ("cat.jpg", "astronaut.jpg")[number % 2]
        image = PIL.Image.open(ROOT / "examples/pictures" / name).convert("RGB").resize((640, 480))
        image.save(folder / f"{number}.jpg", quality=90)
        rows.append({"file_name": f"{number}.jpg", "text": "A tabby cat looks into the camera before a blurred wall."})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"a": Group.from_dict({"sources": [{"format": "captions", "path": str(folder / "captions.jsonl")}]})}


def our_loop(stage: str, mixture: Mixture, batches: list[dict], folder: str) -> float:
    """Seconds of `STEPS` optimizer steps."""
    arguments = TrainingArguments(
        folder, max_steps=STEPS + 1, learning_rate=1e-4, lr_scheduler_type="cosine", warmup_steps=2, report_to=[],
        save_strategy="no", logging_steps=3, disable_tqdm=True, use_cpu=True, per_device_train_batch_size=BATCH,
    )  # fmt: skip
    trainer = ReadyBatches(build(stage), arguments, mixture, peak_tflops=1.0)
    trainer.ready = batches
    trainer.remove_callback(PrinterCallback)
    times: list[float] = []
    step = trainer.get_batch_samples
    trainer.get_batch_samples = lambda *given: times.append(time.perf_counter()) or step(*given)
    trainer.train()
    return times[-1] - times[0]


def bare_loop(stage: str, batches: list[dict]) -> float:
    """Seconds of `STEPS` optimizer steps."""
    model = build(stage).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, STEPS + 1)
    times = []
    for batch in itertools.islice(itertools.cycle(batches), STEPS + 1):
        times.append(time.perf_counter())
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return times[-1] - times[0]


class Images(Dataset):
    """Bare PIL: decode, RGB, bicubic resize."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        with PIL.Image.open(self.paths[number]) as image:
            small = image.convert("RGB").resize((224, 224), PIL.Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small))


def seconds_of(batches, count: int) -> float:
    """Seconds for `count` batches after the first ones, which start the workers."""
    stream = iter(batches)
    for _ in range(4):
        next(stream)
    began = time.perf_counter()
    for _ in range(count):
        next(stream)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    processor = MplugOwlProcessor.from_pretrained(str(CHECKPOINT))
    processor.image_processor.size = {"height": 224, "width": 224}
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        count = 80
        groups = write_images(Path(folder), BATCH * (count + 20))
        mixture = Mixture(groups, ConversationCollator(processor, 512), BATCH, augmentation=Augmentation())
        ready = list(itertools.islice(mixture, 4))
        plain = [mixture.collator.with_pixels(batch) for batch in ready]
        for batch in plain:
            batch.pop("report")
        for stage in ("pretrain", "instruct"):
            row = alternate(
                options.pairs,
                lambda stage=stage: our_loop(stage, mixture, ready, folder) / STEPS,
                lambda stage=stage: bare_loop(stage, plain) / STEPS,
            )
            report.add(f"loop, {stage}", BATCH, torch.float32, {"beside": "a bare loop", "images": 1, **row})
        paths = sorted(Path(folder).glob("*.jpg"))
        row = alternate(
            options.pairs,
            lambda: seconds_of(MixtureLoader(mixture, options.workers), count) / count,
            lambda: seconds_of(DataLoader(Images(paths), BATCH, num_workers=options.workers), count) / count,
        )
        report.add(f"data, {options.workers} workers", BATCH, torch.uint8, {"beside": "bare PIL", "images": 1, **row})
    if options.json is not None:
        report.write(options.json)


if __name__ == "__main__":
    main()

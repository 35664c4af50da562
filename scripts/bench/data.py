"""How full rows are on real questions, and how fast batches come, beside a torch DataLoader.

    python scripts/bench/data.py [--photos FOLDER] [--tokenizer FOLDER] \
        [--questions FILE.jsonl FILE.json ...] [--output FILE.json]

Record files and official SQA3D files (with the annotations beside them) are packed into rows of
4,096 tokens. Photographs, or without any rendered rooms, become scenes of eight views, different in
every scene, which all loaders read: torch does the original's work (one question a sample; its
images decoded, resized to 448, cropped, made float tensors; text padded to 512), ours makes packed
rows: from images, from images decoded in a part of their size ("draft"), and from cached features.
Every loader runs in a process of its own, one at a time, held to as many cores as it has worker
processes (one core for none), for some seconds, in turns; medians are shown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import result
from command_line import count, new_parser, positive
from PIL import Image, ImageEnhance

from jaxvlm import entry
from jaxvlm.config import default
from jaxvlm.console import print_table
from jaxvlm.data.audit.files import audit_file
from jaxvlm.data.features.cache import (
    describe_cache,
    feature_name,
    filled_for,
    label_of,
    made_from,
)
from jaxvlm.data.features.images import known_images
from jaxvlm.data.features.shards import DTYPES, write_shard
from jaxvlm.data.pipeline import batches
from jaxvlm.data.plan import Plan
from jaxvlm.data.prep.questions import read_questions
from jaxvlm.data.record import Record, parse_record
from jaxvlm.data.records import RecordFile, write_records
from jaxvlm.data.sequence import tokenize
from jaxvlm.data.tokenizer import load_tokenizer
from jaxvlm.data.training_set import row_capacity, training_rows
from jaxvlm.data.views import RandomViews
from jaxvlm.errors import UserError

VIEWS, SIDE, PATCHES, WIDTH = 8, 448, 1029, 2048
LOADERS = ("torch", "images", "draft", "features")


def main(flags: argparse.Namespace) -> None:
    if flags.child:
        print(json.dumps(CHILDREN[flags.child](flags)))
        return
    found = {
        "photos": "given" if flags.photos else "rendered rooms",
        "image": list(flags.image),
        "scenes": flags.scenes,
        "questions_per_set": flags.questions_per_set,
        "seconds": flags.seconds,
    }
    found["fill"] = [fill(flags.tokenizer, path) for path in flags.questions]
    rows = [[str(value) for value in one.values()] for one in found["fill"]]
    columns = ("questions", "count", "image sets", "rows", "real tokens", "samples a row")
    if rows:
        print_table("Packing into rows of 4,096 tokens", columns, rows)
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        make_scenes(Path(folder), flags)
        found["copy_gigabytes_per_second"] = round(copy_rate(), 2)
        found["loaders"] = measured(Path(folder), flags)
    show(found)
    result.write(flags.output, **found)


def fill(tokenizer: str, path: str) -> dict:
    """How full the rows of the default configuration are with a file's questions."""
    data = default().data
    records = good_records(path)
    samples, _ = tokenize(records, load_tokenizer(tokenizer), "plain", 512, 128 + VIEWS)
    capacity = row_capacity(data)
    plan = Plan(
        samples,
        [(1.0, range(len(samples)))],
        capacity,
        lambda views, has_geometry: 128 + (views if has_geometry else 0),
        RandomViews(most=VIEWS, dropout=data.view_dropout),
        0,
    )
    rows = [plan.row(index) for index in range(plan.rows_in_epoch(0))]
    used = sum(plan.size(group)[0] for row in rows for group in row)
    return {
        "file": Path(path).name,
        "questions": len(samples),
        "sets": len({sample.set_id for sample in samples}),
        "rows": len(rows),
        "real_tokens": round(used / len(rows) / data.row_length, 4),
        "samples_a_row": round(len(samples) / len(rows), 1),
    }


def good_records(path: str) -> list[Record]:
    """Records of a file without what the audit finds, or of an official SQA3D file."""
    if path.endswith(".jsonl"):
        file = RecordFile(path)
        bad = audit_file(file, ["."], False).bad()
        return [file[index] for index in range(len(file)) if index not in bad]
    turn = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    return [
        parse_record(
            {
                "images": [f"{asked.scene_id}_{view}.jpg" for view in range(VIEWS)],
                "question": asked.question,
                "situation": asked.situation,
                "answer": asked.answers[0],
                "geom_token": {"R": [turn] * VIEWS, "t": [[0, 0, 0]] * VIEWS},
            },
            path,
        )
        for asked in read_questions("sqa3d", Path(path), None)
    ]


def make_scenes(folder: Path, flags: argparse.Namespace) -> None:
    """Scenes of eight views made of photographs, eight questions about each, and their features."""
    rng = np.random.default_rng(0)
    photos = [Image.open(path).convert("RGB") for path in photographs(folder, flags.photos)]
    width, height = flags.image
    entries = []
    for scene in range(flags.scenes):
        names = []
        for view in range(VIEWS):
            photo = photos[(scene + view) % len(photos)].resize((width + 40, height + 30))
            left, top = (int(rng.integers(most)) for most in (40, 30))
            photo = photo.crop((left, top, left + width, top + height))
            photo = ImageEnhance.Brightness(photo).enhance(rng.uniform(0.8, 1.2))
            names.append(f"{scene:04}_{view}.jpg")
            photo.save(folder / names[-1], quality=90)
        for question in range(flags.questions_per_set):
            text = f"Which of the things to the left of object {question} is nearest to the door?"
            situation = "I am standing in front of the desk and looking at the window."
            asked = {"question": text, "situation": situation, "answer": "chair"}
            entries.append({"images": names, "scene_id": f"scene{scene}", **asked})
    write_records(folder / "records.jsonl", entries)
    make_features(folder, rng)


def photographs(folder: Path, given: Path | None) -> list[Path]:
    """Files of photographs: those given, or pictures of a few rooms."""
    if given is None:
        given = folder / "rooms"
        command = [sys.executable, "-m", "jaxvlm.rooms", "--output", str(given), "--no-sheet"]
        command += ["--train-rooms", "2", "--val-rooms", "1", "--test-rooms", "1"]
        command += ["--views", "4", "--image-size", "448"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = sorted(given.rglob("*.jpg"))
    if not found:
        raise UserError(f"--photos {given}: there is no .jpg")
    return found


def make_features(folder: Path, rng: np.random.Generator) -> None:
    """Numbers in place of VGGT's features: reading them is as much work."""
    features = folder / "features"
    features.mkdir()
    config = settings(folder, "jaxvlm:rooms", "features")
    made = made_from(config, None)
    describe_cache(features, made, filled_for(config.data), (PATCHES, WIDTH))
    records = RecordFile(folder / "records.jsonl")
    sets = {record.images: None for record in records}
    paths = [str(folder / image) for images in sets for image in images]
    known = known_images(features, paths)
    numbers = rng.random((VIEWS * PATCHES, WIDTH), np.float32).astype(DTYPES["bfloat16"])
    for start in range(0, len(sets), 8):
        write_shard(
            features,
            {
                feature_name([known[str(folder / image)].digest for image in images]): numbers
                for images in list(sets)[start : start + 8]
            },
            label_of(made),
        )


def settings(folder: Path, tokenizer: str, loader: str):
    """Our configuration: Stage 1's, without view dropout."""
    config = default()
    config.text.tokenizer = tokenizer
    config.data.train = ({"path": str(folder / "records.jsonl"), "weight": 1.0},)
    config.data.view_dropout = 0.0
    config.data.jpeg_draft = loader == "draft"
    if loader == "features":
        config.data.features.folder = str(folder / "features")
    return config


def copy_rate() -> float:
    """Gigabytes a second that one core copies from one place in memory to another."""
    source = np.ones(2**28, np.uint8)
    target = np.zeros_like(source)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return source.nbytes / statistics.median(seconds) / 1e9


def measured(folder: Path, flags: argparse.Namespace) -> list[dict]:
    """Every loader with every number of workers, in turns."""
    cases = [(loader, workers) for workers in flags.workers for loader in LOADERS]
    runs: dict[tuple[str, int], list[dict]] = {case: [] for case in cases}
    for number in range(flags.repeats):
        for place, (loader, workers) in enumerate(cases):
            where = f"round {number + 1} of {flags.repeats}, {place + 1} of {len(cases)}"
            print(f"{where}: {loader}, workers {workers}", file=sys.stderr, flush=True)
            runs[loader, workers].append(in_a_process(folder, flags, loader, workers))
    found = []
    for (loader, workers), results in runs.items():
        rates = {
            name: round(statistics.median(result[name] for result in results), 2)
            for name in ("samples_per_second", "sets_per_second", "megabytes_per_second")
        }
        spread = [round(result["samples_per_second"], 1) for result in results]
        found.append({"loader": loader, "workers": workers, **rates, "runs": spread})
    return found


def in_a_process(folder: Path, flags: argparse.Namespace, loader: str, workers: int) -> dict:
    cores = sorted(os.sched_getaffinity(0))[: max(1, workers)]
    command = [sys.executable, __file__, "--child", loader, "--folder", str(folder)]
    command += ["--tokenizer", flags.tokenizer, "--workers", str(workers)]
    command += ["--seconds", str(flags.seconds)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return json.loads(done.stdout.splitlines()[-1])


def timed(stream, count, seconds: float) -> dict:
    """Rates of a stream of batches; `count` gives a batch's samples, image sets and bytes."""
    for _ in range(3):
        next(stream)
    total = np.zeros(3)
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        total += count(next(stream))
    samples, sets, size = total / (time.perf_counter() - started)
    return {
        "samples_per_second": samples,
        "sets_per_second": sets,
        "megabytes_per_second": size / 1e6,
    }


def ours(flags: argparse.Namespace) -> dict:
    folder = Path(flags.folder)
    config = settings(folder, flags.tokenizer, flags.child)
    rows = training_rows(config, 10**6)
    stream = batches(rows, 1, num_workers=flags.workers[0])
    large = "features" if flags.child == "features" else "images"

    def count(batch) -> tuple[int, int, int]:
        sets = int((batch["view_counts"] > 0).sum())
        return int(batch["segment_ids"].max(1).sum()), sets, batch[large][0, :sets].nbytes

    result = timed(stream, count, flags.seconds)
    stream.close()
    return result


def theirs(flags: argparse.Namespace) -> dict:
    """The original's dataset in a torch DataLoader: batches of six questions."""
    import torch
    from torch.utils.data import DataLoader, Dataset, RandomSampler

    torch.set_num_threads(1)
    folder = Path(flags.folder)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    class Questions(Dataset):
        def __init__(self):
            lines = (folder / "records.jsonl").read_text().splitlines()
            self.records = [json.loads(line) for line in lines]
            self.tokenizer = load_tokenizer(flags.tokenizer)

        def __len__(self):
            return len(self.records)

        def __getitem__(self, index):
            record = self.records[index]
            pixels = torch.stack([self.image(folder / name) for name in record["images"]])
            text = f"{record['question']}\n<image>\n{record['answer']}"
            ids = torch.tensor(self.tokenizer.encode([text])[0][:512])
            padded = torch.zeros(512, dtype=torch.long)
            padded[: len(ids)] = ids
            labels = torch.full((512,), -100)
            labels[: len(ids)] = ids
            return {
                "pixel_values": pixels,
                "input_ids": padded,
                "attention_mask": (torch.arange(512) < len(ids)).long(),
                "labels": labels,
            }

        def image(self, path):
            image = Image.open(path).convert("RGB")
            scale = SIDE / min(image.size)
            size = [max(SIDE, round(side * scale)) for side in image.size]
            image = image.resize(size, Image.Resampling.BICUBIC)
            left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
            image = image.crop((left, top, left + SIDE, top + SIDE))
            tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
            return (tensor.float().div(255) - mean) / std

    dataset = Questions()
    loader = DataLoader(
        dataset,
        batch_size=6,
        num_workers=flags.workers[0],
        sampler=RandomSampler(dataset, replacement=True, num_samples=10**6),
    )

    def count(batch) -> tuple[int, int, int]:
        pixels = batch["pixel_values"]
        return len(pixels), len(pixels), pixels.numel() * 4

    return timed(iter(loader), count, flags.seconds)


CHILDREN = {"torch": theirs, "images": ours, "draft": ours, "features": ours}


def show(found: dict) -> None:
    """Ratios to torch with as many workers, and the share of the copy rate."""
    base = {r["workers"]: r for r in found["loaders"] if r["loader"] == "torch"}
    rows = []
    for run in found["loaders"]:
        torch = base[run["workers"]]
        run["samples_ratio"] = round(run["samples_per_second"] / torch["samples_per_second"], 1)
        run["sets_ratio"] = round(run["sets_per_second"] / torch["sets_per_second"], 2)
        share = run["megabytes_per_second"] / found["copy_gigabytes_per_second"] / 1000
        run["share_of_copy_rate"] = round(share, 2)
        names = ("samples_per_second", "samples_ratio", "sets_per_second", "sets_ratio")
        numbers = [f"{run[name]:,}" for name in names]
        of_copying = f"{share:.0%}" if run["loader"] == "features" else ""
        rows.append((run["loader"], str(run["workers"]), *numbers, of_copying))
    columns = (
        "loader",
        "workers",
        "questions/s",
        "× torch",
        "image sets/s",
        "× torch",
        "of copying",
    )
    print_table(
        f"Loaders; one core copies {found['copy_gigabytes_per_second']} GB/s", columns, rows
    )


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__file__, __doc__)
    flags.add_argument("--tokenizer", default="jaxvlm:rooms", help="a folder, or jaxvlm:rooms")
    flags.add_argument("--questions", nargs="*", default=[], help="files to pack into rows")
    flags.add_argument(
        "--photos", type=Path, help="folder of photographs (default: rendered rooms)"
    )
    flags.add_argument("--image", nargs=2, type=int, default=(640, 480), help="size of the views")
    flags.add_argument("--scenes", type=count, default=24, help="rooms that are rendered")
    flags.add_argument("--questions_per_set", type=count, default=8, help="in a row")
    flags.add_argument(
        "--workers", nargs="+", type=int, default=[0, 1, 2], help="processes that read"
    )
    flags.add_argument("--seconds", type=positive, default=8.0, help="of every run")
    flags.add_argument("--repeats", type=count, default=3, help="how often each is measured")
    flags.add_argument("--folder", type=Path, help="for temporary files (default: the system's)")
    flags.add_argument("--child", choices=LOADERS, help=argparse.SUPPRESS)
    return flags


if __name__ == "__main__":
    entry.run(parser(), main, configured=False)

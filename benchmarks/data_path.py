"""Images per second of the data path, with the crop cache and without it, on one thread.

With: `Batches` over the memory map, augmented, as a client trains. Without: each image is decoded and
cropped anew from its file for every epoch, then takes the same way. The shape is that of `make run`: 64 x 64
inputs in batches of 32.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.table import Table

from benchmarks import output
from fedgh_app.pose.data.augmentation import Augmentation
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.data.cache import CropCache, cut, open_cache
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.models import PoseNet
from fedgh_app.pose.models.losses import HeatmapCrossEntropy
from fedgh_app.pose.readers import read_records
from fedgh_app.pose.training import train

INPUT_SIZE = (64, 64)
BATCH_SIZE = 32
AUGMENTATION = Augmentation(rotation_deg=30, scale=0.25, translate=0.05, flip_probability=0.5)
STRONG = Augmentation(  # conf/augmentation/strong.yaml
    rotation_deg=45,
    scale=0.35,
    translate=0.05,
    flip_probability=0.5,
    half_body_probability=0.3,
    occlusion_probability=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
)


def measure(root: Path, *, dataset: str = "arm", repeats: int = 3, limit: int = 512) -> dict[str, Any]:
    """Rates on the data set under `root`, the best of `repeats` passes; at most `limit` images without cache.

    The cache is built afresh in a temporary folder, so that its building is measured too. Thread counts of
    torch and OpenCV are 1 while it runs, and restored.
    """
    spec = load_spec(dataset)
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            cache = open_cache(spec, root, input_size=INPUT_SIZE, directory=Path(folder))
            build = time.perf_counter() - start
            opening = _best(lambda: open_cache(spec, root, input_size=INPUT_SIZE, directory=Path(folder)), repeats)
            train = cache.indices("train")
            options: dict[str, Any] = {"batch_size": BATCH_SIZE, "seed": 0}
            augmented = Batches(cache, train, augmentation=AUGMENTATION, shuffle=True, **options)
            strong = Batches(cache, train, augmentation=STRONG, shuffle=True, **options)
            plain = Batches(cache, train, shuffle=False, **options)
            records, _ = read_records(spec, root)
            few = min(limit, len(records))
            uncached = _best(lambda: _without_cache(cache, records[:few]), repeats)
            return {
                "dataset": dataset,
                "images": len(cache),
                "input_size": list(INPUT_SIZE),
                "batch_size": BATCH_SIZE,
                "build_seconds": build,
                "open_seconds": opening,
                "cache_bytes": int(cache.crops.nbytes),
                "cached_augmented_per_second": len(train) / _best(lambda: _consume(augmented), repeats),
                "cached_strong_per_second": len(train) / _best(lambda: _consume(strong), repeats),
                "cached_plain_per_second": len(train) / _best(lambda: _consume(plain), repeats),
                "uncached_augmented_per_second": few / uncached,
                "training_per_second": _training_rate(augmented, repeats),
            }
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def _best(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs, after one that warms the page cache."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _consume(batches: Batches) -> float:
    return sum(float(batch.images[0, 0, 0, 0]) for batch in batches)


def _without_cache(cache: CropCache, records: list[Any]) -> float:
    """One augmented pass in which each batch's crops are cut from the image files first."""
    total = 0.0
    for start in range(0, len(records), BATCH_SIZE):
        part = records[start : start + BATCH_SIZE]
        crops = np.stack([cut(record, INPUT_SIZE)[0] for record in part])
        positions = slice(start, start + len(part))
        fresh = CropCache(
            crops=crops,
            keypoints=cache.keypoints[positions],
            visible=cache.visible[positions],
            reference_length=cache.reference_length[positions],
            to_image=cache.to_image[positions],
            split=cache.split[positions],
            group=cache.group[positions],
            ids=cache.ids[positions],
            images=cache.images[positions],
            attributes={},
            bad=[],
            spec=cache.spec,
            input_size=cache.input_size,
            fingerprint=cache.fingerprint,
        )
        options: dict[str, Any] = {"batch_size": BATCH_SIZE, "seed": 0, "shuffle": True}
        total += _consume(Batches(fresh, range(len(part)), augmentation=AUGMENTATION, **options))
    return total


def _training_rate(batches: Batches, repeats: int, count: int = 6) -> float:
    """Images per second that training consumes: the model of `make run`, batches already in memory."""
    held = list(itertools.islice(batches, count))
    model = PoseNet("resnet18", held[0].keypoints.shape[1], head_width=64)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loss = HeatmapCrossEntropy()
    train(model, held[:1], loss, optimizer, epochs=1)  # warm
    return sum(map(len, held)) / _best(lambda: train(model, held, loss, optimizer, epochs=1), repeats)


def table(result: dict[str, Any]) -> Table:
    """The result of `measure` for the eye."""
    title = f"Data path, {result['images']} images of {result['dataset']}, one thread"
    view = output.empty_table(title, ("way", "images/s", "µs/image"))
    for way, key in (
        ("cache, augmented", "cached_augmented_per_second"),
        ("cache, augmented strongly", "cached_strong_per_second"),
        ("cache, as is", "cached_plain_per_second"),
        ("no cache, augmented", "uncached_augmented_per_second"),
        ("what training consumes", "training_per_second"),
    ):
        view.add_row(way, f"{result[key]:,.0f}", f"{1e6 / result[key]:,.1f}")
    view.caption = (
        f"cache built in {result['build_seconds']:.2f} s, {result['cache_bytes'] / 2**20:.0f} MiB, "
        f"opened in {1e3 * result['open_seconds']:.1f} ms"
    )
    return view


def main() -> None:
    """Generate the arm set in a temporary folder, measure, print."""
    from fedgh_app.pose.arms.generated import generate

    options = output.parser("data_path", __doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "arm"
        generate(root, count=2060, seed=0)
        result = measure(root)
    output.show(options.json, result, table(result))


if __name__ == "__main__":
    main()

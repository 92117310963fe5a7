"""What heterogeneous heatmap distillation gains on generated arms: PCK and latency of a light integral student.

    python -m benchmarks.hhd_ablation [--folder DIR] [--seeds 0 1 2] [--json FILE]

Federations of four clients, one viewpoint each, images of 64 x 64, FedAvg, in this process on one thread:

- the teacher, a ResNet-18 with heatmaps, once;
- for every seed the start, a light heatmap model (ShuffleNetV2 x0.5): from scratch an integral student of so few images
  and rounds does not yet learn anything that could be compared;
- for every seed three integral students that go on from it: alone, with plain heatmap distillation (nothing normalised,
  nothing cropped) and with HHD.

Finished runs in the folder are taken as they are, so an interrupted ablation goes on where it was. Needs the data set:
`fedgh data arm`. Some forty minutes on one core.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import output
from fedgh_app.config.compose import quoted
from fedgh_app.pose.models.decoding import decoder
from fedgh_app.runs import storage
from fedgh_app.runs.opening import load_run
from fedgh_app.runtimes.launcher import launch

FEDERATION = (
    *("runtime=inprocess", "dataset=arm", "partition=natural", "strategy=fedavg", "strategy.report_conflicts=false"),
    *("tracking=none", "evaluate.clients_every=0", "dataset.input_size=[64,64]"),
)
TEACHER = (
    *("model=pose_resnet18", "model.head_width=64", "seed=0"),
    *("rounds=8", "local_epochs=3", "schedule=cosine"),
)
LIGHT = ("model=shufflenet_v2", "model.backbone=shufflenet_v2_x0_5")
START = (*LIGHT, "rounds=4", "local_epochs=3")
STUDENT = (*LIGHT, "model.head=integral", "loss=integral", "rounds=3", "local_epochs=2")
# The best weight of those tried on one further seed (docs/hhd.md).
PLAIN = ("teacher.normalise=false", "teacher.unbiased_crop=false", "teacher.loss=l2", "teacher.weight=0.01")
HHD = ("teacher.weight=0.1",)


@dataclass(frozen=True)
class Row:
    """One way to train: PCK@0.2 on the held-out images by seed, and milliseconds of CPU time for one image."""

    name: str
    pck: list[float]
    milliseconds: float


def ablation(folder: Path, seeds: list[int]) -> list[Row]:
    """Run what is not there yet, and measure."""
    teacher = run(folder / "teacher", *TEACHER)
    starts = {seed: run(folder / f"start-s{seed}", *START, f"seed={seed}") for seed in seeds}
    ways: dict[str, tuple[str, ...]] = {
        "integral alone": (),
        "integral + plain heatmap distillation": (*taught(teacher), *PLAIN),
        "integral + HHD": (*taught(teacher), *HHD),
    }
    found = {"heatmap teacher, ResNet-18": [teacher], "heatmap start, ShuffleNetV2 x0.5": list(starts.values())}
    for name, more in ways.items():
        slug = name.replace("integral", "").strip(" +").lower().replace(" ", "-")
        found[name] = [
            run(folder / f"{slug}-s{seed}", *STUDENT, f"init={quoted(starts[seed])}", f"seed={seed}", *more)
            for seed in seeds
        ]
    milliseconds = latencies({name: runs[0] for name, runs in found.items()})
    return [
        Row(name, [storage.read_json(one / "result.json")["pck"] for one in runs], milliseconds[name])
        for name, runs in found.items()
    ]


def taught(teacher: Path) -> tuple[str, ...]:
    """The overrides that set a student under a teacher."""
    return "teacher=hhd", f"teacher.run={quoted(teacher)}"


def run(directory: Path, *overrides: str) -> Path:
    """A finished run of these overrides, made where it is not there yet."""
    if not (directory / "result.json").exists():
        begin = time.perf_counter()
        result = launch([*FEDERATION, *overrides], directory, quiet=True)
        seconds = time.perf_counter() - begin
        Console().print(f"{directory.name}: PCK {100 * (result.score or 0):.1f} %, {seconds:.0f} s", style="dim")
    return directory


def latencies(runs: dict[str, Path], repeats: int = 60) -> dict[str, float]:
    """Median milliseconds of CPU time for one image, from pixels to keypoints, on one thread, interleaved."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        loaded = {name: load_run(path) for name, path in runs.items()}
        decoders = {
            name: decoder(one.model, one.values["evaluate"]["decoding"], one.loss) for name, one in loaded.items()
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            for _ in range(repeats):
                for name, one in loaded.items():
                    begin = time.process_time()
                    decoders[name](one.model(image), (64, 64))
                    times[name].append(1e3 * (time.process_time() - begin))
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(found) for name, found in times.items()}


def table(found: list[Row]) -> Table:
    """The rows for the eye."""
    title = "PCK@0.2 on arm (%), and latency of one image of 64 x 64 on one thread"
    view = output.empty_table(title, ("", "PCK, mean ± sd", "by seed", "ms"))
    for row in found:
        values = [100 * value for value in row.pck]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        each = ", ".join(f"{value:.1f}" for value in values) if len(values) > 1 else ""
        view.add_row(row.name, f"{statistics.mean(values):.1f}{spread}", each, f"{row.milliseconds:.1f}")
    return view


def main() -> None:
    """Run, print a table and write JSON."""
    parser = output.parser("hhd_ablation", __doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/hhd-ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    found = ablation(options.folder.resolve(), options.seeds)
    output.show(options.json, found, table(found), width=120)


if __name__ == "__main__":
    main()

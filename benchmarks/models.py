"""What every choice of `model` costs: parameters, multiply-adds, latency of one image, bytes of a round.

    python -m benchmarks.models [--size HEIGHT WIDTH] [--repeats N] [--json FILE]

Sixteen keypoints, as MPII has. Multiply-adds are those of convolutions and matrix products, half of what
`torch.utils.flop_counter` counts; normalisation, activations and pooling are not in it. Latency is of a batch of one
image on one thread, by PyTorch as it is (no compilation) and by ONNX Runtime on the exported file: the process's CPU
time, which is what passes on a core of its own, and hardly more on a busy machine. It is the median over repeats; each
times every model by both, after a call that is not timed, so that what else runs bears on all alike. Bytes are of the
arrays of a round's messages with one client, with ``sharing=all``: the model comes to be trained, goes back, and the
next one comes to be evaluated (``evaluate.clients_every=1``).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from flwr.app import ArrayRecord, RecordDict
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import output
from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.config.compose import compose_config
from fedgh_app.grids.screening import array_bytes
from fedgh_app.pose.data.records import load_spec
from fedgh_app.pose.models.heatmaps import Size
from fedgh_app.pose.prediction.export import to_onnx

CHOICES = (
    "model=pose_resnet50",
    "model=pose_resnet34",
    "model=pose_resnet18",
    "model=pose_resnet18 model.head_width=64",
    "model=mobilenet_v3_large",
    "model=mobilenet_v3_small",
    *(f"model=shufflenet_v2 model.backbone=shufflenet_v2_x{width}" for width in ("2_0", "1_5", "1_0", "0_5")),
    "model=timm",
    "model=timm model.backbone=timm:lcnet_050",
)


@dataclass(frozen=True)
class Cost:
    """Of one choice: numbers of parameters, multiply-adds of an image, seconds of an image, bytes of a round."""

    choice: str
    parameters: int
    head_parameters: int
    multiply_adds: int
    torch_seconds: float
    onnx_seconds: float
    bytes_down: int
    bytes_up: int


def measure(choices: tuple[str, ...] = CHOICES, size: Size = (256, 256), repeats: int = 15) -> list[Cost]:
    """The costs of each choice, in their order; torch runs on one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        nets = {choice: build(choice).eval() for choice in choices}
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            calls = [_calls(net, size, Path(folder) / "net.onnx") for net in nets.values()]
            seconds: list[tuple[list[float], ...]] = [([], []) for _ in calls]
            for _ in range(repeats):
                for pair, found in zip(calls, seconds, strict=True):
                    for call, times in zip(pair, found, strict=True):
                        times.append(_seconds(call))
    finally:
        torch.set_num_threads(threads)
    medians = [[statistics.median(times) for times in found] for found in seconds]
    return [_cost(choice, net, size, *medians[i]) for i, (choice, net) in enumerate(nets.items())]


def build(choice: str) -> nn.Module:
    """The model of a choice as a run builds it, for MPII's keypoints."""
    config = compose_config(["dataset=mpii", "partition=iid", *choice.split()])
    return ClientAssembly(config).build_model(load_spec("mpii"))


def multiply_adds(net: nn.Module, size: Size) -> int:
    """Of convolutions and matrix products, for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, *size))
    return counter.get_total_flops() // 2


def _cost(choice: str, net: nn.Module, size: Size, torch_seconds: float, onnx_seconds: float) -> Cost:
    model = array_bytes(RecordDict({"arrays": ArrayRecord(net.state_dict())}))
    head = net.get_submodule("head")
    return Cost(
        choice,
        parameters=sum(p.numel() for p in net.parameters()),
        head_parameters=sum(p.numel() for p in head.parameters()),
        multiply_adds=multiply_adds(net, size),
        torch_seconds=torch_seconds,
        onnx_seconds=onnx_seconds,
        bytes_down=2 * model,
        bytes_up=model,
    )


def _calls(net: nn.Module, size: Size, path: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    """One image through PyTorch, and through ONNX Runtime; raises AssertionError where they differ."""
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    to_onnx(net, size, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    found = torch.from_numpy(session.run(None, feed)[0])
    torch.testing.assert_close(found, net(images), rtol=1e-3, atol=1e-5)
    return lambda: net(images), lambda: session.run(None, feed)


def _seconds(call: Callable[[], object]) -> float:
    call()
    begin = time.process_time()
    call()
    return time.process_time() - begin


HEADINGS = ("", "parameters, M", "of the head, M", "multiply-adds, G", "PyTorch, ms", "ONNX Runtime, ms", "a round, MB")


def cells(cost: Cost) -> tuple[str, ...]:
    """A row under `HEADINGS`."""
    return (
        cost.choice,
        f"{cost.parameters / 1e6:.2f}",
        f"{cost.head_parameters / 1e6:.2f}",
        f"{cost.multiply_adds / 1e9:.2f}",
        f"{1e3 * cost.torch_seconds:.1f}",
        f"{1e3 * cost.onnx_seconds:.1f}",
        f"{(cost.bytes_down + cost.bytes_up) / 1e6:.1f}",
    )


def markdown(costs: list[Cost]) -> str:
    """The table of docs/models.md."""
    rules = ("---", *("--:" for _ in HEADINGS[1:]))
    rows = [(f"`{first}`", *rest) for first, *rest in map(cells, costs)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (HEADINGS, rules, *rows))


def conditions(size: Size, repeats: int) -> str:
    """Where and how it was measured, in a line."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    cpu = names[0].partition(":")[2].strip() if names else platform.processor()
    return (
        f"input {size[0]} x {size[1]}, 16 keypoints, one thread of {cpu}, torch {torch.__version__}, "
        f"ONNX Runtime {onnxruntime.__version__}, median of {repeats}, load {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    """Measure, print a table, write it as Markdown and JSON."""
    parser = output.parser("models", __doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    size = (options.size[0], options.size[1])
    choices = tuple(c for c in CHOICES if not c.startswith("model=timm") or importlib.util.find_spec("timm"))
    costs = measure(choices, size, options.repeats)
    said = conditions(size, options.repeats)
    view = output.empty_table("Models", HEADINGS)
    view.caption = said
    for cost in costs:
        view.add_row(*cells(cost))
    output.show(options.json, {"conditions": said, "models": costs}, view, width=150)
    options.json.with_suffix(".md").write_text(f"{markdown(costs)}\n{said}\n")


if __name__ == "__main__":
    main()

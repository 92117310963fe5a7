"""Time and peak memory of one ``aggregate_train``, ours next to Flower's and to projections in vector space.

Every method gets the same reply messages and returns a whole new ArrayRecord. Repeats are interleaved, so
that a busy machine slows all methods alike; a ratio is the median over the repeats of a method's seconds to
those of Flower's FedAvg in the same repeat. Peak memory is the growth of the process's peak resident set over
what it held before the call, replies included, in models: it sees NumPy and torch alike. Freed heap is handed
back to the system and the peak is reset first (Linux only; left out elsewhere).

    python -m benchmarks.aggregation [--quick] [--json FILE]
"""

import itertools
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from rich.table import Table
from torchjd.aggregation import PCGrad
from torchvision.models import resnet18, resnet50

from benchmarks import output
from benchmarks.memory import peak_bytes
from strategies import FedAvg, FedAW, FedGH
from strategies.updates import RUNNING_STATISTICS

REFERENCE = "Flower FedAvg"
CLIENTS = (4, 10, 20)
MEMORY_LIMIT = 20 * 1024**3
SLOW_SECONDS = 4.0  # what takes longer is run once
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Measurement:
    """One method on one round. ``seconds`` is a median; ``peak_models`` is memory beyond the replies."""

    parameters: int
    clients: int
    method: str
    seconds: float | None = None
    ratio: float | None = None
    peak_models: float | None = None
    note: str = ""


def pose_resnet_shapes(depth: int, head_width: int, narrow: float = 1.0) -> Shapes:
    """Return the state dict's shapes of a ResNet with three 4x4 deconvolutions, three keypoints."""
    with torch.device("meta"):
        backbone = {18: resnet18, 50: resnet50}[depth]()
    shapes = {
        f"backbone.{name}": tuple(int(size * narrow) if size >= 64 else size for size in value.shape)
        for name, value in backbone.state_dict().items()
        if not name.startswith("fc.")
    }
    width = int((512 if depth == 18 else 2048) * narrow)
    for layer in range(3):
        shapes[f"head.{layer}.deconv.weight"] = (width, head_width, 4, 4)
        for entry in ("weight", "bias", *RUNNING_STATISTICS):
            shapes[f"head.{layer}.bn.{entry}"] = (head_width,)
        shapes[f"head.{layer}.bn.num_batches_tracked"] = ()
        width = head_width
    return shapes | {"head.final.weight": (3, head_width, 1, 1), "head.final.bias": (3,)}


MODELS: dict[str, Shapes] = {
    "1.6 M": pose_resnet_shapes(18, 24, narrow=3 / 8),
    "11.8 M": pose_resnet_shapes(18, 64),
    "34 M": pose_resnet_shapes(50, 256),
}


def count(shapes: Shapes) -> int:
    """Return the number of elements of a state dict."""
    return sum(math.prod(shape) for shape in shapes.values())


class Round:
    """A model that was sent and the replies of K clients whose updates are as good as independent."""

    def __init__(self, shapes: Shapes, clients: int) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.shapes, self.clients = shapes, clients
        # One pool of noise, read from another place by each client: drawing K models takes longer than all
        # else.
        noise = np.random.default_rng(0).standard_normal(count(shapes) + 1009 * (clients + 1), np.float32)
        self.sent = self._record(lambda where, n: 0.05 * noise[where : where + n])
        self.replies = [self._reply(k, noise) for k in range(clients)]

    def _record(self, values: Callable[[int, int], np.ndarray]) -> ArrayRecord:
        record, where = ArrayRecord(), 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            if name.endswith("num_batches_tracked"):
                record[name] = Array(np.asarray(where % 1000))
            else:
                value = values(where, size).reshape(shape)
                record[name] = Array(np.abs(value) + 1e-3 if name.endswith("running_var") else value)
            where += size
        return record

    def _reply(self, client: int, noise: np.ndarray) -> Message:
        shift = 1009 * (client + 1)

        def trained(where: int, n: int) -> np.ndarray:
            return 0.05 * noise[where : where + n] + 0.01 * noise[where + shift : where + shift + n]

        metrics = MetricRecord({"num-examples": 100 + client, "loss": 0.5})
        content = RecordDict({"arrays": self._record(trained), "metrics": metrics})
        return Message(content, reply_to=Message(RecordDict(), client + 1, "train"))

    def strategy(self, strategy: FedAvg) -> Callable[[], object]:
        """Return the strategy's aggregation, after it has sent the model."""
        grid: Any = SimpleNamespace(get_node_ids=lambda: range(1, self.clients + 1))
        strategy.configure_train(1, self.sent, ConfigRecord(), grid)
        return lambda: strategy.aggregate_train(1, self.replies)

    def parameter_names(self) -> list[str]:
        """Return the tensors that vector-space methods project."""
        skipped = (*RUNNING_STATISTICS, "num_batches_tracked")
        return [name for name in self.shapes if not name.endswith(skipped)]

    def stacked(self) -> torch.Tensor:
        """Return the updates as the rows of one (K, P) matrix."""
        names = self.parameter_names()
        matrix = np.empty((self.clients, sum(math.prod(self.shapes[name]) for name in names)), np.float32)
        where = 0
        for name in names:
            start = self.sent[name].numpy().ravel()
            for row, reply in zip(matrix, self.replies, strict=True):
                trained = reply.content.array_records["arrays"][name].numpy().ravel()
                np.subtract(trained, start, out=row[where : where + start.size])
            where += start.size
        return torch.from_numpy(matrix)

    def moved(self, update: torch.Tensor) -> ArrayRecord:
        """Return the sent model plus an update (P,); buffers are the first client's, the cheapest way."""
        record, where = self.replies[0].content.array_records["arrays"].copy(), 0
        for name in self.parameter_names():
            start = self.sent[name].numpy()
            step = update[where : where + start.size].numpy().reshape(start.shape)
            record[name] = Array(np.asarray(start + step))
            where += start.size
        return record


def torchjd_pcgrad(of: Round) -> ArrayRecord:
    """Aggregate with TorchJD's PCGrad on the stacked matrix."""
    return of.moved(PCGrad()(of.stacked()) / of.clients)


def vector_pcgrad(of: Round) -> ArrayRecord:
    """Aggregate with PCGrad as its paper writes it, on vectors of model size."""
    original = of.stacked()
    total = torch.zeros_like(original[0])
    squared = [update @ update for update in original]
    for i, update in enumerate(original):
        projected = update.clone()
        for j in torch.randperm(of.clients).tolist():
            if j != i and (inner := projected @ original[j]) < 0:
                projected.sub_(original[j], alpha=(inner / squared[j]).item())
        total += projected
    return of.moved(total / of.clients)


def methods(of: Round) -> dict[str, Callable[[], object]]:
    """Return what is compared, by name."""
    return {
        REFERENCE: lambda: flower.FedAvg().aggregate_train(1, of.replies),
        "FedAvg": of.strategy(FedAvg(report_conflicts=False)),
        "FedAvg, conflicts reported": of.strategy(FedAvg()),
        "FedAW": of.strategy(FedAW()),
        "FedGH (model)": of.strategy(FedGH()),
        "FedGH (layer)": of.strategy(FedGH(granularity="layer")),
        "TorchJD PCGrad, stacked": lambda: torchjd_pcgrad(of),
        "vector-space PCGrad": lambda: vector_pcgrad(of),
    }


IN_VECTOR_SPACE = ("TorchJD PCGrad, stacked", "vector-space PCGrad")


def needed_bytes(shapes: Shapes, clients: int, method: str) -> int:
    """Estimate what a case needs: models sent, replied and returned; in vector space two matrices too."""
    models = 3 + clients + (2 * clients if method in IN_VECTOR_SPACE else 0)
    return 4 * count(shapes) * models


def available_bytes() -> int:
    """Return what the machine has to give, at most ``MEMORY_LIMIT``."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return min(MEMORY_LIMIT, int(fields["MemAvailable"].split()[0]) * 1024 * 9 // 10)
    except (OSError, KeyError):
        return MEMORY_LIMIT


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure_round(shapes: Shapes, clients: int, repeats: int) -> list[Measurement]:
    """Measure every method that fits the memory on one round."""
    parameters, room = count(shapes), available_bytes()
    if needed_bytes(shapes, clients, REFERENCE) > room:
        return [Measurement(parameters, clients, "all", note="skipped: does not fit in memory")]
    of = Round(shapes, clients)
    calls = methods(of)
    skipped = [name for name in calls if needed_bytes(shapes, clients, name) > room]
    calls = {name: call for name, call in calls.items() if name not in skipped}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    calls["FedGH (layer)"]()  # threads, buffers and code are warm from here on
    for _ in range(repeats):
        for name, call in calls.items():
            if not seconds[name] or seconds[name][0] < SLOW_SECONDS or name == REFERENCE:
                seconds[name].append(_seconds(call))
    model = sum(len(array.data) for array in of.sent.values())
    found = []
    for name, call in calls.items():
        peak = peak_bytes(call)
        pairs = zip(seconds[name], seconds[REFERENCE], strict=False)
        found.append(
            Measurement(
                parameters,
                clients,
                name,
                seconds=statistics.median(seconds[name]),
                ratio=statistics.median(mine / reference for mine, reference in pairs),
                peak_models=None if peak is None else peak / model,
                note="" if len(seconds[name]) == repeats else f"{len(seconds[name])} of {repeats} repeats",
            )
        )
    return found + [Measurement(parameters, clients, name, note="skipped: does not fit in memory") for name in skipped]


def measure(
    models: Iterable[str] = tuple(MODELS), clients: Sequence[int] = CLIENTS, repeats: int = 5
) -> list[Measurement]:
    """Measure every method on every model and number of clients."""
    found: list[Measurement] = []
    logging.getLogger("flwr").setLevel(logging.WARNING)
    for name in models:
        for size in clients:
            found += measure_round(MODELS[name], size, repeats)
    return found


def table(found: Sequence[Measurement]) -> Table:
    """Lay the measurements out for reading."""
    title = f"One aggregate_train, {torch.get_num_threads()} torch threads"
    headings = ("parameters", "clients", "method", "seconds", "x Flower FedAvg", "peak, models", "note")
    shown = output.empty_table(title, headings, left=("method", "note"))
    for last, m in zip([None, *found], found, strict=False):
        if last and (last.parameters, last.clients) != (m.parameters, m.clients):
            shown.add_section()
        numbers = [
            "-" if value is None else format(value, ".3f" if value is m.seconds else ".2f")
            for value in (m.seconds, m.ratio, m.peak_models)
        ]
        shown.add_row(f"{m.parameters / 1e6:.1f} M", str(m.clients), m.method, *numbers, m.note)
    return shown


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = output.parser("aggregation", __doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest model, few clients; under half a minute")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    options = parser.parse_args()
    if options.quick:
        options.models, options.clients, options.repeats = ["1.6 M"], [4, 10], 3
    console, found = Console(width=120), []
    for model, clients in itertools.product(options.models, options.clients):
        console.print(f"{model} parameters, {clients} clients", style="dim")
        found += measure([model], [clients], options.repeats)
        # After each round: the whole takes minutes, and what is measured should outlive an interruption.
        output.write(options.json, found)
    console.print(table(found))


if __name__ == "__main__":
    main()

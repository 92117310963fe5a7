"""Memory and seconds of a round by how many clients there are, and how many of them are asked.

    python -m benchmarks.scale [--points 10:10 100:10 …] [--rounds N] [--json FILE]

Each point, ``clients:asked``, is one run of the real simulation (``fedgh run`` without its terminal): ShuffleNetV2
under a head of 224 channels (1.6 M parameters) on generated arms at 32 x 32, four images a client, three of them or so
to train on; as many clients test the next model as trained. Not part of `make bench`, since it takes some minutes.

Memory is read from outside, five times a second. That of a process is its unique set (USS): what would be free if it
ended. *Server* is the process of the ServerApp, which in a simulation also holds Flower's message store; *actors* are
Ray's processes that train. *All* is the proportional set (PSS) of all processes that the run started, Ray's shared
memory with it, at one moment. Libraries alone take some hundred MB of each, so it is the differences that tell.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks import output
from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.config.compose import compose_config, fedgh_home
from fedgh_app.pose.arms.generated import generate
from fedgh_app.runs import storage
from fedgh_app.runtimes.launcher import launch
from fedgh_app.vision.threads import usable_cores

IMAGES_A_CLIENT = 4
PERIOD_SECONDS = 0.2
POINTS = ("10:10", "100:10", "1000:10", "1000:100")
MODEL = ("model=shufflenet_v2", "model.head_width=224")
OVERRIDES = (
    *MODEL,
    "dataset=arm",
    "dataset.input_size=[32,32]",
    "partition=iid",
    "batch_size=8",
    "evaluate.central_every=0",
    "keep_checkpoints=1",
    "tracking=none",
)
PHASES = ("train", "aggregate", "evaluate_clients", "total")


@dataclass(frozen=True)
class Cost:
    """Of one point. Bytes are peaks; seconds are of a round, medians, and ``start`` of the first questions to all."""

    clients: int
    asked: int
    server: int
    actor: int
    actors: int
    everything: int
    start: float
    phases: dict[str, float]
    history_line: int


@dataclass
class Peaks:
    """Largest seen, in bytes."""

    server: int = 0
    actor: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    actors: int = 0
    everything: int = 0


@contextmanager
def sampled() -> Iterator[Peaks]:
    """Watch the processes that this one starts inside the block."""
    peaks, ended = Peaks(), threading.Event()

    def watch() -> None:
        while not ended.wait(PERIOD_SECONDS):
            _sample(peaks)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def _sample(peaks: Peaks) -> None:
    everything = actors = 0
    for process in psutil.Process().children(recursive=True):
        try:
            command, memory = " ".join(process.cmdline()), process.memory_full_info()
        except psutil.Error:
            continue  # it ended meanwhile
        everything += memory.pss
        if "flwr-simulation" in command:
            peaks.server = max(peaks.server, memory.uss)
        elif "ClientAppActor" in command:
            actors += memory.uss
            peaks.actor[process.pid] = max(peaks.actor[process.pid], memory.uss)
    peaks.actors, peaks.everything = max(peaks.actors, actors), max(peaks.everything, everything)


def measure(clients: int, asked: int, rounds: int) -> Cost:
    """One run."""
    root = fedgh_home() / "data" / f"arm-{clients}"
    generate(root, count=IMAGES_A_CLIENT * clients, image_size=(64, 64))
    share = asked / clients
    overrides = [
        *OVERRIDES,
        f"dataset.root={root}",
        f"num_clients={clients}",
        f"rounds={rounds}",
        f"selection.fraction={share}",
        f"evaluate.clients_fraction={share}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with sampled() as peaks:
            result = launch(overrides, run, quiet=True)
        history = storage.read_lines(run / "history.jsonl")[1:]
        line = max(map(len, (run / "history.jsonl").read_text().splitlines()))
    return Cost(
        clients,
        asked,
        peaks.server,
        max(peaks.actor.values()),
        peaks.actors,
        peaks.everything,
        result.seconds.total - result.seconds.rounds,
        {name: statistics.median(line["seconds"].get(name, 0.0) for line in history) for name in PHASES},
        line,
    )


def parameters() -> int:
    """Of the model."""
    assembly = ClientAssembly(compose_config(list(OVERRIDES)))
    return sum(parameter.numel() for parameter in assembly.build_model(assembly.data.first.spec).parameters())


HEADINGS = (
    "clients",
    "asked",
    "server, MB",
    "largest actor, MB",
    "actors, MB",
    "all, MB",
    "start, s",
    "train, s",
    "aggregate, s",
    "evaluate, s",
    "round, s",
)


def cells(cost: Cost) -> tuple[str, ...]:
    """A row under `HEADINGS`."""
    memory = (cost.server, cost.actor, cost.actors, cost.everything)
    return (
        f"{cost.clients}",
        f"{cost.asked}",
        *(f"{value / 1e6:.0f}" for value in memory),
        f"{cost.start:.1f}",
        *(f"{cost.phases[name]:.2f}" for name in PHASES),
    )


def markdown(costs: list[Cost]) -> str:
    """The table of docs/scale.md."""
    rows = (HEADINGS, ("--:",) * len(HEADINGS), *map(cells, costs))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """Measure, print a table, write it as Markdown and JSON."""
    parser = output.parser("scale", __doc__)
    parser.add_argument("--points", nargs="+", default=list(POINTS), metavar="CLIENTS:ASKED")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    console, costs, loads = Console(width=140), [], [os.getloadavg()[0]]
    for point in options.points:
        clients, asked = map(int, point.split(":"))
        console.print(f"{clients} clients, {asked} asked", style="dim")
        costs.append(measure(clients, asked, options.rounds))
        loads.append(os.getloadavg()[0])
        said = (
            f"{parameters() / 1e6:.3f} M parameters, {options.rounds} rounds, {usable_cores()} cores, "
            f"load {min(loads):.1f} to {max(loads):.1f}"
        )
        # After each point: the whole takes minutes, and what is measured should outlive an interruption.
        output.write(options.json, {"conditions": said, "points": costs})
        options.json.with_suffix(".md").write_text(f"{markdown(costs)}\n{said}\n")
    table = output.empty_table("By clients", HEADINGS, left=())
    table.caption = said
    for cost in costs:
        table.add_row(*cells(cost))
    console.print(table)


if __name__ == "__main__":
    main()

"""Simulation efficiency: what the rounds of a federation cost beside the training in them.

Plain PyTorch trains the same batches, already in memory, in as many processes as the simulation has actors, on the same
cores. Efficiency is its seconds over the wall seconds of the rounds, which hold messages, aggregation, evaluation,
checkpoints and history.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig
from rich.table import Table

from benchmarks import output
from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.config.compose import compose_config, fedgh_home
from fedgh_app.data import partition
from fedgh_app.pose.arms.generated import generate
from fedgh_app.pose.data.batches import Batches
from fedgh_app.pose.data.cache import CropCache
from fedgh_app.pose.data.records import load_spec
from fedgh_app.runs import storage
from fedgh_app.runtimes.launcher import launch
from fedgh_app.vision.threads import limit_threads, usable_cores

OVERRIDES = ["experiment=arm_quick", "tracking=none"]


def measure(rounds: int = 4, repeats: int = 2) -> dict[str, Any]:
    """Run the `make run` job for a few rounds between two measurements of plain PyTorch.

    Returns:
        ``plain_seconds`` (median seconds for one round's batches), ``round_seconds`` (wall seconds of all rounds ÷
        their number), ``phases`` (mean seconds of each), ``efficiency``, ``actors``, ``images``.
    """
    generate(fedgh_home() / "data" / "arm")
    config = compose_config([*OVERRIDES, f"rounds={rounds}"])
    data = ClientAssembly(config).data
    (clients,) = data.clients_of().values()
    (dealt,) = data.deal(clients).values()
    parts = dealt.parts
    actors = max(1, min(clients, usable_cores() // config.runtime.client_cpus))
    before = [_plain(config, parts, actors) for _ in range(repeats)]
    with tempfile.TemporaryDirectory() as folder:
        result = launch([*OVERRIDES, f"rounds={rounds}"], Path(folder) / "run", quiet=True)
        history = storage.read_lines(Path(folder) / "run" / "history.jsonl")[1:]
    after = [_plain(config, parts, actors) for _ in range(repeats)]
    plain = statistics.median(before + after)
    wall = result.seconds.rounds / rounds
    phases = {
        name: statistics.fmean(line["seconds"].get(name, 0.0) for line in history)
        for name in ("train", "aggregate", "evaluate_clients", "evaluate_central")
    }
    return {
        "plain_seconds": plain,
        "plain_all": before + after,
        "round_seconds": wall,
        "phases": phases,
        "efficiency": plain / wall,
        "train_phase_efficiency": plain / phases["train"],
        "actors": actors,
        "images": sum(len(part) for part in parts.train) * config.local_epochs,
    }


def _plain(config: DictConfig, parts: partition.Partition, actors: int) -> float:
    """Seconds from a common start until every process has trained its clients' batches of one round."""
    context = multiprocessing.get_context("spawn")
    ready, times = context.Barrier(actors + 1), context.Queue()
    processes = [
        context.Process(target=_train, args=(config, parts.train[i::actors], ready, times)) for i in range(actors)
    ]
    for process in processes:
        process.start()
    ready.wait(timeout=120)
    started = time.perf_counter()
    for _ in processes:
        times.get(timeout=600)
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return seconds


def _train(config: DictConfig, held: list[tuple[int, ...]], ready: Any, times: Any) -> None:
    limit_threads(config.runtime.client_cpus)
    cache = cast(CropCache, ClientAssembly(config).data.only.examples)
    assembly = ClientAssembly(config)
    augmentation = assembly.augmentation
    batches = [
        list(Batches(cache, part, batch_size=config.batch_size, augmentation=augmentation, seed=0, shuffle=True))
        for part in held
    ]
    model = assembly.build_model(load_spec(config.dataset.spec)).train()
    loss = assembly.loss
    size = tuple(config.dataset.input_size)
    loss(model(batches[0][0].images), batches[0][0].keypoints, batches[0][0].visible, size).backward()  # warm
    ready.wait()
    for client in batches:
        optimizer = assembly.optimizer(model.parameters(), 1.0)
        for batch in client * config.local_epochs:
            optimizer.zero_grad()
            loss(model(batch.images), batch.keypoints, batch.visible, size).backward()
            optimizer.step()
    times.put(torch.get_num_threads())


def table(result: dict[str, Any]) -> Table:
    """The result for a terminal."""
    title = f"Simulation: {result['images']} images a round, {result['actors']} actors"
    shown = output.empty_table(title, ("what", "seconds a round"))
    shown.add_row("plain PyTorch, same batches and cores", f"{result['plain_seconds']:.2f}")
    for name, seconds in result["phases"].items():
        shown.add_row(f"simulation: {name.replace('_', ' ')}", f"{seconds:.2f}")
    shown.add_row("simulation: whole round", f"{result['round_seconds']:.2f}", end_section=True)
    shown.add_row("efficiency (plain / round)", f"[bold]{result['efficiency']:.2f}[/bold]")
    return shown


def main() -> None:
    """Measure and print."""
    parser = output.parser("simulation", __doc__)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    result = measure(arguments.rounds)
    output.show(arguments.json, result, table(result))


if __name__ == "__main__":
    main()

"""Whether two checkouts of this project give the same bits: small runs of both, model by model and number by number.

    python -m benchmarks.same_bits /path/to/other/checkout [--only NAME …] [--keep DIR] [--no-simulation]

The runs between them have every family of strategies, objective, sharing, topology, mode and server optimizer. Both
checkouts run in this interpreter, side by side, with one thread each, on the same generated images. The noise of
differential privacy, which never repeats otherwise, is made the same by a stand-in for ``os.urandom``.

**Models.** Every ``*.safetensors`` file of the other checkout's run, also under ``checkpoints/`` and ``clients/``, must
be there with the same tensors: type, shape and bytes, by name. Tensors of ``*.state.safetensors`` and ``clients/`` may
have new names, and files may, if their contents are there. What a file says beside its tensors is not compared.

**Numbers.** ``result.json`` and each line of ``history.jsonl`` are flattened to their numbers, to the last digit. Left
out: words, booleans, null, ids, and whatever has ``seconds`` in its path. A number under a path that both sides have
must be the same. Under a path that the other side alone has, it must be somewhere in the same top-level section
(``train``, ``bytes``, …) of this side's line; where this side has no such section, somewhere in the line. So keys may
be renamed; but a wrong number under a renamed key is not found if it happens to be elsewhere in the section. Numbers
and files that this side alone has are allowed, and told as a note.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy.io
import torch
from rich.console import Console
from rich.markup import escape
from safetensors.torch import load_file

from benchmarks import output

HERE = Path(__file__).resolve().parents[1]
# The command of the checkout on PYTHONPATH; what is installed must not answer for it.
FEDGH = """import fedgh_app, os, pathlib
found = pathlib.Path(fedgh_app.__file__).resolve()
assert found.is_relative_to(os.environ["PYTHONPATH"]), found
from fedgh_app.cli import main; main()"""
# Noise that repeats: each number of bytes has a stream of its own. Short ones, of which names are made, stay random.
REPEATS = """import collections, hashlib, os
real, calls = os.urandom, collections.Counter()
def urandom(count):
    calls[count] += 1
    return real(count) if count < 32 else hashlib.shake_128(b"%d %d" % (count, calls[count])).digest(count)
os.urandom = urandom
"""
Keys = tuple[str, ...]  # the way to a number in a JSON document
RUN_SECONDS = 600.0
SHOWN = 8  # differences of a run that are told one by one

SMALL = (
    "runtime=inprocess tracking=none model=mobilenet_v3_small model.head_width=16 dataset.input_size=[32,32] "
    "batch_size=8 rounds=2"
)
FIVE = "partition=iid num_clients=5"
PUBLIC = "distillation=server distillation.every=1 distillation.images=16"
# FOLDER is where a side's runs are, for the one that needs another's model.
RUNS = {
    "fedavg": "strategy=fedavg server_optimizer=sgd model=pose_resnet18 loss=mse schedule=step",
    "fedaw": "strategy=fedaw objective=prox server_optimizer=adam topology=edge_cloud",
    "fedgh_model": "strategy=fedgh mode=async selection=oort +runtime.speeds.3=0.1 rounds=5",
    "fedgh_layer": "strategy=fedgh strategy.granularity=layer sharing=fedbn clustering=finch partition=shard "
    f"num_clients=6 seed=1 {PUBLIC}",
    "fedgh_pairwise": "strategy=fedgh strategy.scheme=pairwise strategy.rescale=norm server_optimizer=adagrad "
    "selection=power_of_choice augmentation=strong rounds=3",
    "fedcdw": f"strategy=fedcdw sharing=fedpav dataset=arm_lspet {PUBLIC} distillation.output=features",
    "conflict_averse": "strategy=conflict_averse mode=async sharing=fedbn server_optimizer=sgd model=shufflenet_v2 "
    "model.backbone=shufflenet_v2_x0_5 rounds=4",
    "feddyn": "strategy=feddyn objective=dyn selection.fraction=0.75 partition=dirichlet num_clients=4 rounds=3",
    "scaffold": "strategy=fedmedian objective=scaffold optimizer=sgd optimizer.momentum=0 schedule=cosine rounds=3",
    "krum": f"strategy=krum strategy.num_malicious_nodes=1 {FIVE} privacy=local model.norm=group",
    "central": "strategy=fedavg strategy.equal_weights=true privacy=central model.norm=group selection.fraction=0.5",
    "hhd": "strategy=fedtrimmedavg teacher=hhd teacher.run=FOLDER/fedavg model.head=integral loss=integral",
    "simulation": f"strategy=fedgh sharing=fedbn objective=prox {FIVE} runtime=simulation runtime.server_cpus=1",
}
NEEDS = {"hhd": "fedavg"}


@dataclass(frozen=True)
class Side:
    """One checkout, and the folder that its runs and its FEDGH_HOME lie in."""

    name: str
    root: Path
    folder: Path

    def failure(self, run: str) -> str | None:
        """Do a run; None where it went well, else the last line of its stderr."""
        items = [*SMALL.split(), *RUNS[run].split(), f"run_dir=FOLDER/{run}"]
        overrides = {item.partition("=")[0]: item.replace("FOLDER", str(self.folder)) for item in items}
        return self.command(run, "run", *overrides.values(), repeats="privacy" in overrides)

    def command(self, name: str, *arguments: str, repeats: bool = False) -> str | None:
        """Do a command of this checkout's, its stderr in ``NAME.err``; None or what went wrong, as above."""
        home = str(self.folder / "home")
        own = {"PYTHONPATH": str(self.root), "FEDGH_HOME": home, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        command = [sys.executable, "-P", "-c", (REPEATS if repeats else "") + FEDGH, *arguments]
        said, nothing = self.folder / f"{name}.err", subprocess.DEVNULL
        settings: dict[str, Any] = {"cwd": self.root, "env": {**os.environ, **own}, "timeout": RUN_SECONDS}
        with said.open("wb") as err, contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, stdin=nothing, stdout=nothing, stderr=err, **settings)
            return f"failed: {said.read_text().strip().rpartition(chr(10))[2]}" if done.returncode else None
        return f"took more than {RUN_SECONDS:.0f} s"


@dataclass
class Comparison:
    """What was compared of a run, what differs, and what is worth a note."""

    files: int = 0
    tensors: int = 0
    numbers: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(other: Path, this: Path) -> Comparison:
    """Compare two run directories."""
    found = Comparison()
    _compare_models(found, other, this)
    theirs, ours = (
        {**_lines(run), "result.json": json.loads((run / "result.json").read_text())} for run in (other, this)
    )
    found.differences += [f"{name}: on one side alone" for name in theirs.keys() ^ ours.keys()]
    for name in (name for name in theirs if name in ours):
        _compare_numbers(found, name, numbers(theirs[name]), numbers(ours[name]))
    if not (found.tensors and found.numbers):
        found.differences.append("nothing to compare")
    return found


def _lines(run: Path) -> dict[str, Any]:
    lines = (run / "history.jsonl").read_text().splitlines()
    return {f"history.jsonl:{number}": json.loads(line) for number, line in enumerate(lines, 1)}


def tensors(file: Path) -> dict[str, str]:
    """Type, shape and a digest of the bytes of every tensor in a file, by its name."""
    return {
        name: f"{tensor.dtype} {list(tensor.shape)} "
        + hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in load_file(file).items()
    }


def _compare_models(found: Comparison, other: Path, this: Path) -> None:
    theirs, ours = (
        {str(file.relative_to(run)): tensors(file) for file in sorted(run.rglob("*.safetensors"))}
        for run in (other, this)
    )
    alone = {name: held for name, held in ours.items() if name not in theirs}
    for name, expected in theirs.items():
        found.files, found.tensors = found.files + 1, found.tensors + len(expected)
        twins = [key for key, held in alone.items() if Counter(held.values()) == Counter(expected.values())]
        if name in ours:
            renamed = set(ours[name].values()) if name.endswith(".state.safetensors") or "clients/" in name else set()
            wrong = [
                key for key, held in expected.items() if ours[name].get(key, held if held in renamed else "") != held
            ]
            if not renamed:
                wrong += ours[name].keys() - expected.keys()
            if wrong:
                found.differences.append(f"{name}: {len(wrong)} tensors differ, such as {wrong[0]}")
        elif twins:
            del alone[twins[0]]
            found.notes.append(f"{name} is {twins[0]} here")
        else:
            found.differences.append(f"{name}: not here")
    found.notes += [f"{name}: here alone" for name in alone]


def numbers(document: Any, path: Keys = ()) -> dict[Keys, str]:
    """The numbers of a JSON document to the last digit, by path; no times and no ids."""
    if path and ("seconds" in path[-1] or path[-1] in ("id", "run_id", "run-id")):
        return {}
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        return {key: value for name, held in items for key, value in numbers(held, (*path, str(name))).items()}
    is_number = isinstance(document, int | float) and not isinstance(document, bool)
    return {path: repr(document)} if is_number else {}


def _compare_numbers(found: Comparison, name: str, theirs: dict[Keys, str], ours: dict[Keys, str]) -> None:
    found.numbers += len(theirs)
    for path, value in theirs.items():
        section = {held for key, held in ours.items() if key[0] == path[0]} or set(ours.values())
        if ours.get(path, value) != value:
            found.differences.append(f"{name}: {'.'.join(path)}: {value} on the other side, {ours[path]} here")
        elif value not in section:
            found.differences.append(f"{name}: {'.'.join(path)}: {value} on the other side, nowhere here")
    if alone := [path for path in ours if path not in theirs]:
        found.notes.append(f"{name}: {len(alone)} numbers here alone by their path, such as {'.'.join(alone[0])}")


def run_both(sides: Sequence[Side], run: str) -> Comparison:
    """Do a run on both sides at the same time, and compare."""
    with ThreadPoolExecutor(len(sides)) as pool:
        failures = dict(zip(sides, pool.map(lambda side: side.failure(run), sides), strict=True))
    if any(failures.values()):
        return Comparison(differences=[f"{side.name} side {what}" for side, what in failures.items() if what])
    other, this = (side.folder / run for side in sides)
    return compare(other, this)


def write_people(root: Path, count: int = 24, size: int = 96) -> None:
    """A few images with 14 joints each, in the form of Leeds Sports Pose Extended."""
    generator = np.random.default_rng(0)
    joints = np.ones((14, 3, count))
    joints[:, :2] = generator.uniform(0.1 * size, 0.9 * size, (14, 2, count))
    (root / "images").mkdir(parents=True)
    for person, image in enumerate(generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8), 1):
        cv2.imwrite(str(root / "images" / f"im{person:05d}.jpg"), image)
    scipy.io.savemat(root / "joints.mat", {"joints": joints})


@contextlib.contextmanager
def prepared(folder: Path | None, other: Path) -> Iterator[tuple[Side, Side]]:
    """The other side and this one, with homes of their own on the same images, in ``folder`` or one that goes away."""
    with tempfile.TemporaryDirectory() if folder is None else contextlib.nullcontext(folder) as made:
        base = Path(made).resolve()
        write_people(base / "data" / "lspet")
        sides = Side("the other", other, base / "other"), Side("this", HERE, base / "this")
        for side in sides:
            (side.folder / "home").mkdir(parents=True)
            (side.folder / "home" / "data").symlink_to(base / "data")
        if what := sides[0].command("data", "data", "arm", "--count", "120", "--root", str(base / "data" / "arm")):
            sys.exit(f"fedgh data arm {what}")
        yield sides


def main() -> int:
    """Run, compare, print a table; 0 if all is the same, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("other", type=Path, help="root of the checkout that says what is right")
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help=f"some of {', '.join(RUNS)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the runs in this folder, which must be new")
    parser.add_argument("--simulation", action=argparse.BooleanOptionalAction, default=True, help="run it, too")
    asked = parser.parse_args()
    if not (asked.other / "fedgh_app" / "server_app.py").is_file():
        parser.error(f"{asked.other}: expected the root of a checkout")
    if asked.keep and asked.keep.exists():
        parser.error(f"--keep {asked.keep}: is there already; expected a new folder")
    chosen = {*(asked.only or RUNS)} - (set() if asked.simulation else {"simulation"})
    chosen |= {needed for run, needed in NEEDS.items() if run in chosen}
    console, started = Console(), time.monotonic()
    shown = output.empty_table("the same bits?", ("run", "files", "tensors", "numbers", "verdict"), left=("run",))
    all_same = True
    with prepared(asked.keep, asked.other.resolve()) as sides:
        for run in (run for run in RUNS if run in chosen):
            found = run_both(sides, run)
            verdict = "differs" if found.differences else "same"
            all_same &= not found.differences
            shown.add_row(run, str(found.files), str(found.tensors), str(found.numbers), verdict)
            console.print(f"{run}: {verdict} ({time.monotonic() - started:.0f} s)", highlight=False)
            for kind, lines in (("", found.differences), ("note: ", found.notes)):
                more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
                for line in [*lines[:SHOWN], *more]:
                    console.print(f"  {kind}{escape(line)}", soft_wrap=True, highlight=False)
    console.print(shown)
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())

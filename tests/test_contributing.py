"""CONTRIBUTING.md names all that it takes: one thing of each kind is added by its steps alone, and runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY
from trees import FEDGH, copied, environment_of

from fedgh_app.runs.checkpoints import ServerState, newest

PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text()
ADDITIONS = REPOSITORY / "tests/additions"
THINGS = ("strategy", "dataset", "model", "callback", "objective", "task")
TITLES = {"dataset": "data set"}
LINES = ".add"  # of a file that is there already: what is added to it

FEDERATED = [*(item for item in TINY if not item.startswith("model.")), "runtime=inprocess"]
TOY = ["dataset=toy", "model=toy", "loss=toy", "batch_size=8", "optimizer.lr=0.02", "rounds=2", "runtime=inprocess"]
TOY += ["tracking=none"]
DISTILLED = ["sharing=fedpav", "distillation=server", "distillation.every=1", "distillation.output=features"]
DISTILLED += ["dataset@distillation.public=toy"]


def section(thing: str) -> str:
    """What the page says of adding such a thing."""
    found = re.search(rf"^## An? {TITLES.get(thing, thing)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"CONTRIBUTING.md has no section on a {thing}"
    return found[1]


def files(thing: str) -> dict[str, Path]:
    """The files of an addition, by their path in the repository and in their order there."""
    folder = ADDITIONS / thing
    found = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {str(file.relative_to(folder)): file for file in sorted(found)}


def add_lines(target: Path, added: Path) -> None:
    """Rows below a heading go to the end of its first table, other lines to the end of the file."""
    lines = target.read_text().splitlines()
    place = len(lines)
    for line in added.read_text().splitlines():
        if re.match(r"#+ ", line):
            place = lines.index(line)
            while not lines[place].startswith("|"):
                place += 1
            while place < len(lines) and lines[place].startswith("|"):
                place += 1
        else:
            lines.insert(place, line)
            place += 1
    target.write_text("\n".join(lines) + "\n")


def tree_with(folder: Path, *things: str) -> Path:
    """A copy of the repository with these additions."""
    copied(folder)
    for thing in things:
        for name, file in files(thing).items():
            target = folder / name.removesuffix(LINES)
            if name.endswith(LINES):
                add_lines(target, file)
            else:
                assert not target.exists(), target
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
    return folder


def fedgh(tree: Path, *arguments: str) -> str:
    """What the command of a tree prints."""
    done = subprocess.run([*FEDGH, *arguments], cwd=tree, env=environment_of(tree), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("thing", THINGS)
def test_the_page_lists_the_files_of_an_addition_and_shows_them_as_they_are(thing: str) -> None:
    listed = re.findall(r"^\| `([\w./]+)` \| (.*) \|$", section(thing), re.MULTILINE)
    told = {name + (LINES if text.startswith("+ ") else "") for name, text in listed}
    assert told == set(files(thing))
    assert len(listed) == len(told)
    for block in re.findall(r"^```\w+\n(.*?)^```$", section(thing), re.MULTILINE | re.DOTALL):
        assert block in {file.read_text() for file in files(thing).values()}


def test_all_kinds_of_things_have_a_section() -> None:
    assert re.findall(r"^## An? (.+)$", PAGE, re.MULTILINE) == [TITLES.get(thing, thing) for thing in THINGS]
    assert sorted(folder.name for folder in ADDITIONS.iterdir()) == sorted(THINGS)


def test_a_strategy_a_data_set_a_model_a_callback_and_an_objective(home: Path, tmp_path: Path) -> None:
    tree = tree_with(tmp_path, *(thing for thing in THINGS if thing != "task"))
    chosen = ["strategy=fedunit", "dataset=forearm", "model=two_layers", "callbacks=scores", "objective=momentum"]
    shown = fedgh(tree, "run", *FEDERATED, *chosen, "run_dir=run")
    assert "FedUnit on forearm" in shown
    assert set(json.loads((tree / "run/result.json").read_text())["parts"]) == {"elbow", "wrist"}
    assert "TwoLayers" in (tree / "run/MODEL_CARD.md").read_text()
    assert [line.partition(",")[0] for line in (tree / "run/scores.csv").read_text().splitlines()] == ["0", "1", "2"]
    step = ServerState.load(newest(tree / "run", 3)).parts["objective"]
    assert set(step) == {"backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias"} | {
        "head.weight",
        "head.bias",
    }
    assert all(tensor.abs().sum() > 0 for tensor in step.values())


def test_a_task(home: Path, tmp_path: Path) -> None:
    tree = tree_with(tmp_path, "task")
    assert "accuracy on held-out images" in fedgh(tree, "run", *TOY, "run_dir=runs/plain")
    fedgh(tree, "run", *TOY, *DISTILLED, "run_dir=runs/distilled")
    fedgh(tree, "run", "resume=runs/distilled", "rounds=3")
    last = json.loads((tree / "runs/distilled/history.jsonl").read_text().splitlines()[-1])
    assert last["round"] == 3 and last["distillation"]["global"]["teachers"] == 4
    table = fedgh(tree, "report", "runs/plain", "runs/distilled", "--json")
    assert [row["metric"] for row in json.loads(table)] == ["accuracy", "accuracy"]


def test_the_tests_of_pages_and_rooms_are_content_with_all_of_it(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, *THINGS)
    ignored = shutil.ignore_patterns("__pycache__", "additions")
    for name in ("benchmarks", "tests"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=ignored)
    chosen = "one_row or papers or look or models or readme or layout or one_way or task_knows"
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    pages = ["tests/test_docs.py", "tests/test_architecture.py"]
    done = subprocess.run([*run, *pages], cwd=tree, env=environment_of(tree), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]

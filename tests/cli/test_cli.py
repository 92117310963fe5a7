"""The command as a user types it: one line and the right status for what is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import cv2
import pytest

FEDGH = str(Path(sysconfig.get_path("scripts")) / "fedgh")


def fedgh(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run([FEDGH, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "strategy=fedhg"], "did you mean fedgh"),
        (["run", "strategy.granularity=tensor"], "granularity is one of model, layer"),
        (["run", "-m", "strategy=fedavg,fedhg"], "did you mean fedgh"),
        (["run", "dataset.root=/nowhere", "tracking=none"], "fedgh data arm"),
        (["data", "check", "arm", "--root", "/nowhere"], "/nowhere"),
        (["data", "lspet-arm", "--source", "/nowhere"], "/nowhere"),
        (["report", "/nowhere"], "/nowhere"),
        (["score", "cocoo", "--truth", "a", "--predictions", "b"], "expected one of coco"),
        (["score", "coco", "--truth", "/nowhere.json", "--predictions", "b.json"], "/nowhere.json"),
        (["score", "mpii", "--truth", "/nowhere.mat", "--predictions", "/nowhere.mat"], "/nowhere.mat"),
    ],
)
def test_bad_input_is_one_line_and_status_2(home: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    done = fedgh(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "bad=1"], "bad: the config has no key 'bad'"),
        (["run", "-m", "rounds=1,x"], "rounds=x"),
        (["run", "--cfg=job"], "--cfg=job: no such option; expected -m, GROUP=CHOICE and KEY=VALUE"),
        (
            ["run", "hydra.run.dir=elsewhere"],
            "Hydra's own settings stay; expected run_dir=DIR",
        ),
    ],
)
def test_a_slip_is_told_without_waiting_for_torch_and_flower(tmp_path: Path, arguments: list[str], words: str) -> None:
    code = """
import sys
from fedgh_app.cli import main
try:
    main()
finally:
    print(sorted({"torch", "flwr"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr
    assert words in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_nobody_foresaw_keeps_its_own_traceback(tiny: list[str], tmp_path: Path) -> None:
    code = """
from fedgh_app.cli import main
from fedgh_app.runtimes import launcher
def broken(*_, **__):
    raise ZeroDivisionError("nobody expected this")
launcher.run_inprocess = broken
main()
"""
    command = [sys.executable, "-c", code, "run", f"run_dir={tmp_path}/run", *tiny]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ZeroDivisionError: nobody expected this\n")
    assert "Error executing job" not in done.stderr


def test_a_refused_run_leaves_no_directory_and_takes_none_away(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("new", "mine"):
        done = fedgh("run", f"run_dir={tmp_path / name}", *tiny, "dataset.root=/nowhere")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_list_shows_every_group(tmp_path: Path) -> None:
    said = fedgh("list").stdout
    for word in ("strategy", "fedgh", "fedcdw", "partition", "dirichlet", "experiment"):
        assert word in said


def test_score_reproduces_the_published_numbers(shared_data: Path) -> None:
    file = str(shared_data / "mpii" / "tompson_validation.mat")
    done = fedgh("score", "mpii", "--truth", file, "--predictions", file, "--json")
    found = {key: round(value, 2) for key, value in json.loads(done.stdout).items()}
    known = {"head": 95.60, "shoulder": 92.71, "elbow": 83.36, "wrist": 76.74, "hip": 81.93, "knee": 73.36}
    assert {key: found[key] for key in known} == known
    assert (found["ankle"], found["mean"]) == (65.45, 82.34)
    table = fedgh("score", "mpii", "--truth", file, "--predictions", file).stdout
    assert "82.34" in table


def test_data_commands_make_a_set_and_check_it(tmp_path: Path) -> None:
    assert fedgh("data", "arm", "--root", str(tmp_path / "arm"), "--count", "24").returncode == 0
    done = fedgh("data", "check", "arm", "--root", str(tmp_path / "arm"), "--out", str(tmp_path / "sheet.png"))
    assert done.returncode == 0, done.stderr
    assert "24" in done.stdout
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] > 300
    broken = next((tmp_path / "arm" / "images").glob("*.jpg"))
    broken.write_bytes(broken.read_bytes()[:500])
    done = fedgh("data", "check", "arm", "--root", str(tmp_path / "arm"), "--out", str(tmp_path / "sheet.png"))
    assert done.returncode == 1
    assert broken.name in done.stdout


def test_partition_shows_who_holds_what(home: Path, tmp_path: Path) -> None:
    plot = tmp_path / "who.png"
    done = fedgh("data", "partition", "--out", str(plot), "partition=dirichlet", "num_clients=3")
    assert done.returncode == 0, done.stderr
    shown = {
        name: sum(map(int, re.findall(rf"{name} (\d+)", done.stdout))) for name in ("front", "left", "right", "top")
    }
    assert shown == dict.fromkeys(shown, 16)  # a fifth of the 20 images of each viewpoint is held out
    assert plot.exists()


def test_a_sweep_goes_past_a_failed_job_and_tells(tiny: list[str], tmp_path: Path) -> None:
    overrides = [item for item in tiny if item != "rounds=2"]
    sweep = tmp_path / "sweep"
    done = fedgh("run", "-m", "min_clients=9,1", "rounds=1", f"run_dir={sweep}", *overrides, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "failed: round 1: 4 good replies, expected at least 9" in re.sub(r"[\s│]+", " ", done.stdout)
    assert done.stderr.endswith(f"to try the others again: fedgh run -m resume={sweep}\n")
    assert [path.parent.name for path in sweep.glob("*/result.json")] == ["1"]
    pck = json.loads((sweep / "1" / "result.json").read_text())["pck"]
    (row,) = json.loads(fedgh("report", str(sweep), "--json").stdout)
    assert (row["setting"], row["runs"], row["score"]) == ("FedGH", 1, {"mean": pck, "std": None})


def test_a_sweep_and_a_run_are_not_taken_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    done = fedgh("run", f"resume={tmp_path}")
    assert (done.returncode, done.stderr.strip()) == (
        2,
        f"fedgh: resume={tmp_path}: holds a sweep; expected fedgh run -m to go on with it",
    )
    done = fedgh("run", "-m", f"resume={tmp_path}", "rounds=3")
    assert done.returncode == 2 and "sweep.json: overrides: " in done.stderr

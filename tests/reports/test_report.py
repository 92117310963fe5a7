from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from fedgh_app.config.compose import compose_config
from fedgh_app.errors import UserError
from fedgh_app.reports.page import write
from fedgh_app.reports.statistics import compare, print_report, settings_of
from fedgh_app.runs import storage
from fedgh_app.runs.history import Evaluations, Measured, MeasuredByClients


def run(folder: Path, overrides: list[str], score: float, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    OmegaConf.save(compose_config([*overrides, f"run_dir={folder}"]), folder / "config.yaml")
    result = {
        "metric": "PCK@0.2",
        "part": "keypoint",
        "score": score,
        "parts": {"elbow": score, "wrist": None},
        "more": {"auc": 0.25, "heatmap_accuracy": 0.5},
        "evaluated": "central",
        "rounds": 1,
        "clients_score": {"0": score, "1": score / 2},
        "seconds": {"total": 3.0, "rounds": 2.0},
        "rejected": [],
        **changes,
    }
    storage.write_json(folder / "result.json", result)
    return folder


def test_seeds_of_one_setting_are_one_row(tmp_path: Path) -> None:
    run(tmp_path / "0", ["strategy=fedavg", "seed=0"], 0.4)
    run(tmp_path / "1", ["strategy=fedavg", "seed=1"], 0.6)
    run(tmp_path / "2", ["strategy=fedgh", "seed=0"], 0.7)
    first, second = compare(settings_of([tmp_path]))
    assert (first["setting"], first["runs"]) == ("FedAvg", 2)
    assert first["score"] == {"mean": pytest.approx(0.5), "std": pytest.approx(0.02**0.5)}  # n - 1 in the divisor
    assert first["worst_client"]["mean"] == pytest.approx(0.25)
    assert first["parts"]["wrist"] is None
    assert first["more"]["heatmap_accuracy"]["mean"] == 0.5 and (first["metric"], first["part"]) == (
        "PCK@0.2",
        "keypoint",
    )
    assert second["score"] == {"mean": 0.7, "std": None}


def test_what_else_differs_tells_settings_apart(tmp_path: Path) -> None:
    run(tmp_path / "0", ["strategy=fedgh", "optimizer.lr=0.1"], 0.4)
    run(tmp_path / "1", ["strategy=fedgh", "optimizer.lr=0.2"], 0.6)
    run(tmp_path / "2", ["strategy=fedgh", "optimizer.lr=0.1", "strategy.granularity=layer"], 0.6)
    names = [row["setting"] for row in compare(settings_of([tmp_path / "0", tmp_path / "1", tmp_path / "2"]))]
    assert names == [
        "FedGH optimizer.lr=0.1 strategy.granularity=model",
        "FedGH optimizer.lr=0.2 strategy.granularity=model",
        "FedGH optimizer.lr=0.1 strategy.granularity=layer",
    ]


def test_runs_of_different_settings_are_never_pooled(tmp_path: Path) -> None:
    run(tmp_path / "0", ["strategy=fedgh", "rounds=5"], 0.9)
    run(tmp_path / "1", ["strategy=fedgh", "rounds=1", "runtime=inprocess"], 0.3)
    assert [(row["setting"], row["runs"]) for row in compare(settings_of([tmp_path]))] == [
        ("FedGH rounds=5", 1),
        ("FedGH rounds=1", 1),
    ]


def test_a_resumed_run_is_of_the_setting_of_those_that_were_not(tmp_path: Path) -> None:
    """Its config has the number of clients, and where it goes on; another number is another setting."""
    four, eight = (
        {str(n): {"label": "a", "examples": 1, "test_examples": 1} for n in range(count)} for count in (4, 8)
    )
    run(tmp_path / "0", ["seed=0"], 0.4, clients=four)
    run(tmp_path / "1", ["seed=1", "num_clients=4", "keep_checkpoints=1"], 0.5, clients=four)
    assert [(row["setting"], row["runs"]) for row in compare(settings_of([tmp_path]))] == [("FedGH", 2)]
    run(tmp_path / "2", ["seed=0", "num_clients=8"], 0.6, clients=eight)
    names = ["FedGH num_clients=4", "FedGH num_clients=8"]
    assert [row["setting"] for row in compare(settings_of([tmp_path]))] == names


def test_baselines_go_by_their_runtime(tmp_path: Path) -> None:
    run(tmp_path / "0", ["runtime=centralised"], 0.9)
    run(tmp_path / "1", ["runtime=local"], 0.3, evaluated="clients")
    run(tmp_path / "2", [], 0.8)
    assert [row["setting"] for row in compare(settings_of([tmp_path]))] == ["centralised", "local", "FedGH"]
    said = StringIO()
    print_report(compare(settings_of([tmp_path])), Console(file=said, width=140))
    for words in ("local (clients' own)", "90.0", "PCK (%), mean ± standard deviation", "PCK (%) by keypoint"):
        assert words in said.getvalue()


def test_further_metrics_of_a_task_are_told_by_their_names(tmp_path: Path) -> None:
    run(tmp_path / "0", ["strategy=fedavg"], 0.4, metric="mAP", part="camera", more={"rank_1": 0.75})
    said = StringIO()
    print_report(compare(settings_of([tmp_path])), Console(file=said, width=80))
    for words in ("mAP (%), mean", "mAP (%) by camera", "further metrics (%)", "rank 1"):
        assert words in said.getvalue()
    assert "75.0" in said.getvalue() and "…" not in said.getvalue()
    write(settings_of([tmp_path]), [tmp_path], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| mAP (%) | worst client (%) | rank 1 (%) | seconds a run |" in text and "## Cameras" in text


def test_a_run_from_before_a_group_existed_is_compared(tmp_path: Path) -> None:
    for seed in (0, 1):
        file = run(tmp_path / str(seed), [f"seed={seed}"], 0.5) / "config.yaml"
        config = OmegaConf.load(file)
        for key in ("clustering", "sharing", "loss", "batch_size") if seed == 0 else ():
            del config[key]
        OmegaConf.save(config, file)
    storage.write_json(tmp_path / "0" / "launch.json", {"overrides": ["seed=0"], "mark": "", "directory": ""})
    (file,) = [file for file in write(settings_of([tmp_path]), [tmp_path], tmp_path / "out") if file.suffix == ".md"]
    assert "fedgh run seed=0" in file.read_text()


def test_a_folder_without_runs_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no result\.json"):
        compare(settings_of([tmp_path]))


def test_a_choice_goes_by_its_name_and_its_seed_tells_nothing(tmp_path: Path) -> None:
    run(tmp_path / "0", ["selection=oort", "selection.seed=1"], 0.4)
    run(tmp_path / "1", ["selection=oort", "selection.seed=2"], 0.6)
    run(tmp_path / "2", ["selection=random", "selection.fraction=0.5", "selection.seed=3"], 0.5)
    rows = compare(settings_of([tmp_path]))
    assert [(row["setting"], row["runs"]) for row in rows] == [
        ("FedGH selection=Oort", 2),
        ("FedGH selection=Random", 1),
    ]


def test_the_headline_of_a_round_is_central_else_the_weighted_mean_of_the_clients() -> None:
    weighted = Measured(score=0.4)
    clients = MeasuredByClients(score=0.2, loss=3.0, weighted=weighted)
    assert Evaluations(central=Measured(score=0.5), clients=clients).headline == Measured(score=0.5)
    assert Evaluations(clients=clients).headline.score == 0.4
    assert Evaluations(clients=clients).headline.loss == 3.0
    assert Evaluations().headline == Measured()

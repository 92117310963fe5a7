"""Runs through real Flower processes: SuperLink, `flwr run`, Ray."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import zipfile
from pathlib import Path

import psutil
import pytest
from conftest import TINY
from flwr.cli.build import build_fab_from_disk
from servers import SCRIPTS, environment, fedgh, left_behind, start_fedgh, survivors, wait

from fedgh_app.runs import storage
from fedgh_app.runs.processes import MARK
from fedgh_app.runtimes.flwr_run import stage
from fedgh_app.runtimes.superlink import free_port
from fedgh_app.server.parts.privacy import epsilon

pytestmark = pytest.mark.timeout(600)
OVERRIDES = [*TINY, "evaluate.clients_every=2"]


@pytest.fixture(scope="module")
def simulation(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run directory and output of one small `fedgh run` in Flower's simulation, tracked by W&B offline."""
    folder = tmp_path_factory.mktemp("simulation")
    overrides = [item for item in OVERRIDES if item != "tracking=none"]
    done = fedgh(folder, "run", "run_dir=run", "tracking.mode=offline", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run", done.stdout


def test_a_simulation_shows_progress_and_ends_with_a_table(simulation: tuple[Path, str]) -> None:
    directory, said = simulation
    for word in ("round   1", "round   2", "shoulder", "before", "after", "result.json", "keypoints.png", "wandb sync"):
        assert word in said
    assert storage.read_json(directory / "result.json")["rejected"] == []
    assert left_behind() == []


def test_a_simulation_gives_the_bits_of_an_inprocess_run(
    simulation: tuple[Path, str], tiny: list[str], tmp_path: Path
) -> None:
    """Two actors that race each other, and one process that takes the clients in turn."""
    from fedgh_app.runtimes.launcher import launch

    launch([*tiny, "evaluate.clients_every=2"], tmp_path / "run", quiet=True)
    first, _ = storage.load_model(simulation[0])
    second, _ = storage.load_model(tmp_path / "run")
    assert all(bool((first[key] == second[key]).all()) for key in first)


def test_wandb_has_metrics_config_and_plots_offline(simulation: tuple[Path, str]) -> None:
    said = storage.read_json(simulation[0] / "tracking.json")
    assert said["mode"] == "offline"
    folder = Path(said["folder"])
    assert said["sync"] == f"wandb sync {folder}"
    (record,) = folder.glob("run-*.wandb")
    content = record.read_bytes()
    for word in (b"central/score", b"strategy/conflicting", b"server_learning_rate", b"plots/cosines"):
        assert word in content
    assert list(folder.glob("files/media/images/plots/*.png"))


@pytest.mark.parametrize("staged", [True, False], ids=["fedgh run", "flwr run ."])
def test_the_bundle_holds_config_and_data_set_descriptions(tmp_path: Path, staged: bool) -> None:
    root = Path(__file__).resolve().parents[2]
    app = stage(tmp_path) if staged else root
    names = set(zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))).namelist())
    for folder in ("conf", "datasets"):
        wanted = {str(file.relative_to(root)) for file in (root / folder).rglob("*.yaml")}
        assert wanted and wanted <= names
    assert {"fedgh_app/server_app.py", "strategies/fedgh.py"} <= names
    assert not [name for name in names if name.endswith((".safetensors", ".jpg", ".pt"))]


@pytest.mark.slow
def test_every_axis_in_one_line_through_flower(home: Path, tmp_path: Path) -> None:
    """BatchNorm stays on clients that come and go between two actors, whose updates arrive when they do."""
    axes = ["objective=prox", "sharing=fedbn", "selection=power_of_choice", "mode=async", "distillation=server"]
    more = ["rounds=4", "distillation.every=2", "distillation.images=8", "tracking=wandb", "tracking.mode=offline"]
    done = fedgh(tmp_path, "run", "run_dir=run", *OVERRIDES, "strategy=fedgh", *axes, *more, seconds=280)
    assert done.returncode == 0, done.stdout + done.stderr
    result = storage.read_json(tmp_path / "run" / "result.json")
    assert (result["evaluated"], result["rejected"]) == ("clients", [])
    lines = storage.read_lines(tmp_path / "run" / "history.jsonl")
    assert all(len(line["strategy"]["staleness"]) >= 2 for line in lines[1:])
    assert [bool(line["distillation"]) for line in lines] == [False, False, True, False, True]
    assert any("asked" in line["selection"] for line in lines)
    assert (tmp_path / "run" / "plots" / "staleness.png").exists()
    assert left_behind() == []


PRIVATE = {
    "central": ["strategy=fedavg", "strategy.equal_weights=true"],
    "local": ["strategy=fedgh"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PRIVATE)
def test_differential_privacy_through_flower(home: Path, tmp_path: Path, kind: str) -> None:
    """Clipping and noise happen in the client's process under one choice, in the server's under the other."""
    chosen = [f"privacy={kind}", "model.norm=group", "privacy.noise_multiplier=2", *PRIVATE[kind]]
    done = fedgh(tmp_path, "run", "run_dir=run", *OVERRIDES, *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    result = storage.read_json(tmp_path / "run" / "result.json")
    spent = [line["privacy"]["epsilon"] for line in storage.read_lines(tmp_path / "run" / "history.jsonl")[1:]]
    wanted = [epsilon(2 if kind == "central" else 1, releases, 1e-5) for releases in (1, 2)]
    assert spent == pytest.approx(wanted)
    assert result["privacy"]["epsilon"] == pytest.approx(wanted[-1])
    assert result["rejected"] == []
    assert (tmp_path / "run" / "plots" / "epsilon.png").exists()
    assert left_behind() == []


@pytest.mark.slow
def test_a_failed_run_is_one_line_with_status_and_no_process(home: Path, tmp_path: Path) -> None:
    """A loss that explodes makes every reply infinite, so none is left for the round."""
    done = fedgh(tmp_path, "run", "run_dir=run", *OVERRIDES, "optimizer=sgd", "optimizer.lr=1e30")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "round 1: 0 good replies" in line
    assert "client 0: metric loss is nan" in line
    assert storage.load_model(tmp_path / "run")[1]["rounds"] == "0"
    assert left_behind() == []


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_no_process(home: Path, tmp_path: Path, kind: signal.Signals) -> None:
    overrides = [*OVERRIDES, "rounds=100", "tracking=wandb", "tracking.mode=offline"]
    process = start_fedgh(tmp_path, "run", "run_dir=run", *overrides)
    wait(lambda: len(storage.read_lines(tmp_path / "run/history.jsonl")) > 1, "the first round", 300)
    process.send_signal(kind)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if kind == signal.SIGINT else 143)
    assert "Traceback" not in said
    assert left_behind() == []
    assert storage.read_json(tmp_path / "run/failure.json")["error"] == "stopped"
    assert int(storage.load_model(tmp_path / "run")[1]["rounds"]) >= 1
    assert storage.read_json(tmp_path / "run/tracking.json")["mode"] == "offline"


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_the_same_bits(home: Path, tiny: list[str], tmp_path: Path) -> None:
    """The launcher is killed and ends nothing; what it left is ended, and rounds that were lost are done again."""
    from fedgh_app.runtimes.launcher import launch

    overrides = [*OVERRIDES, "sharing=fedbn", "strategy=fedaw", "rounds=4"]
    tracked = [*overrides, "tracking=wandb", "tracking.mode=offline"]
    process = start_fedgh(tmp_path, "run", "run_dir=run", *tracked)
    wait(lambda: len(storage.read_lines(tmp_path / "run/history.jsonl")) > 2, "the second round", 300)
    process.kill()
    process.wait()
    orphans = list(survivors())
    assert len(orphans) > 2
    for orphan in orphans:
        orphan.suspend()  # or they would bring the run to its end
    done = fedgh(tmp_path, "run", "resume=run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert left_behind() == []
    assert [line["round"] for line in storage.read_lines(tmp_path / "run/history.jsonl")] == [0, 1, 2, 3, 4]
    launch([*tiny, *overrides, "runtime=inprocess"], tmp_path / "whole", quiet=True)
    first, second = (storage.load_model(tmp_path / name)[0] for name in ("run", "whole"))
    assert all(bool((first[key] == second[key]).all()) for key in first)


@pytest.mark.slow
def test_plain_flwr_run_works_on_flowers_own_superlink(home: Path, tmp_path: Path) -> None:
    flower = environment(
        **{MARK: "managed"},
        FLWR_HOME=str(tmp_path / "flwr"),
        FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=str(free_port()),
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    )
    run_config = tmp_path / "run.toml"
    overrides = " ".join([*OVERRIDES, "strategy=fedaw", f"run_dir={tmp_path}/run"])
    run_config.write_text(f"overrides = {json.dumps(overrides)}\n")
    root = Path(__file__).resolve().parents[2]
    try:
        subprocess.run(
            [SCRIPTS / "flwr", "run", ".", "--run-config", run_config, "--federation-config", "num-supernodes=4"],
            cwd=root,
            env=flower,
            check=True,
            timeout=120,
        )
        ends = (tmp_path / "run/result.json", tmp_path / "run/failure.json")
        wait(lambda: any(file.exists() for file in ends), "the run to end", 300)
        assert not ends[1].exists(), ends[1].read_text()
        assert storage.read_json(tmp_path / "run/result.json")["rounds"] == 2
    finally:
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == "managed":
                    process.kill()
            except (psutil.Error, OSError):
                continue

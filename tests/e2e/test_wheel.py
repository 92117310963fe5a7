"""The wheel: what is in it, and that it works where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import TINY
from servers import environment, fedgh, left_behind

from fedgh_app.runs import environment as app_environment
from fedgh_app.runs import storage
from fedgh_app.runs.directory import MODEL_CARD

REPOSITORY = Path(__file__).resolve().parents[2]
BUILT_FROM = ("fedgh_app", "strategies", "conf", "datasets", "benchmarks", "deploy")
BESIDE = ("setup.py", "MANIFEST.in", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools.build_meta import build_{0}; build_{0}(sys.argv[1])"  # as pip calls it


def built(source: Path, out: Path, form: str = "wheel") -> Path:
    """What setuptools makes of a tree."""
    out.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", BUILD.format(form), out], cwd=source, check=True, capture_output=True)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built in a copy: what an earlier build left in ``build/`` would get into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        shutil.copytree(REPOSITORY / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        shutil.copy2(REPOSITORY / name, folder / "tree" / name)
    return built(folder / "tree", folder / "out")


def test_the_wheel_holds_modules_templates_and_the_files_of_the_app_and_nothing_else(wheel: Path) -> None:
    def files(pattern: str) -> set[str]:
        found = {str(file.relative_to(REPOSITORY)) for file in REPOSITORY.glob(pattern)}
        assert found
        return found

    modules = files("fedgh_app/**/*.py") | files("strategies/**/*.py") | files("fedgh_app/reports/templates/*")
    shipped = files("conf/**/*.yaml") | files("datasets/*.yaml") | {"pyproject.toml", "README.md", "LICENSE"}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == modules | {f"fedgh_app/shipped/{name}" for name in shipped}


def test_an_installed_app_tells_no_commit_of_the_checkout_that_its_environment_may_lie_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app_environment, "INSTALLED", True)
    assert app_environment.this_machine().commit is None


@pytest.mark.slow
def test_a_wheel_by_way_of_a_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(built(wheel.parents[1] / "tree", tmp_path / "sdist", "sdist"), tmp_path, filter="data")
    (tree,) = tmp_path.glob("fedgh-*")
    again = built(tree, tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an environment with the wheel in it, which finds all other packages in this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder that is named in a .pth file: its own .pth files, such as that of an editable fedgh, are not read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    for script in Path(sysconfig.get_path("scripts")).glob("fl*w*r*"):  # flwr, flower-superlink and their like
        text = script.read_text().replace(sys.executable, str(python))
        (folder / "bin" / script.name).write_text(text)
        (folder / "bin" / script.name).chmod(0o755)
    where = [python, "-I", "-c", "import fedgh_app, strategies; print(fedgh_app.__file__, strategies.__file__)"]
    found = subprocess.run(where, cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    assert all(Path(file).is_relative_to(packages) for file in found), found
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_installed_wheel_generates_trains_reports_predicts_and_makes_keys(installed: Path, tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    path = f"{installed}{os.pathsep}{os.environ['PATH']}"
    variables = {**environment(FEDGH_HOME=str(home), HOME=str(tmp_path)), "PATH": path}
    # Else a checkout's modules would be found instead of the wheel's.
    variables = {key: value for key, value in variables.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def call(*arguments: str) -> str:
        done = fedgh(work, *arguments, program=[str(installed / "fedgh")], env=variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("data", "arm", "--count", "60")
    assert "fedgh" in call("list")
    overrides = [*TINY, "partition=iid", "num_clients=2", "evaluate.clients_every=0"]
    call("run", "run_dir=runs/inprocess", "runtime=inprocess", *overrides)
    call("run", "run_dir=runs/simulation", *overrides)
    first, second = (storage.load_model(work / "runs" / name)[0] for name in ("inprocess", "simulation"))
    assert all(bool((first[key] == second[key]).all()) for key in first)
    assert (work / "runs" / "simulation" / MODEL_CARD).exists()
    call("report", "runs", "--out", "report")
    assert {file.name for file in (work / "report").iterdir()} >= {"report.html", "report.md"}
    picture = next((home / "data" / "arm" / "images").rglob("*.jpg"))
    call("predict", "runs/simulation", str(picture), "--out", "found")
    assert (work / "found" / "predictions.json").exists()
    call("deploy", "keys", "keys", "--host", "127.0.0.1", "--site", "clinic")
    assert (work / "keys" / "clinic" / "supernode.key").exists()
    assert left_behind() == []

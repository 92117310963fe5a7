"""The pages under docs/ and the README say what the code does: choices, keys, commands, refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from benchmarks import models
from fedgh_app.config import refusals
from fedgh_app.config.choices import CONF, groups
from fedgh_app.config.compose import compose_config, expand_sweep
from fedgh_app.pose.checks import DECODINGS

ROOT = Path(__file__).resolve().parents[1]
AXES_PAGE = (ROOT / "docs/axes.md").read_text()
README = (ROOT / "README.md").read_text()
MODELS_PAGE = (ROOT / "docs/models.md").read_text()
PRIVACY_PAGE = (ROOT / "docs/privacy.md").read_text()
FAULTS_PAGE = (ROOT / "docs/faults.md").read_text()
SWEEPS_PAGE = (ROOT / "docs/sweeps.md").read_text()
DEPLOYMENT_PAGE = (ROOT / "docs/deployment.md").read_text()
LAYOUT = (ROOT / "docs/layout.md").read_text()
AXES = (
    "strategy",
    "server_optimizer",
    "objective",
    "sharing",
    "distillation",
    "teacher",
    "clustering",
    "topology",
    "mode",
    "selection",
)
PAGE_AXES = (*AXES, "privacy")


def section(title: str) -> str:
    """The part of docs/axes.md under a heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", AXES_PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/axes.md has no section {title}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row of ``text``, without headings and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = {number for number, line in enumerate(lines) if set(line) <= set("|-: ")}
    wanted = [line for number, line in enumerate(lines) if number not in rules and number + 1 not in rules]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in wanted]


def commands(text: str) -> list[str]:
    """The arguments of every ``fedgh run`` in a code block, without comments."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.removeprefix("fedgh run ").partition("#")[0] for line in lines if line.startswith("fedgh run ")]


def keys_of(group: str) -> set[str]:
    """The keys that some choice of a group has, those of nodes that it takes from other groups included."""
    found: set[str] = set()
    for file in (CONF / group).glob("*.yaml"):
        node: Any = OmegaConf.to_container(OmegaConf.load(file))
        taken = [entry for entry in node.pop("defaults", []) if entry != "_self_"]
        found |= {*node, *(name.partition("@")[2] for entry in taken for name in entry)}
    return found


@pytest.mark.parametrize("axis", PAGE_AXES)
def test_the_page_has_one_row_for_every_choice_of_an_axis(axis: str) -> None:
    table = rows(section(axis))
    assert sorted(cells[0].strip("`") for cells in table) == groups()[axis]
    assert all(len(cells) == 6 and all(cells) for cells in table)


@pytest.mark.parametrize("axis", PAGE_AXES)
def test_the_page_says_where_to_look_and_which_keys_exist(axis: str) -> None:
    assert "\nHistory: " in section(axis)
    named = set(re.findall(rf"(?<![\w@.]){axis}\.(?!md\b)(\w+)", AXES_PAGE))
    assert named <= keys_of(axis)


def test_the_page_has_a_row_for_every_decoding_and_augmentation() -> None:
    assert [cells[0].strip("`") for cells in rows(section("evaluate"))] == list(DECODINGS)
    assert [cells[0].strip("`") for cells in rows(section("augmentation"))] == groups()["augmentation"]
    named = set(re.findall(r"augmentation\.(\w+)", section("augmentation")))
    assert named <= keys_of("augmentation")


def test_the_papers_that_the_page_cites_are_listed() -> None:
    listed = {cells[0] for cells in rows(section("Papers"))}
    tables = (*PAGE_AXES, "evaluate", "augmentation")
    cited = {paper for title in tables for cells in rows(section(title)) for paper in papers(cells[2])}
    assert cited == listed


def papers(cell: str) -> set[str]:
    """The short names in a table's cell, such as ``Ni 2025; projection: Yu 2020``."""
    found = (re.search(r"([A-Z][\w ]+ (?:19|20)\d\d)$", part.strip()) for part in cell.split(";"))
    return {match[1] for match in found if match}


def test_the_table_of_refusals_is_the_codes_row_by_row() -> None:
    assert section("Which combine").strip().endswith(refusals.table())


def test_the_page_of_models_names_every_choice_and_has_the_table_of_the_benchmark() -> None:
    named = {name for cells in rows(MODELS_PAGE) if len(cells) == 4 for name in re.findall(r"`(\w+)`", cells[0])}
    assert named == set(groups()["model"])
    measured = [cells[0].strip("`").split() for cells in rows(MODELS_PAGE) if cells[0].startswith("`model=")]
    assert {line[0] for line in measured} <= {f"model={choice}" for choice in named}
    assert tuple(" ".join(line) for line in measured) == models.CHOICES


@pytest.mark.parametrize(
    "page",
    [AXES_PAGE, README, MODELS_PAGE, DEPLOYMENT_PAGE, SWEEPS_PAGE, PRIVACY_PAGE],
    ids=["axes", "readme", "models", "deployment", "sweeps", "privacy"],
)
def test_every_run_that_a_page_shows_composes(page: str) -> None:
    shown = commands(page)
    assert shown
    for line in shown:
        jobs = expand_sweep([word for word in line.split() if word != "-m"])
        for job in {tuple(jobs[0]), tuple(jobs[-1])}:
            compose_config(job)


def test_the_readme_names_every_axis_and_choices_that_exist() -> None:
    told = {cells[0].strip("`"): cells[1] for cells in rows(README) if len(cells) == 3}
    for axis in AXES:  # all choices: docs/axes.md, so that a new one is one row of one page
        assert set(re.split(r",\s*", told[axis])) <= set(groups()[axis]), axis


def test_the_layout_names_every_config_group_and_files_that_exist() -> None:
    assert {group for group in groups() if f"`{group}`" in LAYOUT} == set(groups())
    for name in re.findall(r"`(\w+(?:/\w+)*\.py)`", LAYOUT):
        assert any((ROOT / folder / name).exists() for folder in ("", "fedgh_app", "fedgh_app/pose")), name


def test_every_test_that_the_page_of_faults_names_exists_and_each_row_has_one_of_either_kind() -> None:
    table = [cells for cells in rows(FAULTS_PAGE) if len(cells) == 4]
    assert len(table) >= 13
    for fault, *_, tests in table:
        named = re.findall(r"`(\w+\.py)::(\w+)`", tests)
        assert len(named) == tests.count("`") / 2, fault
        for file, name in named:
            (source,) = (ROOT / "tests").rglob(file)
            assert re.search(rf"^def {name}\(", source.read_text(), re.MULTILINE), (fault, file, name)
        slow = {"test_faults_e2e.py", "test_flower.py"}
        if "later" not in fault:  # a server that is lost in mid-run needs one that lets a run begin
            assert {file in slow for file, _ in named} == {True, False}, fault


def test_the_pages_name_every_option_of_the_commands_that_they_describe() -> None:
    from typer.main import get_command

    from fedgh_app.cli import app

    prediction = (ROOT / "docs/prediction.md").read_text()
    for name, page in (("predict", prediction), ("export", prediction), ("report", SWEEPS_PAGE)):
        command = get_command(app).commands[name]
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert options - {"--help"} <= set(re.findall(r"--[a-z-]+", page)), name


def test_what_the_page_of_safety_names_is_there() -> None:
    page = (ROOT / "docs/safety.md").read_text()
    cells = rows(page.partition("## Promised")[2].partition("## Not promised")[0])
    assert len(cells) > 8
    for *_, shown in cells:
        files = re.findall(r"`([\w/]+\.py)`", shown)
        assert files and all((ROOT / "tests" / file).is_file() for file in files), shown

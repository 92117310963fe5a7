"""A command has the options that tasks' functions name, and a task is given those alone that it takes."""

from types import SimpleNamespace
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from fedgh_app.cli import task_options
from fedgh_app.cli.task_options import Options, function_of, with_options
from fedgh_app.errors import UserError


def find(run: str, box: Annotated[str, typer.Option(help="where")] = "all", *, told: int = 0) -> str:
    """Find somebody.

    In a box.
    """
    return f"{run} {box} {told}"


def name(run: str, rank: Annotated[int, typer.Option(help="how many")]) -> str:
    """Name somebody."""
    return f"{run} {rank}"


def test_a_command_has_the_options_of_all_tasks_and_hands_on_those_that_were_given() -> None:
    given: list[tuple[str, Options]] = []

    def command(run: Annotated[str, typer.Argument()], *, options: Options, plain: bool = False) -> None:
        given.append((run, options))

    app = typer.Typer()
    app.command()(with_options(command, [find, name]))
    said = CliRunner().invoke(app, ["--help"]).output
    places = [said.index(word) for word in ("Find somebody.", "Name somebody.", "--box", "--rank", "--plain")]
    assert places == sorted(places)
    assert "In a box" not in said and "told" not in said
    for arguments in (["RUN", "--rank", "3"], ["RUN", "--rank", "3", "--box", "here"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert given == [("RUN", {"rank": 3}), ("RUN", {"rank": 3, "box": "here"})]


def test_a_task_without_the_command_or_the_option_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"finding": SimpleNamespace(find=find), "naming": None}
    monkeypatch.setattr(task_options, "module_of", lambda task, _: modules[task])
    assert function_of("finding", "find", {"box": "here"})("RUN", told=1) == "RUN here 1"
    with pytest.raises(UserError, match="--min-rank: the task finding has no such option"):
        function_of("finding", "find", {"min_rank": 3})
    with pytest.raises(UserError, match="the task naming has no such command; expected a run or a data set of another"):
        function_of("naming", "find")


def test_annotations_that_are_strings_are_an_error() -> None:
    def function(out: "Annotated[str, typer.Option()]") -> None: ...

    def command(options: Options) -> None: ...

    with pytest.raises(TypeError, match="annotations are strings"):
        with_options(command, [function])

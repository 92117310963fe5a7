"""What tasks bring to the commands: the module ``commands`` of a task's package has a function for each that it knows.

Every command imports these modules: what takes torch is imported inside the functions. The ``Annotated`` parameters of
a function are options of its command (so no annotation is a string: no ``from __future__ import annotations`` there),
the first line of its docstring is the help. Beside the options it is handed:

- ``predict(run, *, model, progress)`` -> text; has ``out``, where it writes
- ``export(run, path)`` -> text
- ``evaluate(run, values, *, progress)`` -> ``as_json()``, ``score`` to print, ``again``: text or None; has ``out``
- ``score()`` -> prints, ``as_json()``; has ``dataset``
- ``check(dataset, root, augmentation, *, out, count, progress)``, of `fedgh data check` -> prints, ``bad``
- in ``MAKES``, by what is said meanwhile: functions ``(*, home, progress)`` -> text, each a command of `fedgh data`
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, get_origin

from fedgh_app.errors import UserError
from fedgh_app.tasks import TASKS, module_of

Options = Mapping[str, Any]  # of a task's own, those that were given
Command = Callable[..., None]
MODULES = [module for task in TASKS if (module := module_of(task, "commands"))]


def of_tasks(command: Command) -> Command:
    """A command with the options of the tasks' functions of its name."""
    name = command.__name__
    return with_options(command, [getattr(module, name) for module in MODULES if hasattr(module, name)])


def with_options(command: Command, functions: Sequence[Callable[..., object]]) -> Command:
    """A command with the options of ``functions`` in the place of its parameter ``options``, and with their help."""
    asked: dict[str, inspect.Parameter] = {}
    for function in functions:
        of_function = inspect.signature(function).parameters.items()
        if any(isinstance(item.annotation, str) and "Annotated" in item.annotation for _, item in of_function):
            raise TypeError(f"{function.__module__}: annotations are strings, expected none imported from __future__")
        asked |= {name: item for name, item in of_function if get_origin(item.annotation) is Annotated}
    parameters: list[inspect.Parameter] = []
    for item in inspect.signature(command).parameters.values():
        parameters += asked.values() if item.name == "options" else [item]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        given = {name: values.pop(name) for name in asked}
        command(options={name: value for name, value in given.items() if value != asked[name].default}, **values)

    called.__doc__ = (
        "\n\n".join((function.__doc__ or "").partition("\n")[0] for function in functions) or command.__doc__
    )
    by_name = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in parameters]
    called.__signature__ = inspect.Signature(by_name)  # type: ignore[attr-defined]  # what typer asks for
    return called


def function_of(task: str, name: str, options: Options = MappingProxyType({})) -> Callable[..., Any]:
    """What a task does at a command; UserError where it has no such command, or not one of these options."""
    function = getattr(module_of(task, "commands"), name, None)
    if function is None:
        raise UserError(f"the task {task} has no such command; expected a run or a data set of another task")
    if unknown := [option for option in options if option not in inspect.signature(function).parameters]:
        raise UserError(f"--{unknown[0].replace('_', '-')}: the task {task} has no such option")
    return functools.partial(function, **options)

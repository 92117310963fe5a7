"""How the source of checkouts reads, in numbers, side by side: size, layering, and what it takes to add a thing.

    python -m benchmarks.source [CHECKOUT …]

Without a checkout, this one. Counted is what ``fedgh_app`` and ``strategies`` have:

- lines, in all and by kind; modules in the largest folder, without ``__init__.py``
- levels of imports: modules on the longest chain of imports at the top of modules; likewise of rooms, the folders and
  lone modules right below ``fedgh_app``
- signatures with a config: functions with a ``DictConfig`` among their parameters
- calls of ``instantiate``; functions of more than 60 lines; ``Any`` for a thousand lines, imports left out
- files of each example in ``tests/additions``, which `CONTRIBUTING.md` names and a test adds
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from benchmarks import output

PACKAGES = ("fedgh_app", "strategies")
LONGEST = 60  # lines of a function that fits a screen
Function = ast.FunctionDef | ast.AsyncFunctionDef
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Module(NamedTuple):
    """A file of Python: its place below the checkout, its lines, and what they mean."""

    file: Path
    lines: list[str]
    tree: ast.Module

    @property
    def name(self) -> str:
        """As it is imported."""
        return ".".join(self.file.with_suffix("").parts).removesuffix(".__init__")


def modules_of(checkout: Path) -> list[Module]:
    """Every module of both packages; where there is none, exits with a line that says so."""
    files = sorted(file for package in PACKAGES for file in (checkout / package).rglob("*.py"))
    if not files:
        raise SystemExit(f"{checkout}: expected a checkout with {' and '.join(PACKAGES)}, found neither")
    texts = {file: file.read_text() for file in files}
    return [Module(file.relative_to(checkout), text.splitlines(), ast.parse(text)) for file, text in texts.items()]


def kinds(module: Module) -> Counter[str]:
    """How many of a module's lines are docstrings, imports, blank, comments and code."""
    kind_of: dict[int, str] = {}
    for node in ast.walk(module.tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            kind_of |= dict.fromkeys(_lines(node.body[0]), "docstrings")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            kind_of |= dict.fromkeys(_lines(node), "imports")
    for number, line in enumerate(module.lines, 1):
        text = line.strip()
        kind_of.setdefault(number, "blank" if not text else "comments" if text.startswith("#") else "code")
    return Counter(kind_of.values())


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def imports_of(module: Module, names: set[str]) -> set[str]:
    """Which of these modules one imports when it is imported: those that only types need do not count."""
    found = set()
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {full if (full := f"{node.module}.{entry.name}") in names else node.module for entry in node.names}
        elif isinstance(node, ast.Import):
            found |= {entry.name for entry in node.names}
    return (found & names) - {module.name}


def levels(imports: Mapping[str, set[str]]) -> int | str:
    """The number of names on the longest chain of imports; ``a circle`` where one leads back to itself."""

    @cache
    def depth(name: str) -> int:
        return 1 + max(map(depth, imports[name]), default=0)

    try:
        return max(map(depth, imports))
    except RecursionError:
        return "a circle"


def room_of(name: str) -> str:
    """The folder or lone module right below ``fedgh_app`` in which a module is; else its package."""
    package, *inside = name.split(".")
    return inside[0] if package == "fedgh_app" and inside else package


def takes_config(function: Function) -> bool:
    """Whether a function takes a config as Hydra composes it."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return any("DictConfig" in ast.unparse(each.annotation) for each in arguments if each.annotation)


def measures(checkout: Path) -> Iterator[tuple[str, int | float | str]]:
    """Each measure of a checkout's source, by its name."""
    modules = modules_of(checkout)
    for package in PACKAGES:
        counts = sum((kinds(module) for module in modules if module.file.parts[0] == package), Counter[str]())
        yield f"{package}: lines", counts.total()
        for kind in ("code", "docstrings", "comments", "imports", "blank"):
            yield f"{package}: {kind}", counts[kind]
    [(folder, most)] = Counter(each.file.parent for each in modules if each.file.name != "__init__.py").most_common(1)
    yield "modules", len(modules)
    yield "modules in the largest folder", f"{most} ({folder})"

    names = {module.name for module in modules}
    imports = {module.name: imports_of(module, names) for module in modules}
    rooms: dict[str, set[str]] = {}
    for name, imported in imports.items():
        rooms.setdefault(room_of(name), set()).update(set(map(room_of, imported)) - {room_of(name)})
    yield "levels of imports, modules", levels(imports)
    yield "levels of imports, rooms", levels(rooms)

    nodes = [node for module in modules for node in ast.walk(module.tree)]
    functions = [node for node in nodes if isinstance(node, Function)]
    called = [ast.unparse(node.func).split(".")[-1] for node in nodes if isinstance(node, ast.Call)]
    yield "signatures with a config", sum(map(takes_config, functions))
    yield "calls of instantiate", called.count("instantiate")
    yield f"functions over {LONGEST} lines", sum(len(_lines(function)) > LONGEST for function in functions)
    used = sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
    yield "Any, a thousand lines", round(1000 * used / sum(len(module.lines) for module in modules), 1)
    for thing in sorted((checkout / "tests/additions").glob("*")):
        files = [file for file in thing.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        yield f"files to touch for a {thing.name}", len(files)


def main() -> None:
    """Print and write the measures of each checkout, a column each."""
    parser = output.parser("source", __doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).resolve().parents[1]])
    options = parser.parse_args()
    found = {str(checkout): dict(measures(checkout)) for checkout in options.checkouts}
    table = output.empty_table("fedgh_app and strategies", ["", *(Path(name).resolve().name for name in found)])
    for measure in dict.fromkeys(name for each in found.values() for name in each):
        table.add_row(measure, *(str(each.get(measure, "-")) for each in found.values()))
    output.show(options.json, found, table)


if __name__ == "__main__":
    main()

"""What `benchmarks.source` counts, on a checkout small enough to count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import source

FILES = {
    "strategies/__init__.py": '"""Rules."""\n',
    "fedgh_app/__init__.py": "",
    "fedgh_app/low.py": '"""Below."""\n\nfrom typing import Any\n\n# Why.\nx: Any = 1\ny: Any = 2  # and this\n',
    "fedgh_app/room/one.py": "from fedgh_app import low\nfrom fedgh_app.room.two import called\n",
    "fedgh_app/room/two.py": (
        "from fedgh_app.low import x\n\n\ndef called(node: DictConfig | None, *, config: int) -> None:\n"
        '    """Builds.\n\n    Two.\n    """\n    hydra.utils.instantiate(node)\n' + "    x\n" * 60
    ),
    "tests/additions/model/conf/model/small.yaml": "",
    "tests/additions/model/small.py": "",
}


def checkout(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_counts_by_hand(tmp_path: Path) -> None:
    found = dict(source.measures(checkout(tmp_path, FILES)))
    kinds = ("lines", "code", "docstrings", "comments", "imports", "blank")
    assert [found[f"fedgh_app: {kind}"] for kind in kinds] == [78, 64, 5, 1, 4, 4]
    assert found["strategies: lines"] == 1
    assert found["modules"] == 5
    assert found["modules in the largest folder"] == "2 (fedgh_app/room)"
    assert found["levels of imports, modules"] == 3  # one, two, low
    assert found["levels of imports, rooms"] == 2  # room, low
    assert found["signatures with a config"] == 1
    assert found["calls of instantiate"] == 1
    assert found["functions over 60 lines"] == 1
    assert found["Any, a thousand lines"] == round(1000 * 2 / 79, 1)
    assert found["files to touch for a model"] == 2


def test_a_circle_of_imports_is_told(tmp_path: Path) -> None:
    files = {"fedgh_app/a.py": "import fedgh_app.b\n", "fedgh_app/b.py": "import fedgh_app.a\n"}
    assert dict(source.measures(checkout(tmp_path, files)))["levels of imports, modules"] == "a circle"


def test_a_folder_that_is_no_checkout_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected a checkout with fedgh_app and strategies, found neither"):
        source.modules_of(tmp_path)

"""Where the files lie that the app needs beside its code: ``conf/``, ``datasets/`` and the parts of Flower's bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent

# A wheel has the files inside the package (`setup.py`), so that nothing called `conf` or `datasets` is importable. They
# are looked for there first: what lies beside an installed package under these names is somebody else's. In a checkout,
# in the copy that `flwr run` gets and in Flower's bundle they lie beside the package.
SHIPPED = PACKAGE / "shipped"
INSTALLED = SHIPPED.is_dir()
ROOT = SHIPPED if INSTALLED else PACKAGE.parent
CONF = ROOT / "conf"
DATASETS = ROOT / "datasets"

Values = Mapping[str, Any]  # of the files in conf/, composed and resolved, or of a part of them

# All that a copy of the app consists of, by its name in there.
APP_FILES = {
    "fedgh_app": PACKAGE,
    "strategies": PACKAGE.parent / "strategies",
    **{name: ROOT / name for name in ("conf", "datasets", "pyproject.toml", "README.md", "LICENSE")},
}

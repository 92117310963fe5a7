"""What `pyproject.toml` cannot say: a wheel has the files from the top of the repository inside `fedgh_app`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
FILES = ("pyproject.toml", "README.md", "LICENSE", *(f"{folder}/**/*.yaml" for folder in ("conf", "datasets")))


class BuildWithFiles(build_py):
    """Copies the modules, and to `fedgh_app/shipped/` the files that `fedgh_app/resources.py` looks for there."""

    def _copies(self) -> dict[Path, Path]:
        if self.editable_mode:  # the checkout itself is used
            return {}
        shipped = Path(self.build_lib, "fedgh_app", "shipped")
        found = [file for pattern in FILES for file in sorted(HERE.glob(pattern))]
        return {file: shipped / file.relative_to(HERE) for file in found}

    def run(self) -> None:
        """Build as ever, then copy."""
        super().run()
        for file, copy in self._copies().items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Every file that the build makes, for whoever uninstalls it."""
        return [*super().get_outputs(include_bytecode), *map(str, self._copies().values())]


setup(cmdclass={"build_py": BuildWithFiles})

"""Folders and pictures that are there whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from fedgh_app.errors import UserError
from fedgh_app.vision.files import staged
from fedgh_app.vision.images import read_image, write_image


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_link_to_an_empty_folder_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    with staged(tmp_path / "link") as stage:
        (stage / "a").touch()
    assert names(tmp_path) == ["disk", "link"] and (tmp_path / "link").is_symlink()
    assert names(tmp_path / "disk") == ["a"]


def test_a_folder_that_cannot_be_replaced_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").touch()
    rename = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if target == root and (self / "new").exists():
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError), staged(root) as stage:
        (stage / "new").touch()
    assert names(tmp_path) == ["root"] and names(root) == ["old"]


def test_a_file_where_a_folder_should_be_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="irectory"), staged(tmp_path / "file"):
        pass
    assert names(tmp_path) == ["file"]


def test_a_picture_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 2] = 255  # red in OpenCV's order
    write_image(tmp_path / "a.png", image)
    assert (read_image(tmp_path / "a.png")[0, 0] == (255, 0, 0)).all()
    assert not cv2.imwrite(str(tmp_path / "no/a.png"), image)  # says nothing
    with pytest.raises(UserError, match=r"no/a\.png: picture cannot be written: No such file"):
        write_image(tmp_path / "no/a.png", image)


def test_no_picture_is_written_by_what_would_say_nothing() -> None:
    sources = Path(__file__).resolve().parents[2].joinpath("fedgh_app").rglob("*.py")
    assert [file.name for file in sources if re.search(r"\bimwrite\(", file.read_text())] == []

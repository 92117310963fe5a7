import json
import shutil
from collections import Counter
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from fedgh_app.errors import UserError
from fedgh_app.pose.arms.generated import generate
from fedgh_app.pose.data.augmentation import Augmentation
from fedgh_app.pose.data.check import COLUMNS, TILE, CheckReport, _spread, _surroundings, check
from fedgh_app.pose.data.records import PoseRecord, load_spec

ARM = load_spec("arm")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("check") / "arm", count=40, image_size=(64, 64), workers=1)


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "arm"))


def _edit(root: Path, change) -> None:
    content = json.loads((root / "annotations.json").read_text())
    change(content)
    (root / "annotations.json").write_text(json.dumps(content))


def printed(report: CheckReport) -> str:
    """As the command line prints it."""
    written = StringIO()
    Console(file=written, width=110, soft_wrap=True).print(report)
    return written.getvalue()


def test_a_good_data_set(data: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = check(
        ARM,
        data,
        out=tmp_path / "new" / "sheet.png",
        count=8,
        progress=lambda *at: calls.append(at),
    )
    assert not report.bad and not report.odd
    assert (report.images, report.annotations) == (40, 40)
    assert report.splits == {"train": 32, "test": 8}
    assert report.attributes["viewpoint"] == {"front": 10, "left": 10, "right": 10, "top": 10}
    assert report.visible == {"shoulder": 40, "elbow": 40, "wrist": 40}
    assert calls == [(k, 40) for k in range(1, 41)]
    assert report.sheet is not None
    sheet = cv2.imread(str(report.sheet))
    assert sheet.shape[1] == 8 + COLUMNS * (TILE + 8) and sheet.shape[0] > 2 * TILE
    text = printed(report)
    assert "CheckReport(" not in text
    for word in ("40", "│ viewpoint", "upright", "wrist", "no bad records"):
        assert word in text


def test_the_sheet_can_show_what_training_sees(data: Path, tmp_path: Path) -> None:
    sheets = {}
    for name, seen in (
        ("annotated", None),
        ("plain", (Augmentation(), (32, 32))),
        ("noise", (Augmentation(occlusion_probability=1.0, occlusion_size=1.0), (32, 32))),
    ):
        report = check(ARM, data, out=tmp_path / f"{name}.png", count=1, seen=seen)
        assert not report.bad
        sheets[name] = cv2.imread(str(report.sheet)).astype(int)
    assert len({sheet.shape for sheet in sheets.values()}) == 1
    # The hidden arm's skeleton is drawn where it was; only the picture behind it differs.
    assert 0.2 < (np.abs(sheets["noise"] - sheets["plain"]).max(-1) > 20).mean() < 0.95
    # The annotation is shown with more around it than the network sees.
    assert (sheets["annotated"] != sheets["plain"]).mean() > 0.2


def test_broken_data_are_listed_with_their_file(data: Path, tmp_path: Path) -> None:
    images = data / "images"
    whole = (images / "000003.jpg").read_bytes()
    (images / "000003.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "000005.jpg").unlink()
    (images / "000007.jpg").write_text("no picture")

    def spoil(content: dict) -> None:
        content["annotations"][8]["keypoints"] = [1, 2]
        content["images"][9]["width"] = 65
        content["annotations"][10]["keypoints"][:2] = [-30, 5]

    _edit(data, spoil)
    report = check(ARM, data, out=tmp_path / "sheet.png", count=4)
    assert report.bad
    reasons = {bad.file.name: bad.reason for bad in report.bad}
    assert reasons.keys() == {"000003.jpg", "000005.jpg", "000007.jpg", "annotations.json"}
    assert "truncated" in reasons["000003.jpg"] and "missing" in reasons["000005.jpg"]
    assert "decode" in reasons["000007.jpg"] and "keypoints" in reasons["annotations.json"]
    assert report.annotations == 36
    assert any("000010.jpg" in line and "65" in line for line in report.odd)
    assert any("outside" in line and "000011.jpg" in line for line in report.odd)
    text = printed(report)
    assert "4 bad records" in text and "000003.jpg" in text and "note:" in text


def test_a_group_on_both_sides_of_the_split_is_bad(data: Path, tmp_path: Path) -> None:
    def spoil(content: dict) -> None:
        for image, split in zip(content["images"][:2], ("train", "test"), strict=True):
            image["source"], image["split"] = "one.jpg", split

    _edit(data, spoil)
    report = check(ARM, data, out=tmp_path / "sheet.png", count=1)
    assert len(report.bad) == 1 and "one.jpg" in report.bad[0].reason


def test_nothing_usable_gives_no_sheet(data: Path, tmp_path: Path) -> None:
    for path in (data / "images").iterdir():
        path.write_bytes(b"")
    report = check(ARM, data, out=tmp_path / "sheet.png")
    assert report.sheet is None and not (tmp_path / "sheet.png").exists()
    assert len(report.bad) == 40 and "and 20 more" in printed(report)


def test_no_data_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fedgh data arm"):
        check(ARM, tmp_path / "nowhere", out=tmp_path / "sheet.png")


def _record(number: int, **attributes: str) -> PoseRecord:
    image = Path(f"{number}.jpg")
    zeros = np.zeros((3, 2), np.float32)
    return PoseRecord(str(number), image, zeros, zeros[:, 0] == 0, zeros[0], 1.0, str(number), None, attributes)


def test_pictures_are_spread_over_attributes() -> None:
    records = [_record(k, view="front") for k in range(90)] + [_record(k, view="top") for k in range(90, 100)]
    assert Counter(r.attributes["view"] for r in _spread(records, 8)) == {"front": 4, "top": 4}
    assert Counter(r.attributes["view"] for r in _spread(records, 30)) == {"front": 20, "top": 10}
    assert [r.id for r in _spread(records[:90], 3)] == ["15", "45", "75"]
    assert len(_spread(records, 500)) == 100


def test_surroundings_by_hand() -> None:
    # 1.7 x 20 = 34 px about (50, 50), whose pixel-centre box starts at 50 - 17 - 0.5
    assert _surroundings(np.array([40, 45, 20, 10]), 100, 100) == pytest.approx([32.5, 32.5, 34, 34])
    # in the corner it is moved into the image, whose edge lies at -0.5
    assert _surroundings(np.array([0, 0, 20, 10]), 100, 100) == pytest.approx([-0.5, -0.5, 34, 34])
    # never larger than the image, and centred on an axis that is too short for it
    x, y, width, height = _surroundings(np.array([0, 0, 90, 40]), 100, 40)
    assert (x, width, height) == pytest.approx((-0.5, 100, 100)) and -60.5 <= y <= -0.5

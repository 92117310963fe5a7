"""The report in a real browser, as its reader has it: on a desk, on a phone, in the dark.

Fonts differ from machine to machine, so the page is compared with ``report_layout.json`` region by region, and pixels
only in a figure, whose letters are drawn as paths. After a change that is meant: FEDGH_NEW_REFERENCE=1 pytest …
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from browser import Page, chromium
from sweep_folder import make

from fedgh_app.reports.page import write
from fedgh_app.reports.statistics import settings_of

HERE = Path(__file__).parent
LAYOUT = HERE / "report_layout.json"
FIGURE = HERE / "report_figure.png"
RENEW = bool(os.environ.get("FEDGH_NEW_REFERENCE"))
WIDTHS = (1280, 390)

OVERFLOWING = """[...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.wide') && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))"""
BOXES = """Object.fromEntries([...document.querySelectorAll('header, section, footer')].map(e => {
  const box = e.getBoundingClientRect();
  return [e.id || e.tagName.toLowerCase(), {x: box.x, y: box.y + scrollY, width: box.width, height: box.height}] }))"""
CONTRASTS = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = colour => {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return Object.fromEntries(['p', 'h2', 'thead th', 'td', 'nav a', '.failed', '.note', 'figcaption'].map(name => {
    const ink = light(getComputedStyle(document.querySelector(name)).color);
    return [name, (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05)] })) })()"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("report") / "arm-strategies")
    return write(settings_of([folder]), [folder], folder, "FedAvg")[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_is_there_and_fits(page: Page, report: Path, tmp_path: Path, width: int, dark: bool) -> None:
    page.complaints.clear()
    page.requests.clear()
    page.open(report, width, dark=dark)
    assert page.complaints == []
    assert [address for address in page.requests if not address.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(OVERFLOWING) == []
    sizes = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth * i.naturalHeight)")
    assert len(sizes) == 10 and all(size > 20_000 for size in sizes)
    assert page.evaluate(
        "[...document.images].every(i => Math.abs(i.naturalWidth / i.naturalHeight"
        " / (i.clientWidth / i.clientHeight) - 1) < .02)"
    )
    contrasts = page.evaluate(CONTRASTS)
    assert all(value >= 4.5 for value in contrasts.values()), contrasts
    page.screenshot(tmp_path / "page.png")
    image = cv2.imread(str(tmp_path / "page.png"), cv2.IMREAD_GRAYSCALE)
    background = np.median(image)
    assert (background < 60) if dark else (background > 200)
    inked = (np.abs(image.astype(float) - background) > 60).mean(axis=1)
    assert 0.01 < inked.mean() < 0.5
    blank = max(map(len, "".join("#" if row else " " for row in inked > 0).split("#")))
    assert blank < 200  # no hole where a figure or table should be


def test_the_regions_lie_where_they_lay(page: Page, report: Path) -> None:
    found: dict[str, dict[str, Any]] = {}
    for width in WIDTHS:
        page.open(report, width)
        found[str(width)] = page.evaluate(BOXES)
    if RENEW:
        LAYOUT.write_text(json.dumps(found, indent=1) + "\n")
    for width, regions in json.loads(LAYOUT.read_text()).items():
        assert list(found[width]) == list(regions)
        below = 0.0
        for name, was in regions.items():
            now = found[width][name]
            assert now["x"] == pytest.approx(was["x"], abs=3), name
            assert now["width"] == pytest.approx(was["width"], abs=6), name
            # Text takes more or fewer lines in other fonts.
            assert now["height"] == pytest.approx(was["height"], rel=0.25, abs=90), name
            assert now["y"] >= below, name
            below = now["y"] + now["height"]


def test_a_figure_looks_as_it_did(page: Page, report: Path, tmp_path: Path) -> None:
    page.open(report, 1280)
    box = page.evaluate(
        "(b => ({x: b.x, y: b.y + scrollY, width: b.width, height: b.height}))"
        "(document.images[0].getBoundingClientRect())"
    )
    page.screenshot(tmp_path / "figure.png", box)
    image = cv2.imread(str(tmp_path / "figure.png"))
    small = cv2.resize(image, (160, 64), interpolation=cv2.INTER_AREA)
    if RENEW:
        cv2.imwrite(str(FIGURE), small)
    now, then = (255.0 - picture.astype(float).ravel() for picture in (small, cv2.imread(str(FIGURE))))
    assert np.corrcoef(now, then)[0, 1] > 0.95  # nothing like it in a blank picture, or in that of other numbers
    assert np.abs(now - then).mean() < 3


def test_a_wide_table_scrolls_in_its_own_place(page: Page, tmp_path: Path) -> None:
    """Long names of settings and many columns, at the width of a phone."""
    folder = make(
        tmp_path / "sweep", {"fedgh": (0.5, 0.6), "fedavg": (0.5, 0.6)}, failed=False, more=["optimizer.lr=0.00012345"]
    )
    file = write(settings_of([folder]), [folder], folder, "FedAvg")[0]
    text = file.read_text()
    file.write_text(text.replace(">FedGH<", ">FedGH strategy.granularity=layer optimizer.weight_decay=0.000012345<"))
    page.open(file, 390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate("[...document.querySelectorAll('.wide')].some(e => e.scrollWidth > e.clientWidth)")


def test_the_page_prints(page: Page, report: Path) -> None:
    import base64

    page.open(report, 1280, dark=True)
    printed = base64.b64decode(page.ask("Page.printToPDF", printBackground=False)["data"])
    assert printed.startswith(b"%PDF")
    assert 2 <= printed.count(b"/Type /Page\n") <= 8

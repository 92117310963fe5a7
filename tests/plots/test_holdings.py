"""Who holds what is drawn for few and for many clients."""

from __future__ import annotations

from pathlib import Path

import cv2
from histories import coloured

from fedgh_app.plots.holdings import holdings
from fedgh_app.plots.style import MOST_INCHES


def test_who_holds_what_is_drawn_for_thousands(tmp_path: Path) -> None:
    """Of more clients than a picture has room for, and of which only some can be named."""
    values = ("front", "left", "right", "top")
    sizes = []
    for count in (4, 1500):
        held = [{values[i % 4]: 1} for i in range(count)]
        holdings(held, [str(i) for i in range(count)], "viewpoint", tmp_path / "partition.png", "t")
        assert coloured(tmp_path / "partition.png") > 2000
        sizes.append(cv2.imread(str(tmp_path / "partition.png")).shape)
    assert sizes[0][1] < sizes[1][1] <= 1.1 * 130 * MOST_INCHES

"""Who holds what is drawn for few and for many clients."""

from __future__ import annotations

from pathlib import Path

import cv2
from histories import coloured

from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.config.compose import compose_config
from fedgh_app.data.partition import Dealt, Partition
from fedgh_app.plots.holdings import holdings
from fedgh_app.plots.style import MOST_INCHES


def test_who_holds_what_is_drawn_for_thousands(home: Path, tmp_path: Path) -> None:
    """Of more clients than a picture has room for, and of which only some can be named."""
    config = compose_config(["dataset=arm", "dataset.input_size=[32,32]"])
    cache = ClientAssembly(config).data.only.examples
    sizes = []
    for count in (4, 1500):
        parts = Partition(tuple(map(str, range(count))), tuple((i % len(cache),) for i in range(count)), ((),) * count)
        holdings({"arm": Dealt(config, cache, parts)}, tmp_path / "partition.png", "t")
        assert coloured(tmp_path / "partition.png") > 2000
        sizes.append(cv2.imread(str(tmp_path / "partition.png")).shape)
    assert sizes[0][1] < sizes[1][1] <= 1.1 * 130 * MOST_INCHES

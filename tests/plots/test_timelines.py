"""Late updates and clusters are drawn for few and for many clients."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from histories import asynchronous, coloured, history

from fedgh_app.plots.timelines import clusters, staleness
from fedgh_app.runs.history import Round


@pytest.mark.parametrize(("clients", "rounds"), [(1, 1), (4, 25), (30, 25), (1500, 3)])
def test_late_updates_and_clusters_are_drawn(tmp_path: Path, clients: int, rounds: int) -> None:
    labels = {str(i): f"site {i}" for i in range(clients)}
    made = asynchronous(clients, rounds)
    staleness(made, labels, tmp_path / "staleness.png", "t")
    clusters(made, labels, tmp_path / "clusters.png", "t")
    assert coloured(tmp_path / "staleness.png") > 200
    assert coloured(tmp_path / "clusters.png") > 200


def test_hundreds_of_clusters_leave_room_for_the_picture(tmp_path: Path) -> None:
    """Matplotlib warns where a list of all of them would push it aside."""
    made = [Round(round=1, clusters={f"cluster-{i}": [str(2 * i), str(2 * i + 1)] for i in range(250)})]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clusters(made, {}, tmp_path / "clusters.png", "t")
    assert coloured(tmp_path / "clusters.png") > 200_000


def test_a_run_without_late_updates_or_clusters_has_no_such_picture(tmp_path: Path) -> None:
    staleness(history(4, 3), {}, tmp_path / "a.png", "t")
    clusters(history(4, 3), {}, tmp_path / "b.png", "t")
    assert list(tmp_path.iterdir()) == []

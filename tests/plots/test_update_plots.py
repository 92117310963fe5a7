"""Cosines, weights and conflicts are drawn for few and for many clients."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from histories import asynchronous, coloured, history

from fedgh_app.plots.updates import cosine_matrices, weights_and_conflicts
from fedgh_app.runs.history import Round


@pytest.mark.parametrize(("clients", "rounds"), [(2, 1), (2, 25), (12, 2), (30, 2)])
def test_cosines_and_weights_are_drawn(tmp_path: Path, clients: int, rounds: int) -> None:
    labels = {str(i): f"site {i}" for i in range(clients)}
    for kind, made in (("sync", history(clients, rounds)), ("async", asynchronous(clients, rounds))):
        cosine_matrices(made, labels, tmp_path / f"{kind}-cosines.png", "t")
        weights_and_conflicts(made, labels, tmp_path / f"{kind}-weights.png", "t")
        assert coloured(tmp_path / f"{kind}-cosines.png") > 200
        assert coloured(tmp_path / f"{kind}-weights.png") >= 60


def test_one_client_has_no_cosines_to_draw(tmp_path: Path) -> None:
    cosine_matrices(history(1, 3), {"0": "site"}, tmp_path / "cosines.png", "t")
    assert not (tmp_path / "cosines.png").exists()


def test_two_updates_of_a_client_weigh_together(tmp_path: Path) -> None:
    twice = Round(round=1, strategy={"c": {"0": 0.3, "0#2": 0.2, "1": 0.5}})
    once = Round(round=1, strategy={"c": {"0": 0.5, "1": 0.5}})
    for name, one in (("a", twice), ("b", once)):
        weights_and_conflicts([one], {"0": "left", "1": "right"}, tmp_path / f"{name}.png", "t")
    assert (cv2.imread(str(tmp_path / "a.png")) == cv2.imread(str(tmp_path / "b.png"))).all()


def test_a_rule_without_weights_has_its_conflicts_drawn(tmp_path: Path) -> None:
    robust = [Round(round=n, strategy={"clients": ["0", "1"], "conflicting": 1.0}) for n in (1, 2)]
    weights_and_conflicts(robust, {}, tmp_path / "weights.png", "t")
    grey = cv2.imread(str(tmp_path / "weights.png"))
    assert ((grey > 100) & (grey < 200)).all(axis=2).sum() > 2000  # the bars


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    cosine_matrices([Round(round=0)], {}, tmp_path / "a.png", "t")
    weights_and_conflicts([Round(round=0)], {}, tmp_path / "b.png", "t")
    assert list(tmp_path.iterdir()) == []

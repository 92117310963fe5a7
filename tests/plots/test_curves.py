"""Curves are drawn for few and for many clients, and show something. People judge the rest by eye."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from histories import coloured, history

from fedgh_app.plots.curves import client_curves, epsilon, part_curves
from fedgh_app.runs.history import Evaluations, Measured, MeasuredByClients, Round


@pytest.mark.parametrize(("clients", "rounds"), [(1, 1), (2, 25), (12, 4), (30, 1), (30, 25)])
def test_keypoints_and_clients_are_drawn(tmp_path: Path, clients: int, rounds: int) -> None:
    made = history(clients, rounds)
    part_curves(made, tmp_path / "keypoints.png", "t", "PCK@0.2", "keypoint")
    client_curves(made, {str(i): f"site {i}" for i in range(clients)}, tmp_path / "clients.png", "t", "PCK@0.2")
    for path in (tmp_path / "keypoints.png", tmp_path / "clients.png"):
        assert coloured(path) >= 200, path.stem


def test_curves_follow_the_numbers(tmp_path: Path) -> None:
    part_curves(history(2, 5), tmp_path / "a.png", "t", "PCK@0.2", "keypoint")
    part_curves(history(2, 5, scale=0.5), tmp_path / "b.png", "t", "PCK@0.2", "keypoint")
    assert (cv2.imread(str(tmp_path / "a.png")) != cv2.imread(str(tmp_path / "b.png"))).any()


def test_what_was_not_measured_leaves_a_gap(tmp_path: Path) -> None:
    made = []
    for n, score in enumerate([0.1, None, float("nan"), 0.4]):
        pooled = Measured(score=score, parts={"hip": score})
        clients = MeasuredByClients(weighted=pooled, by_client={"0": pooled})
        made.append(Round(round=n, evaluate=Evaluations(clients=clients)))
    part_curves(made, tmp_path / "keypoints.png", "t", "PCK@0.2", "keypoint")
    client_curves(made, {}, tmp_path / "clients.png", "t", "PCK@0.2")
    assert coloured(tmp_path / "keypoints.png") > 100
    assert coloured(tmp_path / "clients.png") > 100


def test_what_was_spent_of_privacy_is_drawn(tmp_path: Path) -> None:
    made = [Round(round=number, privacy={"epsilon": 2.0 * number, "delta": 1e-5}) for number in range(4)]
    epsilon(made, tmp_path / "epsilon.png", "t")
    assert coloured(tmp_path / "epsilon.png") > 200


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    part_curves([Round(round=0)], tmp_path / "a.png", "t", "PCK@0.2", "keypoint")
    client_curves([Round(round=0)], {}, tmp_path / "b.png", "t", "PCK@0.2")
    epsilon(history(4, 3), tmp_path / "c.png", "t")
    assert list(tmp_path.iterdir()) == []

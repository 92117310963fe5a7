"""Every picture is drawn for few and for many clients, and shows something. People judge the rest by eye."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fedgh_app import plots
from fedgh_app.federation import Round


def history(clients: int, rounds: int, scale: float = 1.0) -> list[Round]:
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(clients)]
    made = [Round(0, evaluate={"central": {"per_keypoint": {"elbow": 0.1, "wrist": 0.0}, "pck": 0.05}})]
    for number in range(1, rounds + 1):
        cosines = np.eye(clients) + rng.uniform(-0.2, 0.2, (clients, clients)) * (1 - np.eye(clients))
        made.append(
            Round(
                number,
                evaluate={
                    "central": {"per_keypoint": {"elbow": scale * number / rounds, "wrist": 0.3}, "pck": 0.4},
                    "clients": {"by_client": {name: {"pck": rng.uniform()} for name in names}},
                },
                strategy={
                    "clients": names,
                    "cosines": cosines.tolist(),
                    "conflicting": rng.uniform(),
                    "c": dict.fromkeys(names, 1 / clients),
                },
            )
        )
    return made


def coloured(path: Path) -> int:
    """Pixels that are neither white, grey nor black."""
    image = cv2.imread(str(path)).astype(int)
    return int((image.max(axis=2) - image.min(axis=2) > 40).sum())


@pytest.mark.parametrize("clients", [1, 2, 4, 30])
@pytest.mark.parametrize("rounds", [1, 25])
def test_every_plot_shows_colour(tmp_path: Path, clients: int, rounds: int) -> None:
    labels = {str(i): f"site {i}" for i in range(clients)}
    made = history(clients, rounds)
    plots.keypoint_curves(made, tmp_path / "keypoints.png", "t", "PCK@0.2")
    plots.client_curves(made, labels, tmp_path / "clients.png", "t", "PCK@0.2")
    plots.cosine_matrices(made, labels, tmp_path / "cosines.png", "t")
    plots.weight_bars(made, labels, tmp_path / "weights.png", "t")
    drawn = sorted(tmp_path.glob("*.png"))
    assert [path.stem for path in drawn] == ["clients", "cosines", "keypoints", "weights"]
    least = {"clients": 200, "cosines": 200, "keypoints": 200, "weights": 100 if clients <= plots.MOST_CLIENTS else 0}
    for path in drawn:
        assert coloured(path) >= least[path.stem], path.stem


def test_curves_follow_the_numbers(tmp_path: Path) -> None:
    plots.keypoint_curves(history(2, 5), tmp_path / "a.png", "t", "PCK@0.2")
    plots.keypoint_curves(history(2, 5, scale=0.5), tmp_path / "b.png", "t", "PCK@0.2")
    assert (cv2.imread(str(tmp_path / "a.png")) != cv2.imread(str(tmp_path / "b.png"))).any()


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    plots.keypoint_curves([Round(0)], tmp_path / "a.png", "t", "PCK@0.2")
    plots.client_curves([Round(0)], {}, tmp_path / "b.png", "t", "PCK@0.2")
    plots.cosine_matrices([Round(0)], {}, tmp_path / "c.png", "t")
    plots.weight_bars([Round(0)], {}, tmp_path / "d.png", "t")
    assert list(tmp_path.iterdir()) == []

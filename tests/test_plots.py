"""Every picture is drawn for few and for many clients, and shows something. People judge the rest by eye."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fedgh_app import plots, site
from fedgh_app.config import compose_config
from fedgh_app.federation import Round
from fedgh_app.partition import Dealt, Partition


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


@pytest.mark.parametrize(("clients", "rounds"), [(1, 1), (2, 25), (4, 1), (30, 25)])
def test_every_plot_shows_colour(tmp_path: Path, clients: int, rounds: int) -> None:
    labels = {str(i): f"site {i}" for i in range(clients)}
    made = history(clients, rounds)
    plots.keypoint_curves(made, tmp_path / "keypoints.png", "t", "PCK@0.2")
    plots.client_curves(made, labels, tmp_path / "clients.png", "t", "PCK@0.2")
    plots.cosine_matrices(made, labels, tmp_path / "cosines.png", "t")
    plots.weight_bars(made, labels, tmp_path / "weights.png", "t")
    drawn = sorted(tmp_path.glob("*.png"))
    assert [path.stem for path in drawn] == ["clients", "cosines", "keypoints", "weights"]
    least = {"clients": 200, "cosines": 200, "keypoints": 200, "weights": 60}
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


def asynchronous(clients: int, rounds: int) -> list[Round]:
    """Every client's update comes late by its number; client 0 is used twice in each round."""
    names = [str(i) for i in range(clients)]
    labels = ["0", "0#2", *names[1:]]
    pairs = [[None if i == j else 0.1 for j in labels] for i in labels]
    made = [Round(0)]
    for number in range(1, rounds + 1):
        strategy = {
            "clients": labels,
            "cosines": pairs,
            "staleness": {label: int(label.split("#")[0]) for label in labels},
            "dropped": number % 2,
            "c": dict.fromkeys(labels, 0.5 / clients),
        }
        half = {"0": names[: clients // 2], "1": names[clients // 2 :]}
        made.append(Round(number, strategy=strategy, clusters={k: v for k, v in half.items() if v}))
    return made


@pytest.mark.parametrize(("clients", "rounds"), [(1, 1), (4, 25), (30, 25), (1500, 3)])
def test_late_updates_and_clusters_are_drawn(tmp_path: Path, clients: int, rounds: int) -> None:
    labels = {str(i): f"site {i}" for i in range(clients)}
    made = asynchronous(clients, rounds)
    plots.staleness(made, labels, tmp_path / "staleness.png", "t")
    plots.clusters(made, labels, tmp_path / "clusters.png", "t")
    drawn = ["clusters", "staleness"]
    if clients <= 30:
        plots.cosine_matrices(made, labels, tmp_path / "cosines.png", "t")
        plots.weight_bars(made, labels, tmp_path / "weights.png", "t")
        drawn = ["clusters", "cosines", "staleness", "weights"]
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == drawn
    for name in {*drawn} - {"weights"}:
        assert coloured(tmp_path / f"{name}.png") > 200, name


def test_who_holds_what_is_drawn_for_thousands(home: Path, tmp_path: Path) -> None:
    """Of more clients than a picture has room for, and of which only some can be named."""
    config = compose_config(["dataset=arm", "dataset.input_size=[32,32]"])
    cache = site.open_data(config)
    sizes = []
    for count in (4, 1500):
        parts = Partition(tuple(map(str, range(count))), tuple((i % len(cache),) for i in range(count)), ((),) * count)
        plots.holdings({"arm": Dealt(config, cache, parts)}, tmp_path / "partition.png", "t")
        assert coloured(tmp_path / "partition.png") > 2000
        sizes.append(cv2.imread(str(tmp_path / "partition.png")).shape)
    assert sizes[0][1] < sizes[1][1] <= 1.1 * 130 * plots.MOST_INCHES


def test_what_was_spent_of_privacy_is_drawn(tmp_path: Path) -> None:
    made = [Round(number, privacy={"epsilon": 2.0 * number, "delta": 1e-5}) for number in range(4)]
    plots.epsilon(made, tmp_path / "epsilon.png", "t")
    assert coloured(tmp_path / "epsilon.png") > 200


def test_a_run_without_late_updates_or_clusters_or_noise_has_no_such_picture(tmp_path: Path) -> None:
    plots.staleness(history(4, 3), {}, tmp_path / "a.png", "t")
    plots.clusters(history(4, 3), {}, tmp_path / "b.png", "t")
    plots.epsilon(history(4, 3), tmp_path / "c.png", "t")
    assert list(tmp_path.iterdir()) == []


def test_two_updates_of_a_client_weigh_together(tmp_path: Path) -> None:
    twice = Round(1, strategy={"c": {"0": 0.3, "0#2": 0.2, "1": 0.5}})
    once = Round(1, strategy={"c": {"0": 0.5, "1": 0.5}})
    for name, this in (("a", twice), ("b", once)):
        plots.weight_bars([this], {"0": "left", "1": "right"}, tmp_path / f"{name}.png", "t")
    assert (cv2.imread(str(tmp_path / "a.png")) == cv2.imread(str(tmp_path / "b.png"))).all()


def test_a_rule_without_weights_has_its_conflicts_drawn(tmp_path: Path) -> None:
    robust = [Round(n, strategy={"clients": ["0", "1"], "conflicting": 1.0}) for n in (1, 2)]
    plots.weight_bars(robust, {}, tmp_path / "weights.png", "t")
    grey = cv2.imread(str(tmp_path / "weights.png"))
    assert ((grey > 100) & (grey < 200)).all(axis=2).sum() > 2000  # the bars


def test_what_was_not_measured_leaves_a_gap(tmp_path: Path) -> None:
    made = [
        Round(
            n, evaluate={"clients": {"per_keypoint": {"hip": value}, "pck": value, "by_client": {"0": {"pck": value}}}}
        )
        for n, value in enumerate([0.1, None, float("nan"), 0.4])
    ]
    plots.keypoint_curves(made, tmp_path / "keypoints.png", "t", "PCK@0.2")
    plots.client_curves(made, {}, tmp_path / "clients.png", "t", "PCK@0.2")
    assert coloured(tmp_path / "keypoints.png") > 100
    assert coloured(tmp_path / "clients.png") > 100

"""Histories of many clients, and a look at what was drawn of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fedgh_app.runs.history import Evaluations, Measured, MeasuredByClients, Round


def history(clients: int, rounds: int, scale: float = 1.0) -> list[Round]:
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(clients)]
    before = Measured(score=0.05, parts={"elbow": 0.1, "wrist": 0.0})
    made = [Round(round=0, evaluate=Evaluations(central=before))]
    for number in range(1, rounds + 1):
        cosines = np.eye(clients) + rng.uniform(-0.2, 0.2, (clients, clients)) * (1 - np.eye(clients))
        by_client = {name: Measured(score=rng.uniform()) for name in names}
        central = Measured(score=0.4, parts={"elbow": scale * number / rounds, "wrist": 0.3})
        made.append(
            Round(
                round=number,
                evaluate=Evaluations(central=central, clients=MeasuredByClients(by_client=by_client)),
                strategy={
                    "clients": names,
                    "cosines": cosines.tolist(),
                    "conflicting": rng.uniform(),
                    "c": dict.fromkeys(names, 1 / clients),
                },
            )
        )
    return made


def asynchronous(clients: int, rounds: int) -> list[Round]:
    """Every client's update comes late by its number; client 0 is used twice in each round."""
    names = [str(i) for i in range(clients)]
    labels = ["0", "0#2", *names[1:]]
    pairs = [[None if i == j else 0.1 for j in labels] for i in labels]
    made = [Round(round=0)]
    for number in range(1, rounds + 1):
        strategy = {
            "clients": labels,
            "cosines": pairs,
            "staleness": {label: int(label.split("#")[0]) for label in labels},
            "dropped": number % 2,
            "c": dict.fromkeys(labels, 0.5 / clients),
        }
        half = {"0": names[: clients // 2], "1": names[clients // 2 :]}
        made.append(Round(round=number, strategy=strategy, clusters={k: v for k, v in half.items() if v}))
    return made


def coloured(path: Path) -> int:
    """Pixels that are neither white, grey nor black."""
    image = cv2.imread(str(path)).astype(int)
    return int((image.max(axis=2) - image.min(axis=2) > 40).sum())

"""A sweep's folder as runs would have left it, with numbers that a test can check by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from fedgh_app.config.compose import compose_config
from fedgh_app.runs import storage
from fedgh_app.runs.sweep import Sweep

CLIENTS = {"0": "front", "1": "left", "2": "right", "3": "top"}
SCORES = {"fedavg": (0.60, 0.62, 0.58, 0.61), "fedgh": (0.64, 0.65, 0.63, 0.66), "krum": (0.50, 0.55, 0.41, 0.52)}
COMMON = ["rounds=5", "runtime=inprocess", "tracking=none"]


def make(
    folder: Path, scores: Mapping[str, Sequence[float]] | None = None, *, failed: bool = True, more: Sequence[str] = ()
) -> Path:
    """A sweep over strategies and seeds; its last job failed, and one run rejected a reply."""
    scores = SCORES if scores is None else scores
    count = max(map(len, scores.values()))
    strategies, seeds = ",".join(scores), ",".join(map(str, range(count + (1 if failed else 0))))
    sweep = Sweep.planned(folder, [f"strategy={strategies}", f"seed={seeds}", *COMMON, *more])
    configs = {strategy: compose_config([f"strategy={strategy}", *COMMON, *more]) for strategy in scores}
    for job in sweep.jobs:
        said = dict(item.split("=", 1) for item in job.overrides)
        strategy, seed = said["strategy"], int(said["seed"])
        if seed >= len(scores[strategy]):
            job.status, job.reason = "failed", "round 2: 0 good replies, expected at least 1"
            folder.mkdir(parents=True, exist_ok=True)
            sweep.log(job).touch()
            continue
        job.status, job.seconds, job.attempts = "completed", 61.0, 1
        config = configs[strategy].copy()
        config.seed = seed
        for node in config.values():
            if OmegaConf.is_dict(node) and "seed" in node:
                node.seed = seed
        run(sweep.folder(job), config, scores[strategy][seed], seed)
    with sweep.held():
        pass
    return folder


def run(folder: Path, config: Any, score: float, seed: int) -> None:
    """A run directory that ended with a score."""
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    rng = np.random.default_rng(seed)
    parts = {"shoulder": score + 0.1, "elbow": score, "wrist": score - 0.1}
    for number in range(config.rounds + 1):
        reached = 1 - 0.5**number
        central = {"score": reached * score, "parts": {key: reached * value for key, value in parts.items()}}
        cosines = np.eye(4) + (1 - np.eye(4)) * np.where(np.add.outer(range(4), range(4)) % 2, -0.1, 0.2)
        cosines += (1 - np.eye(4)) * rng.uniform(-0.02, 0.02)
        strategy = {"clients": list(CLIENTS), "cosines": cosines.tolist()} if number else {}
        line = {"round": number, "train": {}, "evaluate": {"central": central}, "strategy": strategy}
        storage.append_line(folder / "history.jsonl", {**line, "seconds": {"total": 10.0 + seed}, "rejected": []})
    odd = {"round": 2, "client": "3", "reason": "update not finite"}
    rejected = [odd] if seed == 1 and "FedAvg" in config.strategy._target_ else []
    result = {
        "metric": "PCK@0.2",
        "part": "keypoint",
        "score": score,
        "parts": parts,
        "more": {"auc": 0.3, "heatmap_accuracy": 0.4},
        "evaluated": "central",
        "rounds": config.rounds,
        "seconds": {"total": 65.0, "rounds": 60.0 + seed},
        "rejected": rejected,
        "clients": {name: {"label": label, "examples": 10, "test_examples": 5} for name, label in CLIENTS.items()},
        "clients_score": {name: score - 0.05 * place for place, name in enumerate(CLIENTS)},
        "dataset": "arm",
    }
    storage.write_json(folder / "result.json", result)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.client.client import TaskClient
from fedgh_app.config.compose import compose_config
from fedgh_app.config.site import SitePaths, bounded
from fedgh_app.data.site import open_site
from fedgh_app.errors import UserError

SMALL = ["dataset.input_size=[32,32]", "model.head_width=8", "batch_size=8", "tracking=none"]


def client(*overrides: str, part: int = 0) -> TaskClient:
    assembly = ClientAssembly(compose_config([*SMALL, *overrides]))
    assembly.data.deal(4)
    return assembly.client(open_site(assembly.data, {"partition-id": part, "num-partitions": 4}))


def test_training_leaves_the_received_arrays_alone(home: Path) -> None:
    one = client()
    sent = [array.copy() for array in one.get_parameters({})]
    kept = [array.copy() for array in sent]
    trained, examples, metrics = one.fit(sent, {"server-round": 1, "draw": 1})
    assert examples == len(one.site.train)
    assert all(np.array_equal(a, b) for a, b in zip(sent, kept, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(trained, kept, strict=True))
    assert "cosine-distance" not in metrics


def test_a_round_draws_the_same_again_and_another_round_does_not(home: Path) -> None:
    one = client("augmentation=standard")
    sent = [array.copy() for array in one.get_parameters({})]

    def losses(server_round: int) -> object:
        return one.fit(sent, {"server-round": server_round, "draw": server_round})[2]["loss"]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_cosine_distance_is_measured_when_asked(home: Path) -> None:
    one = client("optimizer.lr=0.01")
    sent = [array.copy() for array in one.get_parameters({})]
    _, _, metrics = one.fit(sent, {"server-round": 1, "draw": 1, "report": ["cosine-distance"]})
    assert 0 < float(metrics["cosine-distance"]) <= 2
    standing = client("optimizer=sgd", "optimizer.lr=0.0", "optimizer.momentum=0.0")
    _, _, metrics = standing.fit(sent, {"server-round": 1, "draw": 1, "report": ["cosine-distance"]})
    moved_by_statistics_alone = float(metrics["cosine-distance"])
    assert moved_by_statistics_alone < 2


def test_the_schedule_sets_the_learning_rate_of_the_round(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    adam = torch.optim.Adam.__init__

    def spy(self, params, lr, **rest):
        seen.append(lr)
        adam(self, params, lr=lr, **rest)

    monkeypatch.setattr(torch.optim.Adam, "__init__", spy)
    one = client("schedule=step", "schedule.milestones=[2]", "schedule.gamma=0.1", "optimizer.lr=0.5", "rounds=4")
    sent = [array.copy() for array in one.get_parameters({})]
    for server_round in (1, 2, 3):
        one.fit(sent, {"server-round": server_round, "draw": server_round})
    assert seen[0] == 0.5
    assert seen[2] == pytest.approx(0.05)


def test_a_site_reads_under_its_own_root_whatever_the_config_says(home: Path) -> None:
    config = compose_config([*SMALL, "partition=site", "dataset.root=/nowhere"])
    node = {"data-root": str(home / "data" / "arm"), "name": "hospital"}
    held = open_site(ClientAssembly(bounded(config, SitePaths.of(node))).data, node)
    assert held.name == "hospital"
    assert len(held.train) == len(held.examples.indices("train"))
    with pytest.raises(UserError, match=r"^client hospital: its node config has no data-root"):
        open_site(ClientAssembly(config).data, {"name": "hospital"})


def test_a_node_that_does_not_say_which_part_it_holds_is_an_error(home: Path) -> None:
    with pytest.raises(UserError, match=r"client lab: .*partition=site"):
        open_site(ClientAssembly(compose_config(SMALL)).data, {"name": "lab"})


def test_the_memory_is_of_the_update_as_it_was_sent(home: Path) -> None:
    one = client("privacy=local", "model.norm=group", "objective=dyn", "strategy=feddyn", "strategy.alpha=0.5")
    sent = [array.copy() for array in one.get_parameters({})]
    released, _, _ = one.fit(sent, {"server-round": 1, "draw": 1})
    one.local.acknowledge(1)
    for key, before, after in zip(one.shared_keys, sent, released, strict=True):
        np.testing.assert_allclose(one.local.accepted[f"memory:{key}"], -0.5 * (after - before), rtol=1e-4, atol=1e-6)


def test_by_examples_a_client_is_held_by_its_share(home: Path) -> None:
    one = client("objective=dyn", "strategy=feddyn", "strategy.alpha=0.5")
    one.extra = {"mean_examples": {"mean_examples": torch.tensor(3.0 * len(one.site.train))}}
    sent = [array.copy() for array in one.get_parameters({})]
    trained, _, _ = one.fit(sent, {"server-round": 1, "draw": 1})
    one.local.acknowledge(1)
    assert any(f"memory:{key}" in one.local.accepted for key in one.shared_keys)
    for key, before, after in zip(one.shared_keys, sent, trained, strict=True):
        if f"memory:{key}" in one.local.accepted:
            expected = -0.5 * 3.0 * (after - before)
            np.testing.assert_allclose(one.local.accepted[f"memory:{key}"], expected, rtol=1e-4, atol=1e-6)

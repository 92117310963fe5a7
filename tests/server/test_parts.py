"""What a part adds to a round: every hook of one that the round has never heard of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conftest import TINY
from flwr.app import Array, ArrayRecord
from recording import Recording

from fedgh_app.assembly.server import Assembly
from fedgh_app.client_app import app as client_app
from fedgh_app.config.compose import compose_config, join_overrides
from fedgh_app.grids.reply_checks import Norms
from fedgh_app.runs.history import Round
from fedgh_app.server.federation import Federation, Update
from fedgh_app.server.loop import federate
from fedgh_app.server.parts.control_variate import ControlVariatePart
from fedgh_app.server.parts.part import Part


class Zeroing(Part):
    """Sends a number along, rejects one client's updates, and makes every model zero."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.seen: list[int] = []
        self.cohorts: list[tuple[str, list[str]]] = []

    def join(self, federation: Federation) -> None:
        self.clients = list(federation.clients)

    def before_training(self, names: Sequence[str]) -> None:
        self.asked.append(list(names))

    def message_records(self) -> Mapping[str, ArrayRecord]:
        return {"asked": ArrayRecord({"times": Array(np.array([len(self.asked)], np.float32))})}

    def reject(self, norms: Mapping[str, Norms]) -> dict[str, str]:
        self.seen.append(len(norms))
        return {next(iter(norms)): "it was the first"}

    def after_aggregation(
        self, current: Round, base: ArrayRecord, proposed: ArrayRecord, updates: Sequence[Update], cohort: str
    ) -> ArrayRecord:
        self.cohorts.append((cohort, [update.client for update in updates]))
        return ArrayRecord({key: Array(np.zeros_like(array.numpy())) for key, array in proposed.items()})

    def note(self, current: Round) -> None:
        current.privacy = {"noted": current.round}

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}


def test_the_round_calls_every_hook(toy: list[str], tmp_path: Path) -> None:
    overrides = [*toy, "rounds=2", "evaluate.clients_every=0"]
    assembly = Assembly(compose_config(overrides))
    assembly.data.deal(4)
    nodes = [{"partition-id": number, "num-partitions": 4} for number in range(4)]
    grid = Recording(client_app, nodes, {"overrides": join_overrides(overrides)})
    federation, part = assembly.federation(tmp_path), Zeroing()
    federation.parts["zeroing"] = part
    federate(federation, grid, [])
    assert part.clients == ["0", "1", "2", "3"]
    assert part.asked == [part.clients, part.clients]
    sent = [message.content for message in grid.sent if message.metadata.message_type == "train"]
    assert [content["asked"]["times"].numpy().item() for content in sent] == [1.0] * 4 + [2.0] * 4
    assert len({id(content["asked"]) for content in sent[:4]}) == 1  # one record, however many are sent it
    assert part.seen == [4, 4]
    rejected = [[(item.client, item.reason) for item in line.rejected] for line in federation.history]
    assert rejected == [[], [("0", "it was the first")], [("0", "it was the first")]]
    assert part.cohorts == [("global", ["1", "2", "3"])] * 2
    assert not any(array.numpy().any() for array in federation.arrays.values())
    assert [line.privacy for line in federation.history] == [{"noted": number} for number in range(3)]
    assert federation.server_state()["parts"]["zeroing"] == {"asked": part.asked}


def test_an_objective_names_the_part_that_it_needs(home: Path) -> None:
    """By its file alone: nothing else knows which objectives have a server's half."""
    plain = Assembly(compose_config(TINY)).federation(Path())
    assert list(plain.parts) == ["outliers"]
    scaffold = ["objective=scaffold", "optimizer=sgd", "optimizer.momentum=0"]
    with_part = Assembly(compose_config([*TINY, *scaffold])).federation(Path())
    assert isinstance(with_part.parts["objective"], ControlVariatePart)

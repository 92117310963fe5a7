"""What is told of a config is what it says otherwise than the defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedgh_app.config.changes import changes
from fedgh_app.config.compose import compose_config


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["seed=3", "rounds=7", "tracking=none", "dataset=lspet_arm", "runtime=inprocess"], []),
        (["server_optimizer=sgd", "model.head_width=64"], ["server_optimizer=SGD (", "model=PoseNet (head_width=64)"]),
        (["sharing=fedbn"], ["sharing=FedBN"]),
        (["sharing=fedpav"], ["sharing=FedPav (modules=["]),
        (["objective=scaffold", "optimizer=sgd", "optimizer.momentum=0"], ["objective=Scaffold", "optimizer=SGD ("]),
        (["dataset.input_size=[32,32]"], ["dataset.input_size=[32, 32]"]),
        (["dataset=lspet_arm", "dataset.root=/data", "dataset.on_bad=skip"], ["dataset.on_bad=skip"]),
        (["clustering=finch"], ["clustering=finch (public=arm, images=32)"]),
    ],
)
def test_only_what_differs_from_the_defaults_is_told(home: Path, overrides: list[str], expected: list[str]) -> None:
    told = changes(compose_config(overrides))
    assert len(told) == len(expected)
    assert all(line.startswith(start) for line, start in zip(told, expected, strict=True)), told
    assert not re.search(r"_\w+_=|keeps|server_part", " ".join(told))

from __future__ import annotations

import pytest

from fedgh_app.runtimes.baselines import without


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("strategy=fedgh", False),
        ("strategy.granularity=layer", False),
        ("+strategy.new=1", False),
        ("~strategy.seed", False),
        ("strategy@topology.edge_strategy=fedaw", False),
        ("dataset@distillation.public=lspet", False),
        ("distillation.public.root=/strategy", False),
        ("dataset=lspet", True),
        ("run_dir='/a/strategy=b'", True),
        ("optimizer.lr=0.1", True),
    ],
)
def test_what_touches_a_group_is_left_out(override: str, kept: bool) -> None:
    assert (without([override], "strategy", "distillation") == [override]) is kept

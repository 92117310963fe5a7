import math
from itertools import pairwise
from pathlib import Path

import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedgh_app.errors import UserError
from fedgh_app.vision.schedules import Constant, Cosine, Step

CONF = Path(__file__).parents[2] / "conf"


def test_constant():
    assert [Constant()(r, 3) for r in (1, 2, 3)] == [1, 1, 1]


def test_step_drops_after_each_milestone():
    schedule = Step(milestones=[2, 4], gamma=0.1)
    assert [schedule(r, 6) for r in range(1, 7)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_step_takes_fractions_of_all_rounds():
    schedule = Step(milestones=(0.5,), gamma=0.5)
    assert [schedule(r, 4) for r in (1, 2, 3, 4)] == [1, 1, 0.5, 0.5]
    assert [schedule(r, 8) for r in (4, 5)] == [1, 0.5]


def test_cosine_by_hand():
    schedule = Cosine(final_fraction=0.2)
    expected = [
        1,
        0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2,
        0.6,
        0.2 + 0.8 * (1 - math.sqrt(0.5)) / 2,
        0.2,
    ]
    assert [schedule(r, 5) for r in range(1, 6)] == pytest.approx(expected)


def test_cosine_warms_up_first():
    schedule = Cosine(final_fraction=0.0, warmup_rounds=2)
    assert [schedule(r, 5) for r in range(1, 6)] == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0])


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_cosine_with_few_rounds_is_one_after_its_warm_up(rounds):
    assert Cosine(warmup_rounds=rounds - 1)(rounds, rounds) == 1


@given(st.floats(0, 1), st.integers(0, 20), st.integers(1, 100))
def test_cosine_stays_between_its_ends_and_falls_after_the_warm_up(final, warmup, rounds):
    factors = [Cosine(final, warmup)(r, rounds) for r in range(1, rounds + 5)]
    assert all(0 < f <= 1 for f in factors[:warmup])
    rest = factors[warmup:]
    assert all(final - 1e-12 <= f <= 1 for f in rest)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(rest))


@pytest.mark.parametrize("schedule", [Constant(), Step(), Cosine()])
def test_rounds_count_from_one(schedule):
    with pytest.raises(ValueError, match="counted from 1"):
        schedule(0, 10)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Step(milestones=[0]),
        lambda: Step(milestones=[3, -1]),
        lambda: Step(gamma=0),
        lambda: Cosine(final_fraction=1.1),
        lambda: Cosine(final_fraction=math.nan),
        lambda: Cosine(warmup_rounds=-1),
    ],
)
def test_senseless_values_are_refused(build):
    with pytest.raises(UserError, match=r"^schedule\.\w+: found .*, expected .*$"):
        build()


@pytest.mark.parametrize("name, kind", [("constant", Constant), ("step", Step), ("cosine", Cosine)])
def test_the_config_builds_each_schedule(name, kind):
    schedule = instantiate(OmegaConf.load(CONF / "schedule" / f"{name}.yaml"))
    assert schedule == kind()  # the file states the defaults
    hash(schedule)

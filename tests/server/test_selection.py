from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import hydra
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fedgh_app.config.choices import CONF
from fedgh_app.errors import UserError
from fedgh_app.server.selection import Candidate, Oort, PowerOfChoice, Random, Selection, draw
from strategies.randomness import generator

MANY = [Candidate(f"{i:02}", examples=10 * (i + 1), seconds=1.0 + i % 3) for i in range(20)]


def nobody(names: Sequence[str]) -> Mapping[str, float]:
    raise AssertionError(f"{names} were asked")


def equal_losses(names: Sequence[str]) -> Mapping[str, float]:
    return dict.fromkeys(names, 1.0)


def trained(selection: Selection, key: int, losses: Mapping[str, float], examples: int = 100) -> None:
    for name, loss in losses.items():
        selection.observe(key, name, {"num-examples": examples, "loss-rms": loss, "seconds": 1.0})


ALL = [Random, PowerOfChoice, Oort]


@pytest.mark.parametrize("kind", ALL)
@given(
    names=st.sets(st.text(max_size=3), min_size=1, max_size=12),
    count=st.integers(1, 14),
    key=st.integers(1, 50),
    before=st.sets(st.integers(0, 11)),
)
def test_the_asked_number_of_different_clients_in_name_order(
    kind: type[Any], names: set[str], count: int, key: int, before: set[int]
) -> None:
    selection = kind(fraction=0.5)
    ordered = sorted(names)
    trained(selection, 1, {ordered[i]: float(i) for i in before if i < len(ordered)})
    chosen = selection.select(key, [Candidate(name, 3, 1.0) for name in names], count, equal_losses)
    assert set(chosen) <= names
    assert len(chosen) == len(set(chosen)) == min(count, len(names))
    assert chosen == sorted(chosen)


@pytest.mark.parametrize("kind", ALL)
def test_a_selection_is_a_function_of_seed_and_key(kind: type[Any]) -> None:
    def chosen(seed: int, key: int, candidates: Sequence[Candidate] = MANY) -> list[str]:
        selection = kind(fraction=0.25, seed=seed)
        trained(selection, 1, {candidate.name: 1.0 for candidate in MANY[:10]})
        return selection.select(key, candidates, 5, equal_losses)

    assert chosen(0, 2) == chosen(0, 2, MANY[::-1])
    assert len({tuple(chosen(0, key)) for key in range(1, 9)}) > 4
    assert len({tuple(chosen(seed, 2)) for seed in range(8)}) > 4


@pytest.mark.parametrize("kind", ALL)
def test_where_all_are_wanted_nobody_is_asked(kind: type[Any]) -> None:
    assert kind(fraction=1.0).select(1, MANY[:4][::-1], 4, nobody) == ["00", "01", "02", "03"]
    assert kind(fraction=1.0).select(1, MANY[:4], 9, nobody) == ["00", "01", "02", "03"]


def test_the_size_is_a_share_of_the_clients() -> None:
    assert Random().size(7) == 7
    assert Random(fraction=0.29).size(100) == 29
    assert Random(fraction=0.01).size(10) == 1
    assert Random(fraction=0.1, min_clients=3).size(10) == 3
    assert Random(fraction=0.1, min_clients=30).size(10) == 10


def test_every_client_is_as_likely_in_a_random_selection() -> None:
    times = Counter(name for key in range(1, 2001) for name in Random(fraction=0.25).select(key, MANY, 5, nobody))
    # 2000 · 1/4 = 500 times each, with a standard deviation of 19.
    assert all(400 < times[candidate.name] < 600 for candidate in MANY)


def test_names_are_drawn_one_after_the_other_in_proportion_to_their_weights() -> None:
    """Weights 1, 2, 7. First: 0.1, 0.2, 0.7. Of two, a is left out as b c or c b: 2/10·7/8 + 7/10·2/3 = 0.6417."""
    pairs = [draw({"a": 1.0, "b": 2.0, "c": 7.0}, 2, generator(0, number)) for number in range(4000)]
    first = Counter(pair[0] for pair in pairs)
    assert {name: round(first[name] / 4000, 1) for name in "abc"} == {"a": 0.1, "b": 0.2, "c": 0.7}
    assert sum("a" not in pair for pair in pairs) / 4000 == pytest.approx(0.6417, abs=0.03)
    assert all(draw({"a": 0.0, "b": 1e-9, "c": 0.0}, 1, generator(0, number)) == ["b"] for number in range(50))


def test_power_of_choice_takes_the_highest_losses_of_the_drawn() -> None:
    """Two candidates, d = 2, m = 1: both are asked; F_a = 0.3 < F_b = 0.9, so b trains."""
    asked: list[list[str]] = []

    def ask(names: Sequence[str]) -> Mapping[str, float]:
        asked.append(list(names))
        return {"a": 0.3, "b": 0.9}

    two = [Candidate("a", 900, 1.0), Candidate("b", 1, 1.0)]
    assert PowerOfChoice(candidates=2).select(1, two, 1, ask) == ["b"]
    assert asked == [["a", "b"]]


def test_power_of_choice_draws_candidates_in_proportion_to_their_examples() -> None:
    """d = m = 1 leaves the draw alone: 300 of 400 examples are a's; and whoever is drawn need not be asked."""
    two = [Candidate("a", 300, 1.0), Candidate("b", 100, 1.0)]
    chosen = Counter(PowerOfChoice(candidates=1).select(key, two, 1, nobody)[0] for key in range(1, 2001))
    assert chosen["a"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_power_of_choice_asks_twice_as_many_as_will_train() -> None:
    asked: list[str] = []

    def ask(names: Sequence[str]) -> Mapping[str, float]:
        asked.extend(names)
        return {name: float(name) for name in names}

    chosen = PowerOfChoice(fraction=0.25).select(1, MANY, 5, ask)
    assert len(asked) == 10
    assert chosen == sorted(asked)[-5:]


def test_power_of_choice_does_without_those_who_cannot_answer() -> None:
    three = [Candidate(name, 5, 1.0) for name in "abc"]
    assert PowerOfChoice(candidates=3).select(1, three, 2, lambda names: {"b": 0.1}) == ["b"]


def test_oorts_utility_by_hand() -> None:
    """Two clients that have trained, in selection R = 4; a = 2; T is the smaller time, 2 s.

    a: 100 examples, root mean square loss 2, so U = 200; last trained in 3; takes 8 s.
    b:  50 examples, root mean square loss 1, so U =  50; last trained in 1; takes 2 s.
    Brought to [0, 1]: 1 and 0. Bonus: sqrt(0.1 ln 4 / 3) = 0.21497 and sqrt(0.1 ln 4 / 1) = 0.37233.
    a is slower than T: (1 + 0.21497) (2 / 8)² = 0.07594. b is not: 0.37233.
    """
    oort = Oort()
    oort.observe(3, "a", {"num-examples": 100, "loss-rms": 2.0, "seconds": 1.0})
    oort.observe(1, "b", {"num-examples": 50, "loss-rms": 1.0, "seconds": 1.0})
    two = [Candidate("a", 100, 8.0), Candidate("b", 50, 2.0), Candidate("new", 50, 3.0)]
    found = oort.utilities(4, two)
    assert found == {"a": pytest.approx(0.07594, abs=1e-5), "b": pytest.approx(0.37233, abs=1e-5)}
    # Both measured 1 s: nobody is slow.
    oort.time = "measured"
    assert oort.utilities(4, two)["a"] == pytest.approx(1.21497, abs=1e-5)


def test_oort_draws_only_who_comes_close_to_the_last_place() -> None:
    """a's 0.076 is below 95 % of b's 0.372, the only place: b always. Where all are admitted, a is drawn at times."""
    two = [Candidate("a", 100, 8.0), Candidate("b", 50, 2.0)]

    def shares(cut_off: float) -> float:
        oort = Oort(cut_off=cut_off)
        oort.observe(3, "a", {"num-examples": 100, "loss-rms": 2.0, "seconds": 1.0})
        oort.observe(1, "b", {"num-examples": 50, "loss-rms": 1.0, "seconds": 1.0})
        return sum(Oort.select(_seeded(oort, seed), 4, two, 1, nobody) == ["a"] for seed in range(2000)) / 2000

    assert shares(0.95) == 0.0
    assert shares(0.0) == pytest.approx(0.07594 / (0.07594 + 0.37233), abs=0.03)


def _seeded(oort: Oort, seed: int) -> Oort:
    oort.seed = seed
    return oort


@pytest.mark.parametrize(("key", "new"), [(1, 9), (20, 6), (21, 6), (500, 2)])
def test_oort_explores_less_and_less(key: int, new: int) -> None:
    """ε = 0.9 · 0.98^(R-1), at least 0.2: 0.9, then 0.613 and 0.601 in selections 20 and 21, in the end 0.2; K = 10."""
    oort = Oort()
    trained(oort, 1, {candidate.name: 1.0 for candidate in MANY[:10]})
    chosen = oort.select(key, MANY, 10, nobody)
    assert sum(int(name) >= 10 for name in chosen) == new


def test_oort_fills_places_from_the_other_side() -> None:
    oort = Oort()
    assert len(oort.select(1, MANY, 5, nobody)) == 5  # nobody has trained yet
    trained(oort, 1, {candidate.name: 1.0 for candidate in MANY[:18]})
    assert len(oort.select(2, MANY, 10, nobody)) == 10  # 9 places for 2 that never trained
    trained(oort, 2, {candidate.name: 1.0 for candidate in MANY})
    assert len(oort.select(3, MANY, 10, nobody)) == 10


def test_oort_explores_fast_clients_first() -> None:
    """Speeds 1/1 and 1/4 of two new clients: the first is drawn in 4 of 5 cases."""
    two = [Candidate("fast", 5, 1.0), Candidate("slow", 5, 4.0)]
    fast = sum(Oort(seed=seed).select(1, two, 1, nobody) == ["fast"] for seed in range(2000)) / 2000
    assert fast == pytest.approx(0.8, abs=0.03)


def test_an_outlier_counts_as_much_as_the_clip_allows() -> None:
    """Twenty utilities 0 … 19 and one that became huge: the value at the quantile 0.95 · 20 = 19 is 18's neighbour."""
    oort = Oort(clip=0.9, preferred_percentile=100)
    trained(oort, 1, {candidate.name: float(place) for place, candidate in enumerate(MANY[:-1])}, examples=1)
    trained(oort, 1, {MANY[-1].name: 1e6}, examples=1)
    found = oort.utilities(2, MANY)
    bonus = math.sqrt(0.1 * math.log(2))
    # Ordered: 0 … 18, 1e6. Position int(0.9 · 20) = 18 holds 18, the bound: the outlier is worth 1 as well.
    assert found["19"] == found["18"] == pytest.approx(1 + bonus)
    assert found["09"] == pytest.approx(0.5 + bonus)
    assert found["00"] == pytest.approx(bonus)


def test_oort_goes_on_where_its_state_ended() -> None:
    first, second = Oort(seed=1), Oort(seed=1)
    trained(first, 3, {candidate.name: float(candidate.examples) for candidate in MANY[:15]})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    assert [second.select(key, MANY, 6, nobody) for key in (4, 5)] == [
        first.select(key, MANY, 6, nobody) for key in (4, 5)
    ]
    assert second.utilities(4, MANY) == first.utilities(4, MANY)
    for kind in (Random, PowerOfChoice):
        assert kind().state_dict() == {}


def test_only_oort_has_clients_measure_something() -> None:
    assert (Random.report, PowerOfChoice.report, Oort.report) == ((), (), ("loss-rms",))


@pytest.mark.parametrize("file", sorted((CONF / "selection").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_config_repeats_the_defaults_of_the_class(file: Any) -> None:
    config = OmegaConf.merge({"seed": 7}, {"selection": OmegaConf.load(file)})
    made = hydra.utils.instantiate(config.selection)
    default = type(made)(seed=7)
    assert vars(made) == vars(default)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Random, {"fraction": 0.0}, "selection.fraction=0.0: expected above 0 and at most 1"),
        (Random, {"fraction": 1.5}, "selection.fraction=1.5"),
        (Random, {"min_clients": 0}, "selection.min_clients=0: expected at least 1"),
        (PowerOfChoice, {"candidates": 0}, "selection.candidates=0: expected a whole number of at least 1, or null"),
        (PowerOfChoice, {"candidates": "all"}, "selection.candidates=all: expected a whole number"),
        (Oort, {"exploration": 1.1}, "selection.exploration=1.1: expected 0 to 1"),
        (Oort, {"straggler_penalty": -1}, "selection.straggler_penalty=-1: expected at least 0"),
        (Oort, {"preferred_percentile": 101}, "selection.preferred_percentile=101: expected 0 to 100"),
        (Oort, {"time": "guessed"}, "selection.time=guessed: expected declared or measured"),
    ],
)
def test_a_bad_value_is_one_line(kind: type[Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        kind(**options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)

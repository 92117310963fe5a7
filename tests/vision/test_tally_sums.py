"""Sums of an evaluation, whatever is counted."""

import pytest

from fedgh_app.vision.tally import EXAMPLES, Tally

BOUNDS = {"seen": EXAMPLES, "right": "seen", "area": "seen"}


def one(seen: float = 4, right: float = 3, area: float = 2.5) -> Tally:
    return Tally({"cat": {"seen": seen, "right": right, "area": area}})


def test_sums_add_up_and_parts_that_one_lacks_are_kept() -> None:
    both = one() + Tally({"cat": {"seen": 1, "right": 1, "area": 0.5}, "dog": {"seen": 2, "right": 0, "area": 0.0}})
    assert both.sums == {
        "cat": {"seen": 5, "right": 4, "area": 3.0},
        "dog": {"seen": 2, "right": 0, "area": 0.0},
    }


@pytest.mark.parametrize(
    ("tally", "line"),
    [
        (one(), None),
        (one(seen=7), "seen of cat is 7; expected 0 to 6"),
        (one(right=5), "right of cat is 5; expected 0 to 4"),
        (one(right=-1), "right of cat is -1; expected 0 to 4"),
        (one(area=4.1), "area of cat is 4.1; expected 0 to 4"),
        (one(area=4.000001), None),  # summed in floating point
    ],
)
def test_what_no_evaluation_of_six_examples_gives(tally: Tally, line: str | None) -> None:
    assert tally.fault(BOUNDS, 6) == line


def test_other_scalars_of_a_message_are_passed_over() -> None:
    scalars = {**one().as_scalars(), "loss": 1.0, "odd/cat": 3.0}
    assert Tally.from_scalars(scalars, BOUNDS) == one()

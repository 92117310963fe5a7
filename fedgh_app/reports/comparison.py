"""Is one setting better than another? Differences between runs that share their seeds, and how sure they are.

Runs of one seed see the same data split, the same first weights and the same draws, so that a difference between two
of them has less noise in it than either: the tests are paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
# Below, even a rank test of pairs that all agree cannot come to p < 0.05: at best 2 / 2^n.
FEWEST_FOR_RANKS = 6
SAME = 1e-9  # differences nearer to each other than this are one


@dataclass(frozen=True)
class Difference:
    """What a setting gained over a baseline, over the seeds that both were run with."""

    pairs: int  # number of seeds, n
    mean: float | None = None  # mean of the differences; None without pairs
    low: float | None = None  # its 95 % confidence interval by Student's t with n - 1 degrees of freedom
    high: float | None = None
    p: float | None = None  # of the two-sided paired t-test; None for one pair, or where all differences are the same
    p_holm: float | None = None  # the same, adjusted by Holm for all settings that were compared with the baseline
    # of Wilcoxon's two-sided signed-rank test, which asks for no normal distribution; None below 6 pairs
    p_wilcoxon: float | None = None


def difference(values: Mapping[object, float], baseline: Mapping[object, float]) -> Difference:
    """``values`` minus ``baseline``, over the seeds that are keys of both; ``p_holm`` is for `adjusted` to fill in."""
    seeds = [seed for seed in values if seed in baseline]
    gained = np.array([values[seed] - baseline[seed] for seed in seeds])
    if len(gained) == 0:
        return Difference(0)
    mean = float(gained.mean())
    if len(gained) == 1:
        return Difference(1, mean)
    if np.ptp(gained) < SAME:
        return Difference(len(gained), mean, mean, mean)
    test = stats.ttest_1samp(gained, 0.0)
    interval = test.confidence_interval(CONFIDENCE)
    ranks = float(stats.wilcoxon(gained).pvalue) if len(gained) >= FEWEST_FOR_RANKS else None
    return Difference(len(gained), mean, float(interval.low), float(interval.high), float(test.pvalue), None, ranks)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being many, in their order: Holm, Scandinavian Journal of Statistics 6, 1979."""
    order = np.argsort(p_values)
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * np.take(p_values, order)))
    return adjusted.tolist()


def adjusted(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """The differences of one table with ``p_holm``, over those that have a p-value."""
    tested = [name for name, gained in differences.items() if gained.p is not None]
    values = dict(zip(tested, holm([differences[name].p or 0.0 for name in tested]), strict=True))
    return {name: replace(gained, p_holm=values.get(name)) for name, gained in differences.items()}

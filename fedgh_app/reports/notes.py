"""The sentences of a report: how its numbers came about, and what they do not tell."""

from collections.abc import Collection, Mapping, Sequence

from fedgh_app.reports.comparison import FEWEST_FOR_RANKS, Difference
from fedgh_app.reports.statistics import Setting
from fedgh_app.runs.environment import Machine
from fedgh_app.words import count


def notes(
    settings: Sequence[Setting],
    shown: Sequence[Setting],
    curves: Collection[Setting],
    cosines: Collection[Setting],
    gained: Mapping[str, Difference],
    against: Setting | None,
    metric: str,
) -> dict[str, str]:
    """The sentences by section; the ``shown`` settings are drawn, ``metric`` is the headline's short name."""
    best = "settings with the highest mean" if against is None else "settings that are best, or the baseline,"
    only = f" The {len(shown)} {best} are drawn." if len(shown) < len(settings) else ""
    several = any(len(setting.runs) > 1 for setting in settings)
    return {
        "results": _results(settings),
        "no_baseline": "No setting was named as the baseline, so nothing was tested. To compare the others with one:",
        "differences": "" if against is None else _differences(gained, against, metric),
        "few_pairs": _few_pairs(min((one.pairs for one in gained.values()), default=0)),
        "curves": _curves(several, only) if curves else "No run has a history of evaluations.",
        "cosines": _cosines([setting.title for setting in shown if setting not in cosines], only)
        if cosines
        else "No strategy of these runs reports cosines between the clients' updates.",
        "unfinished": "They are in no table above. To try them again:",
    }


def _results(settings: Sequence[Setting]) -> str:
    whose = {setting.runs[0].result.evaluated for setting in settings}
    where = "on the test images that the server sees" if whose == {"central"} else "on the clients' own test images"
    if len(whose) > 1:
        where = "on the test images that the server sees, or on the clients' own where the name says so"
    return (
        f"Mean ± sample standard deviation over the runs of a setting, which differ in their seeds alone, {where}. "
        "Bold is the highest mean of a column, whether or not chance explains it. Worst client: the lowest result "
        "of a client on its own test images, in each run."
    )


def _differences(gained: Mapping[str, Difference], against: Setting, metric: str) -> str:
    tested = sum(one.p is not None for one in gained.values())
    return (
        f"{metric} minus that of {against.name}, in percentage points, in pairs of runs with the same seeds. The "
        "interval has 95 % confidence by Student's t, each for itself; p is of the two-sided paired t-test, and "
        f"p (Holm) the same adjusted for {count(tested, 'comparison')}."
    )


def _few_pairs(fewest: int) -> str:
    if fewest >= FEWEST_FOR_RANKS:
        return ""
    return (
        f"With {count(fewest, 'pair')} these tests can tell little: a t-test leans on the differences being "
        "normally distributed, and a rank test, which does not, cannot come below p = 0.05 with fewer than "
        f"{FEWEST_FOR_RANKS} pairs and is shown only from there on. Read the interval: it says how large the "
        "difference may be either way. More seeds make it narrower."
    )


def _curves(several: bool, only: str) -> str:
    band = " The band is one standard deviation to each side, over the runs." if several else ""
    return (
        f"Mean over the runs of a setting, by round and by wall time.{band}{only} Time can be compared where the "
        "runs had the machine to themselves."
    )


def _cosines(without: Sequence[str], only: str) -> str:
    lacking = f" Without cosines: {', '.join(without)}." if without else ""
    return (
        "Cosines between the updates that two clients sent in the same round, averaged over the runs: blue where "
        f"they pull the same way, red where they conflict.{only}{lacking}"
    )


def environment(machine: Machine) -> str:
    """On what a sweep was run."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    commit = machine.commit or ""
    if commit:
        commit = f", commit {commit.rstrip('+')}" + (" with changes" if commit.endswith("+") else "")
    cores = count(machine.cores, "core")
    return f"Run on {machine.system} with {cores}, Python {machine.python}, {versions}{commit}."

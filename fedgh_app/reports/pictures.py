"""The figures of a report with what is said of them, for readers who do not see them and below them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from fedgh_app.reports import figures
from fedgh_app.reports.comparison import Difference
from fedgh_app.reports.figures import MINUS, Cosines, Curve
from fedgh_app.reports.statistics import Row, Setting, difference_texts
from fedgh_app.words import percentage


@dataclass(frozen=True)
class Picture:
    """A figure on a page."""

    name: str  # of its file
    svg: str  # the document
    alt: str  # what it shows, in words
    width: int  # in CSS pixels
    height: int
    caption: str = ""
    when: str = ""  # of cosines, ``mean`` or ``last``


def _picture(name: str, figure: Figure, alt: str, caption: str = "", when: str = "") -> Picture:
    width, height = (round(96 * side) for side in figure.get_size_inches())
    return Picture(name, figures.svg(figure), alt, width, height, caption, when)


def outcomes_picture(settings: Sequence[Setting], rows: Sequence[Row], metric: str) -> Picture:
    """Every run a dot."""
    means = "; ".join(f"{row['setting']} {percentage(row['score'] and row['score']['mean'])} %" for row in rows)
    alt = f"{metric} of every run as a dot, a line for each setting, its mean marked: {means}."
    return _picture("outcomes", figures.outcomes(settings, metric), alt)


def forest_picture(gained: Mapping[str, Difference], baseline: str, metric: str) -> Picture:
    """Differences from the baseline with their intervals."""
    texts = {name: difference_texts(vars(one)) for name, one in gained.items()}
    told = "; ".join(f"{name} {mean} ({interval})" for name, (mean, interval, _) in texts.items())
    alt = f"Difference from {baseline} in percentage points, with its 95 % confidence interval: {told}."
    return _picture("differences", figures.forest(gained, baseline, metric), alt)


def curve_pictures(settings: Sequence[Setting], curves: Mapping[Setting, Curve], metric: str) -> list[Picture]:
    """All curves over rounds, and over seconds."""
    if not curves:
        return []
    named = {(settings.index(setting), setting.title): curve for setting, curve in curves.items()}
    ends = "; ".join(f"{name} ends at {100 * curve.mean[-1]:.1f} %" for (_, name), curve in named.items())
    return [
        _picture(
            f"curves-{over}",
            figures.learning_curves(named, metric, over),
            f"Mean {metric} over {over}, a curve for each setting: {ends}.",
            caption=f"By {'round' if over == 'rounds' else 'wall time'}",
        )
        for over in ("rounds", "seconds")
    ]


def cosine_pictures(cosines: Mapping[Setting, Cosines]) -> list[Picture]:
    """Of each setting two matrices, all with the same colours for the same cosines."""
    every = [matrix[np.isfinite(matrix)] for one in cosines.values() for matrix in (one.mean, one.last)]
    largest = max([0.1, *(float(np.abs(values).max()) for values in every if values.size)])
    pictures = []
    for place, (setting, one) in enumerate(cosines.items()):
        for when, said in (("mean", "mean over all rounds"), ("last", "last round")):
            matrix = getattr(one, when)
            values = matrix[np.isfinite(matrix)]
            spread, caption = "none measured", ""
            if values.size:
                spread = f"from {values.min():z.2f} to {values.max():z.2f}".replace("-", MINUS)
                caption = f"{spread}; {100 * (values < 0).mean():.0f} % of the pairs negative"
            figure = figures.cosine_matrix(one, setting.name, when, largest)
            alt = f"Cosines between the updates of {len(one.labels)} clients, {setting.name}, {said}: {spread}."
            pictures.append(_picture(f"cosines-{place}-{when}", figure, alt, caption, when))
    return pictures


def dash(text: str) -> str:
    """A dash for what there is not, and a minus that is as wide as the plus."""
    return "\N{EN DASH}" if text == "-" else re.sub(r"(^|to )-", f"\\1{MINUS}", text)

"""``MODEL_CARD.md``: what a run's model is, for whoever finds it without having run it.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. It says what the run directory knows, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedgh_app.model_card.facts import Facts
from fedgh_app.model_card.limits import limits
from fedgh_app.model_card.sections import data, results, title, training, use
from fedgh_app.runs.directory import MODEL_CARD
from fedgh_app.runs.history import Round
from fedgh_app.vision.files import replacing


def write(
    directory: Path,
    config: DictConfig,
    result: Mapping[str, Any],
    history: Sequence[Round] = (),
    failure: str | None = None,
) -> None:
    """Write the card of a run directory; see `render`."""
    with replacing(directory / MODEL_CARD) as draft:
        draft.write_text(render(directory, config, result, history, failure), encoding="utf-8")


def render(
    directory: Path,
    config: DictConfig,
    result: Mapping[str, Any],
    history: Sequence[Round] = (),
    failure: str | None = None,
) -> str:
    """The card as Markdown.

    Args:
        directory: the run directory, whose models and plots it names.
        config: the run's.
        result: as in ``result.json``; of a run that failed, as far as it came.
        history: its rounds; none for clients that were trained alone.
        failure: why it failed.
    """
    run = Facts(directory, config, result, list(history), failure)
    sections = (title, use, data, training, results, limits)
    return "\n".join(line for section in sections for line in section(run)) + "\n"

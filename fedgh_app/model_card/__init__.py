"""``MODEL_CARD.md``: what a run's model is, for whoever finds it without having run it.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. It says what the run directory knows, nothing else.
"""

from fedgh_app.model_card.facts import Facts
from fedgh_app.model_card.limits import limits
from fedgh_app.model_card.sections import data, results, title, training, use
from fedgh_app.runs.directory import MODEL_CARD
from fedgh_app.vision.files import replacing


def write(run: Facts) -> None:
    """Write the card into the run directory."""
    with replacing(run.directory / MODEL_CARD) as draft:
        draft.write_text(render(run), encoding="utf-8")


def render(run: Facts) -> str:
    """The card as Markdown."""
    sections = (title, use, data, training, results, limits)
    return "\n".join(line for section in sections for line in section(run)) + "\n"

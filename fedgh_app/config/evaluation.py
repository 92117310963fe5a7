"""On what, and how, `fedgh evaluate` tests the model of a run."""

import copy
from collections.abc import Sequence

from hydra.core.override_parser.types import OverrideType
from omegaconf import OmegaConf

from fedgh_app.config.choices import plain_values
from fedgh_app.config.compose import compose_config, parse_overrides
from fedgh_app.errors import UserError
from fedgh_app.resources import Values

# What an evaluation depends on, beside the model.
DEPENDS_ON = ("dataset", "evaluate", "batch_size")


def evaluated_on(values: Values, overrides: Sequence[str]) -> Values:
    """A run's config with values replaced that an evaluation depends on; UserError for any other, or a wrong one.

    Another data set is looked at in the size that the model was trained on, unless ``dataset.input_size`` is given.
    """
    parsed = parse_overrides(overrides)
    for item in parsed:
        if item.type is not OverrideType.CHANGE:
            raise UserError(f"{item.input_line}: an evaluation adds and deletes no key; expected KEY=VALUE")
        if item.key_or_group.split(".")[0] not in DEPENDS_ON:
            raise UserError(
                f"{item.input_line}: an evaluation does not depend on it; "
                "expected dataset=…, dataset.KEY=…, evaluate.KEY=… or batch_size=…"
            )
    if not parsed:
        return values
    changed = OmegaConf.create(copy.deepcopy(dict(values)))
    keys = [item.key_or_group for item in parsed]
    # Whatever the run did with clients: these two go with every data set.
    composed = compose_config(["partition=iid", "sharing=fedpav", *overrides])
    if "dataset" in keys:
        changed.dataset = composed.dataset
        changed.dataset.update({key: value for key, value in values["dataset"].items() if key == "input_size"})
    for key in keys:
        if key != "dataset":
            OmegaConf.update(changed, key, OmegaConf.select(composed, key))
    return plain_values(changed)

import inspect

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import strategies
from fedgh_app.config.choices import values_of

# Set by whoever writes a strategy into a program, not in a config: record keys and callables.
IN_CODE = {"weighted_by_key", "arrayrecord_key", "configrecord_key"}
IN_CODE |= {"train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"}
# The app picks clients by its own rules; these are for other programs.
IN_CODE |= {"fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes"}


@pytest.mark.parametrize("name", strategies.__all__)
def test_every_option_is_visible_in_the_config(name):
    file = "conflict_averse" if name == "ConflictAverse" else name.lower()
    config = values_of("strategy", file)
    strategy = instantiate(OmegaConf.merge({"seed": 7}, {"strategy": config}).strategy)
    assert type(strategy).__name__ == name
    assert strategy.seed == 7
    options = {
        option
        for kind in inspect.getmro(type(strategy))
        for option, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    } - {"self"}
    if strategy.needs_gramian:
        options.discard("report_conflicts")  # no choice: the Gramian is there
    if name != "FedAvg":
        options.discard("equal_weights")  # the others have weights of their own, and refuse it
    assert set(config) == (options - IN_CODE) | {"_target_"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "tensor"}, "granularity is one of model, layer"),
        ({"scheme": "cagrad"}, "scheme is one of pcgrad, pairwise"),
        ({"rescale": "yes"}, "rescale"),
        ({"weighting": "uniform"}, "weighting"),
        ({"threshold": -1.0}, "threshold"),
        ({"scheme": "pairwise", "threshold": 0.5}, "pairwise"),
        ({"server_learning_rate": 0.0}, "server_learning_rate"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        strategies.FedGH(**options)

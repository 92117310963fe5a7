from __future__ import annotations

import pytest
import torch

from fedgh_app.config.compose import compose_config
from fedgh_app.config.instantiation import build_optimizer, instantiate
from fedgh_app.errors import UserError


@pytest.mark.parametrize("target", ["strategies.fedgh.SCHEMES", "strategies.updates.Sequence", "strategies.Nothing"])
def test_only_a_class_of_the_package_is_built(target: str) -> None:
    with pytest.raises(UserError, match=r"strategy\._target_="):
        instantiate(compose_config([f"strategy._target_={target}"]).strategy, "strategy")


def test_a_class_that_a_module_merely_imports_is_not_built() -> None:
    config = compose_config(["selection._target_=fedgh_app.server.selection.UserError"])
    with pytest.raises(UserError, match=r"^selection\._target_=.*expected a class of fedgh_app\.server\.selection$"):
        instantiate(config.selection, "selection")


def test_another_torch_optimizer_by_its_target() -> None:
    config = compose_config(["optimizer._target_=torch.optim.Adagrad", "~optimizer.betas"])
    made = build_optimizer(config, [torch.nn.Parameter(torch.zeros(1))], 0.5)
    assert isinstance(made, torch.optim.Adagrad)
    assert made.defaults["lr"] == config.optimizer.lr * 0.5


def test_an_optimizer_that_refuses_a_value_is_one_line() -> None:
    config = compose_config(["optimizer.betas=[0.9]"])
    with pytest.raises(UserError, match=r"^optimizer: "):
        build_optimizer(config, [torch.nn.Parameter(torch.zeros(1))])


def test_an_argument_that_the_class_refuses_is_one_line() -> None:
    config = compose_config(["+strategy.momentum=0.9"])
    with pytest.raises(UserError, match=r"^strategy: .*momentum.*it takes .*granularity") as error:
        instantiate(config.strategy, "strategy")
    assert "\n" not in str(error.value)

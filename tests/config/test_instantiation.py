from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.config.compose import compose_config
from fedgh_app.config.instantiation import instantiate
from fedgh_app.errors import UserError
from fedgh_app.tasks import TASKS
from fedgh_app.vision.sharing import FedPav


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
    made = ClientAssembly(config).optimizer([torch.nn.Parameter(torch.zeros(1))], 0.5)
    assert isinstance(made, torch.optim.Adagrad)
    assert made.defaults["lr"] == config.optimizer.lr * 0.5


def test_an_optimizer_that_refuses_a_value_is_one_line() -> None:
    config = compose_config(["optimizer.betas=[0.9]"])
    with pytest.raises(UserError, match=r"^optimizer: "):
        ClientAssembly(config).optimizer([torch.nn.Parameter(torch.zeros(1))])


def test_an_argument_that_the_class_refuses_is_one_line() -> None:
    config = compose_config(["+strategy.momentum=0.9"])
    with pytest.raises(UserError, match=r"^strategy: .*momentum.*it takes .*granularity") as error:
        instantiate(config.strategy, "strategy")
    assert "\n" not in str(error.value)


class Toy:
    """A network of another task."""


def test_a_task_says_itself_of_what_modules_its_classes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "pose", __name__)
    node = OmegaConf.create({"_target_": f"{__name__}.Toy"})
    toy = [f"{group}._target_={__name__}.Toy" for group in ("model", "loss", "augmentation")]
    compose_config(toy)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"^model\._target_=.*Toy: expected a class under fedgh_app\.pose$"):
        compose_config(toy)
    assert isinstance(instantiate(node, "model", (__name__,)), Toy)
    for allowed, told in (((), "the package of its task"), (("fedgh_app.pose.models",), r"fedgh_app\.pose\.models")):
        with pytest.raises(UserError, match=rf"^model\._target_=.*Toy: expected a class under {told}$"):
            instantiate(node, "model", allowed)


def test_what_a_choice_says_of_itself_is_no_argument() -> None:
    assert instantiate(compose_config(["sharing=fedpav"]).sharing, "sharing") == FedPav()

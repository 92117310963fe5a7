import pytest
from hydra.utils import instantiate
from torch import nn

from fedgh_app.config.choices import values_of
from fedgh_app.errors import UserError
from fedgh_app.pose.models import PoseNet
from fedgh_app.vision.sharing import All, FedBN, FedPav


def small():
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
            "head": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1)),
            "header": nn.Linear(2, 2),
        }
    )


def test_all_keeps_nothing_local():
    assert All().local_keys(small()) == ()


def test_fedbn_keeps_parameters_and_statistics_of_every_batch_norm():
    assert FedBN().local_keys(small()) == (
        "backbone.1.weight",
        "backbone.1.bias",
        "backbone.1.running_mean",
        "backbone.1.running_var",
        "backbone.1.num_batches_tracked",
        "head.1.running_mean",
        "head.1.running_var",
        "head.1.num_batches_tracked",
    )


def test_fedbn_of_a_pose_net():
    model = PoseNet("resnet18", 2, head_width=8)
    local = FedBN().local_keys(model)
    # ResNet-18 has 1 + 8 * 2 + 3 (where a stage halves the resolution) BatchNorm layers, the head 3; 5 keys each.
    assert len(local) == 5 * (20 + 3)
    assert [key for key in model.state_dict() if key in local] == list(local)
    shared = [key for key in model.state_dict() if key not in local]
    assert all(key.endswith((".weight", ".bias")) for key in shared)
    assert {model.state_dict()[key].ndim for key in shared if key.endswith("weight")} == {4}  # convolutions alone


def test_fedbn_goes_by_class_not_by_name():
    model = nn.ModuleDict({"bn": nn.Linear(2, 2), "plain": nn.BatchNorm1d(2), "group": nn.GroupNorm(1, 2)})
    assert {key.split(".")[0] for key in FedBN().local_keys(model)} == {"plain"}


def test_fedbn_finds_a_layer_that_stands_in_two_places():
    norm = nn.BatchNorm1d(2)
    model = nn.ModuleDict({"first": norm, "linear": nn.Linear(2, 2), "second": norm})
    assert {key.split(".")[0] for key in FedBN().local_keys(model)} == {"first", "second"}


def test_fedpav_keeps_the_head_with_its_statistics():
    model = small()
    assert FedPav().local_keys(model) == tuple(key for key in model.state_dict() if key.startswith("head."))
    assert "head.1.running_mean" in FedPav().local_keys(model)
    assert not any(key.startswith("header") for key in FedPav().local_keys(model))


def test_fedpav_shares_the_backbone_of_pose_nets_with_different_keypoints():
    three, fourteen = PoseNet("resnet18", 3, head_width=8), PoseNet("resnet18", 14, head_width=8)
    shared = [
        {key: value.shape for key, value in model.state_dict().items() if key not in FedPav().local_keys(model)}
        for model in (three, fourteen)
    ]
    assert shared[0] == shared[1]
    assert all(key.startswith("backbone.") for key in shared[0])


def test_fedpav_takes_parts_of_modules_and_several_in_any_order():
    model = small()
    found = FedPav(["header", "backbone.1"]).local_keys(model)
    assert found == tuple(key for key in model.state_dict() if key.startswith(("backbone.1.", "header.")))


@pytest.mark.parametrize(
    "modules, words",
    [
        (["heads"], ["'heads'", "backbone, head, header"]),
        (["head.0.weight"], ["'head.0.weight'"]),
        ([""], ["''"]),
        (["backbone.2"], ["'backbone.2'", "has parameters"]),
        (["backbone", "head", "header"], ["nothing would be shared"]),
    ],
)
def test_fedpav_refuses_what_it_cannot_keep(modules, words):
    with pytest.raises(UserError) as caught:
        FedPav(modules).local_keys(small())
    message = str(caught.value)
    assert message.startswith("sharing.modules: found ") and "\n" not in message
    assert all(word in message for word in words)


@pytest.mark.parametrize("modules", [[], "head"])
def test_fedpav_refuses_what_is_no_list_of_modules(modules):
    with pytest.raises(UserError, match=r"sharing\.modules: found"):
        FedPav(modules)


@pytest.mark.parametrize(
    "model, words",
    [
        (nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2)), "no BatchNorm"),
        (nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()), "nothing would be shared"),
        (nn.BatchNorm1d(2), "nothing would be shared"),
    ],
)
def test_fedbn_refuses_a_model_that_it_does_not_divide(model, words):
    with pytest.raises(UserError, match=f"sharing=fedbn: .*{words}"):
        FedBN().local_keys(model)


@pytest.mark.parametrize("name, kind", [("all", All), ("fedbn", FedBN), ("fedpav", FedPav)])
def test_the_config_builds_each_sharing(name, kind):
    sharing = instantiate(values_of("sharing", name))
    assert sharing == kind()
    hash(sharing)

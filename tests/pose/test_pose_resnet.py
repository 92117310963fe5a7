from pathlib import Path

import pytest
import torch
import torchvision
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fedgh_app.pose.errors import UserError
from fedgh_app.pose.models import PoseResNet
from fedgh_app.pose.models.pose_resnet import DEPTHS

CONF = Path(__file__).parents[2] / "conf" / "model"


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_gives_a_heatmap_per_keypoint_at_a_quarter_of_the_input(depth):
    with torch.device("meta"):  # shapes only, no arithmetic
        model = PoseResNet(depth, num_keypoints=5, head_width=32)
        assert model(torch.empty(2, 3, 64, 96)).shape == (2, 5, 16, 24)


@pytest.mark.parametrize("depth", [18, 50])
def test_forward_and_backward_reach_every_parameter(depth):
    torch.manual_seed(0)
    model = PoseResNet(depth, num_keypoints=3, head_width=16)
    heatmaps = model(torch.randn(2, 3, 64, 64))
    assert heatmaps.shape == (2, 3, 16, 16)
    heatmaps.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_parameter_count_of_the_papers_network():
    with torch.device("meta"):
        assert round(parameters(PoseResNet(50, 16, 256)) / 1e6, 1) == 34.0


@pytest.mark.parametrize("depth, channels", [(18, 512), (152, 2048)])
def test_parameter_count_is_that_of_torchvision_plus_the_head(depth, channels):
    with torch.device("meta"):
        classifier = torchvision.models.get_model(f"resnet{depth}")
        backbone = parameters(classifier) - parameters(classifier.fc)
        width, joints = 24, 7
        deconvolutions = 16 * (channels * width + width * width + width * width) + 3 * 2 * width
        assert parameters(PoseResNet(depth, joints, width)) == backbone + deconvolutions + (width + 1) * joints


def test_the_network_is_a_backbone_and_a_head():
    with torch.device("meta"):
        model = PoseResNet(18, 3)
    assert [name for name, _ in model.named_children()] == ["backbone", "head"]
    assert {name.partition(".")[0] for name in model.state_dict()} == {"backbone", "head"}


def test_initialisation_is_a_function_of_the_seed():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(PoseResNet(18, 3, 16).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.final.weight"], states[2]["head.final.weight"])


def test_the_head_starts_as_in_the_authors_code():
    torch.manual_seed(0)
    head = PoseResNet(18, 16, 256).head
    for name in ("deconv1", "deconv2", "deconv3", "final"):
        assert getattr(head, name).weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert (head.final.bias == 0).all()
    assert (head.bn1.weight == 1).all()
    assert head.deconv1.bias is None


@pytest.mark.parametrize("wrap", [False, True])
def test_a_torchvision_checkpoint_fills_the_backbone(tmp_path, wrap):
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18()
    state = resnet.state_dict()
    torch.save({"state_dict": state} if wrap else state, tmp_path / "r18.pth")
    model = PoseResNet(18, 3, 16, weights=str(tmp_path / "r18.pth"))
    own = model.backbone.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own)
    assert len(own) == len(state) - 2  # all but the classifier


def test_a_checkpoint_of_a_whole_pose_resnet_fills_the_backbone_and_leaves_the_head(tmp_path):
    first = PoseResNet(18, 3, 16)
    torch.save(first.state_dict(), tmp_path / "pose.pth")
    second = PoseResNet(18, 5, 8, weights=str(tmp_path / "pose.pth"))
    assert torch.equal(second.backbone.conv1.weight, first.backbone.conv1.weight)
    assert second.head.final.weight.shape[0] == 5


def one_line_error(build, *parts):
    with pytest.raises(UserError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    for part in (*parts, "found", "expected"):
        assert part in message


def test_bad_checkpoints_are_named(tmp_path):
    path = tmp_path / "w.pth"

    def load():
        PoseResNet(18, 3, 16, weights=str(path))

    path.write_bytes(b"not a checkpoint")
    one_line_error(load, str(path))
    torch.save(torch.zeros(3), path)
    one_line_error(load, str(path), "Tensor")
    torch.save(Path("x"), path)  # a pickled object: refused, not run
    one_line_error(load, str(path))
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    one_line_error(load, str(path), "bn1.weight")
    state = torchvision.models.resnet18().state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2)
    torch.save(state, path)
    one_line_error(load, str(path), "layer1.0.conv1.weight", "(1, 2)", "(64, 64, 3, 3)")


@pytest.mark.parametrize("weights", ["missing.pth", "ResNet50_Weights.IMAGENET1K_V1", "imagenet"])
def test_unknown_weights_name_the_valid_ones(weights):
    one_line_error(lambda: PoseResNet(18, 3, 16, weights=weights), weights, "ResNet18_Weights.IMAGENET1K_V1")


def test_a_failed_download_is_one_line(monkeypatch):
    def no_network(*_args, **_keywords):
        raise OSError("name resolution\nfailed")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(UserError, match=r"IMAGENET1K_V1 could not be fetched \(name resolution failed\)"):
        PoseResNet(18, 3, 16, weights="ResNet18_Weights.IMAGENET1K_V1")


def test_a_named_enum_is_loaded(monkeypatch):
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_a, **_k: state)
    model = PoseResNet(18, 3, 16, weights="ResNet18_Weights.IMAGENET1K_V1")
    assert torch.equal(model.backbone.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    "arguments", [{"depth": 20}, {"depth": "x"}, {"head_width": 0}, {"num_keypoints": 0}, {"head_width": 1.5}]
)
def test_senseless_arguments_are_refused(arguments):
    one_line_error(lambda: PoseResNet(**{"depth": 18, "num_keypoints": 3, **arguments}), next(iter(arguments)))


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_config_builds_each_depth(depth):
    config = OmegaConf.load(CONF / f"pose_resnet{depth}.yaml")
    assert (config.depth, config.head_width, config.weights) == (depth, 256, None)
    with torch.device("meta"):
        model = instantiate(config, num_keypoints=4)
    assert isinstance(model, PoseResNet)
    assert model.head.final.out_channels == 4

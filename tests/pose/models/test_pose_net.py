import builtins
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from fedgh_app.errors import UserError
from fedgh_app.pose.models import PoseNet
from fedgh_app.pose.models.decoding import Integral
from fedgh_app.vision.backbones import TORCHVISION

CONF = Path(__file__).parents[3] / "conf" / "model"
DEPTHS = (18, 34, 50, 101, 152)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def small(backbone="resnet18", num_keypoints=3, **arguments):
    return PoseNet(backbone, num_keypoints, **{"head_width": 16, **arguments})


@pytest.mark.parametrize("backbone", TORCHVISION)
def test_every_backbone_gives_a_map_per_keypoint_at_a_quarter_of_the_input(backbone):
    with torch.device("meta"):  # shapes only, no arithmetic
        model = small(backbone, 5)
        assert model(torch.empty(2, 3, 64, 96)).shape == (2, 5, 16, 24)


# One of each stride: 32 (as nearly all), 8.
@pytest.mark.parametrize("backbone, deconvolutions", [("timm:lcnet_050", 3), ("timm:xcit_nano_12_p8_224", 1)])
def test_a_timm_backbone_of_any_stride_ends_at_a_quarter_of_the_input(backbone, deconvolutions):
    model = small(backbone, 5)
    assert model(torch.zeros(2, 3, 64, 32)).shape == (2, 5, 16, 8)
    assert model.training
    assert sum(isinstance(layer, nn.ConvTranspose2d) for layer in model.head) == deconvolutions


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "timm:lcnet_050"])
def test_forward_and_backward_reach_every_parameter(backbone):
    torch.manual_seed(0)
    model = small(backbone, separable=backbone != "resnet18")
    maps = model(torch.randn(2, 3, 64, 64))
    assert maps.shape == (2, 3, 16, 16)
    maps.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_pose_resnet_is_as_it_was_drawn_before_there_were_other_backbones():
    # Seeds of earlier runs keep their meaning: the same draws in the same order, under the same names.
    torch.manual_seed(5)
    resnet = torchvision.models.resnet18().state_dict()
    expected = {f"backbone.{name}": value for name, value in resnet.items() if name[:3] != "fc."}
    channels = 512
    for i in (1, 2, 3):
        deconv = nn.ConvTranspose2d(channels, 16, 4, bias=False)
        expected[f"head.deconv{i}.weight"] = nn.init.normal_(deconv.weight, std=0.001)
        expected |= {f"head.bn{i}.{name}": value for name, value in nn.BatchNorm2d(16).state_dict().items()}
        channels = 16
    final = nn.Conv2d(channels, 3, 1)
    expected["head.final.weight"] = nn.init.normal_(final.weight, std=0.001)
    expected["head.final.bias"] = torch.zeros(3)
    torch.manual_seed(5)
    found = small().state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_parameter_count_of_the_papers_network():
    with torch.device("meta"):
        assert round(parameters(PoseNet("resnet50", 16)) / 1e6, 1) == 34.0


@pytest.mark.parametrize(
    "name, channels, classifier",
    [
        ("resnet18", 512, 512_000 + 1000),
        ("resnet152", 2048, 2_048_000 + 1000),
        ("mobilenet_v3_small", 576, 576 * 1024 + 1024 + 1024 * 1000 + 1000),
        ("shufflenet_v2_x2_0", 2048, 2_048_000 + 1000),
    ],
)
def test_parameter_count_is_that_of_torchvision_plus_the_head(name, channels, classifier):
    width, joints = 24, 7
    with torch.device("meta"):
        backbone = parameters(torchvision.models.get_model(name)) - classifier
        full, split = (PoseNet(name, joints, head_width=width, separable=value) for value in (False, True))
    final = (width + 1) * joints
    deconvolutions = 16 * (channels * width + 2 * width * width) + 3 * 2 * width
    assert parameters(full) == backbone + deconvolutions + final
    pointwise = channels * width + 2 * width * width
    assert parameters(split) == backbone + pointwise + 3 * 16 * width + 6 * 2 * width + final


def test_the_network_is_a_backbone_and_a_head():
    with torch.device("meta"):
        model = PoseNet("mobilenet_v3_small", 3)
    assert [name for name, _ in model.named_children()] == ["backbone", "head"]
    assert {name.partition(".")[0] for name in model.state_dict()} == {"backbone", "head"}


def test_an_integral_net_differs_in_how_its_maps_are_read():
    models = []
    for arguments in ({}, {"head": "integral", "debiased": False, "beta": 2.0}):
        torch.manual_seed(0)
        models.append(small(**arguments).eval())
    heatmap, integral = models
    assert heatmap.integral is None
    assert integral.integral == Integral(debiased=False, beta=2.0)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(heatmap(images), integral(images))


def test_initialisation_is_a_function_of_the_seed():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(small("shufflenet_v2_x0_5", separable=True).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.final.weight"], states[2]["head.final.weight"])


def test_the_head_starts_as_in_the_authors_code():
    torch.manual_seed(0)
    head = PoseNet("resnet18", 16).head
    for name in ("deconv1", "deconv2", "deconv3", "final"):
        assert getattr(head, name).weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert (head.final.bias == 0).all()
    assert (head.bn1.weight == 1).all()
    assert head.deconv1.bias is None


def test_running_statistics_follow_a_handful_of_batches():
    # Of one channel that is always 2: after n steps with share m of the new, 2 (1 - (1 - m)^n).
    norm = next(m for m in small("mobilenet_v3_small").backbone.modules() if isinstance(m, nn.BatchNorm2d)).train()
    for _ in range(10):
        norm(torch.full((2, norm.num_features, 2, 2), 2.0))
    torch.testing.assert_close(norm.running_mean, torch.full_like(norm.running_mean, 2 * (1 - 0.9**10)))


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_group_norm_takes_the_place_of_every_batch_norm(backbone):
    torch.manual_seed(0)
    batch = small(backbone)
    torch.manual_seed(0)
    model = small(backbone, norm="group")
    layers = [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(layers) == sum(isinstance(layer, nn.BatchNorm2d) for layer in batch.modules())
    assert {name for name, _ in model.named_parameters()} == set(model.state_dict())  # no statistics, no counters
    assert model.state_dict().keys() == dict(batch.named_parameters()).keys()
    assert all(torch.equal(value, batch.state_dict()[key]) for key, value in model.state_dict().items())
    images = torch.randn(3, 3, 64, 64)
    alone = torch.cat([model(image[None]) for image in images])  # what an image gives depends on no other
    assert torch.allclose(model(images), alone, atol=1e-5)
    assert torch.equal(model(images), model.eval()(images))


def test_groups_are_32_or_fewer_with_four_channels_each():
    model = small("shufflenet_v2_x0_5", norm="group")
    found = {(layer.num_groups, layer.num_channels) for layer in model.modules() if isinstance(layer, nn.GroupNorm)}
    assert found == {(4, 24), (8, 48), (16, 96), (32, 1024), (4, 16)}
    one_pixel = model.eval().backbone(torch.randn(1, 3, 32, 32))  # a map of 1 x 1, which is not all zeros
    assert one_pixel.shape[2:] == (1, 1) and one_pixel.std() > 0


def test_weights_of_either_norm_fill_a_backbone_with_group_norm(tmp_path):
    for norm in ("batch", "group"):
        trained = small(norm=norm)
        save_file(trained.state_dict(), tmp_path / f"{norm}.safetensors")
        model = small(norm="group", weights=str(tmp_path / f"{norm}.safetensors"))
        assert all(torch.equal(p, trained.state_dict()[f"backbone.{k}"]) for k, p in model.backbone.named_parameters())


def test_a_norm_that_group_norm_cannot_replace_is_named():
    with pytest.raises(UserError, match=r"model\.norm=group: found a layer BatchNormAct2d in \w+, which no GroupNorm"):
        small("timm:lcnet_050", norm="group")


@pytest.mark.parametrize(
    "name, classifier, wrap",
    [("resnet18", 2, False), ("mobilenet_v3_small", 4, True), ("shufflenet_v2_x0_5", 2, False)],
)
def test_a_torchvision_checkpoint_fills_the_backbone(tmp_path, name, classifier, wrap):
    torch.manual_seed(0)
    state = torchvision.models.get_model(name).state_dict()
    torch.save({"state_dict": state} if wrap else state, tmp_path / "net.pth")
    own = small(name, weights=str(tmp_path / "net.pth")).backbone.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in own)
    assert len(own) == len(state) - classifier


# convnext's layers are joined by other signs where features are extracted: "stages_0" for "stages.0".
def test_a_timm_checkpoint_fills_the_backbone(tmp_path):
    state = timm.create_model("convnext_atto", pretrained=False).state_dict()
    torch.save(state, tmp_path / "model.pth")
    own = small("timm:convnext_atto", weights=str(tmp_path / "model.pth")).backbone.state_dict()
    assert "net.stages_3.blocks.0.gamma" in own
    for name, value in own.items():
        library = name.removeprefix("net.").replace("stages_", "stages.").replace("stem_", "stem.")
        assert torch.equal(value, state[library])
    assert len(own) == len(state) - len([name for name in state if name.startswith("head")])


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_checkpoint_of_a_whole_pose_net_fills_the_backbone_and_leaves_the_head(tmp_path, suffix):
    first = small()
    file = tmp_path / f"pose.{suffix}"
    torch.save(first.state_dict(), file) if suffix == "pth" else save_file(first.state_dict(), file)
    second = small(num_keypoints=5, head_width=8, weights=str(file))
    assert torch.equal(second.backbone.conv1.weight, first.backbone.conv1.weight)
    assert second.head.final.weight.shape[0] == 5


def one_line_error(build, *parts):
    with pytest.raises(UserError) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    for part in (*parts, "expected"):
        assert part in message


def test_bad_checkpoints_are_named(tmp_path):
    path = tmp_path / "w.pth"

    def load():
        small(weights=str(path))

    path.write_bytes(b"not a checkpoint")
    one_line_error(load, str(path), "found")
    torch.save(torch.zeros(3), path)
    one_line_error(load, str(path), "found Tensor")
    torch.save(Path("x"), path)  # a pickled object: refused, not run
    one_line_error(load, str(path), "found")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    one_line_error(load, str(path), "bn1.weight")
    state = torchvision.models.resnet18().state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2)
    torch.save(state, path)
    one_line_error(load, str(path), "layer1.0.conv1.weight", "found shape (1, 2)", "(64, 64, 3, 3)", "resnet18")
    garbled = tmp_path / "w.safetensors"
    garbled.write_bytes(b"not a checkpoint")
    one_line_error(lambda: small(weights=str(garbled)), str(garbled), "safetensors")


@pytest.mark.parametrize("weights", ["missing.pth", "ResNet50_Weights.IMAGENET1K_V1", "imagenet"])
def test_unknown_weights_name_the_valid_ones(weights):
    one_line_error(lambda: small(weights=weights), f"found '{weights}'", "ResNet18_Weights.IMAGENET1K_V1")
    known = "MobileNet_V3_Small_Weights.IMAGENET1K_V1"
    one_line_error(lambda: small("mobilenet_v3_small", weights=weights), f"found '{weights}'", known)


def test_a_failed_download_is_one_line(monkeypatch):
    def no_network(*_args, **_keywords):
        raise OSError("name resolution\nfailed")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(UserError, match=r"IMAGENET1K_V1 could not be fetched \(name resolution failed\)"):
        small(weights="ResNet18_Weights.IMAGENET1K_V1")


@pytest.mark.parametrize(
    "name, weights, layer",
    [
        ("resnet18", "ResNet18_Weights.IMAGENET1K_V1", "conv1.weight"),
        ("shufflenet_v2_x0_5", "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1", "conv1.0.weight"),
    ],
)
def test_a_named_enum_is_loaded(monkeypatch, name, weights, layer):
    state = torchvision.models.get_model(name).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_a, **_k: state)
    assert torch.equal(small(name, weights=weights).backbone.state_dict()[layer], state[layer])


def test_nothing_of_timm_is_ever_downloaded(monkeypatch):
    def no_network(*_args, **_keywords):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    small("timm:lcnet_050")
    one_line_error(lambda: small("timm:hf-hub:timm/lcnet_050.ra2_in1k"), "hf-hub:timm/lcnet_050.ra2_in1k")
    one_line_error(lambda: small("timm:lcnet_050", weights="lcnet_050.ra2_in1k"), "none is downloaded")


def test_a_timm_name_that_does_not_exist_names_the_nearest():
    one_line_error(lambda: small("timm:resnett18"), "found 'timm:resnett18'", "did you mean timm:resnet18")


def test_a_timm_model_that_takes_images_of_one_size_is_refused():
    one_line_error(lambda: small("timm:vit_tiny_patch16_224"), "timm:vit_tiny_patch16_224", "64", "224")


def test_without_timm_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    real = builtins.__import__

    def absent(name, *arguments, **keywords):
        if name == "timm":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", absent)
    one_line_error(lambda: small("timm:lcnet_050"), "timm:lcnet_050", "pip install 'fedgh[timm]'")


@pytest.mark.parametrize(
    "arguments",
    [
        *({"backbone": name} for name in ("resnet20", "resnet", 18)),
        *({"head": name} for name in ("Integral", None)),
        {"norm": "instance"},
        *({"head_width": width} for width in (0, 1.5)),
        {"num_keypoints": 0},
    ],
)
def test_senseless_arguments_are_refused(arguments):
    key, value = next(iter(arguments.items()))
    one_line_error(lambda: small(**arguments), f"model.{key}: found {value!r}")


def test_a_senseless_beta_is_refused():
    one_line_error(lambda: small(head="integral", beta=0.0), "model.beta: found 0.0")


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_config_builds_each_choice(file):
    config = OmegaConf.load(file)
    # Only shapes count, but timm's models cannot all be built without arithmetic.
    with torch.device("cpu" if config.backbone.startswith("timm:") else "meta"):
        model = instantiate(config, num_keypoints=4)
    assert isinstance(model, PoseNet)
    assert model.integral is None
    assert model.head.final.out_channels == 4
    light = not config.backbone.startswith("resnet")
    assert (config.separable, config.head_width) == ((True, 128) if light else (False, 256))
    # A head that outweighs its backbone would undo the choice of a light one.
    assert parameters(model.head) < parameters(model.backbone)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_pose_resnet_is_the_papers(depth):
    config = OmegaConf.load(CONF / f"pose_resnet{depth}.yaml")
    assert (config.backbone, config.head, config.weights) == (f"resnet{depth}", "heatmap", None)

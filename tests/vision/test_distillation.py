import copy
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from fedgh_app.errors import UserError
from fedgh_app.pose.models import PoseNet
from fedgh_app.vision.distillation import distil, soft_targets


class Tiny(nn.Module):
    """Output = head * backbone * pixel: a linear pose network of two numbers."""

    def __init__(self, backbone: float, head: float) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(1, 1, 1, bias=False)
        self.head = nn.Conv2d(1, 1, 1, bias=False)
        self.load_state_dict({"backbone.weight": number(backbone), "head.weight": number(head)})

    def forward(self, images):
        return self.head(self.backbone(images))


def number(value):
    return torch.full((1, 1, 1, 1), value)


def batch(images):
    return SimpleNamespace(images=images)


def pixels(*values):
    return batch(torch.tensor(values).reshape(-1, 1, 1, 1))


def small_network(seed=0):
    """With BatchNorm in backbone and head, and statistics that are not those of the images below."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    head = nn.Sequential(nn.Conv2d(6, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = nn.Sequential(OrderedDict(backbone=backbone, head=head))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(5)
    return model


def images(count=5, seed=1):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(state, other):
    return list(state) == list(other) and all(torch.equal(value, other[key]) for key, value in state.items())


def test_soft_targets_of_two_clients_by_hand():
    # Client 1 answers 1 * 3 * x. Client 2 shares its backbone alone and is completed by the model's head: 2 * 2 * x.
    # Their mean is 3.5 x.
    model = Tiny(1.0, 2.0)
    states = [
        {"backbone.weight": number(1.0), "head.weight": number(3.0)},
        {"backbone.weight": number(2.0)},
    ]
    found = soft_targets(model, states, [pixels(1.0, -2.0), pixels(4.0)])
    assert found.shape == (3, 1, 1, 1) and found.dtype == torch.float32
    assert found.flatten().tolist() == [3.5, -7.0, 14.0]
    assert (model.backbone.weight.item(), model.head.weight.item()) == (1.0, 2.0)


def test_one_step_of_distillation_by_hand():
    # backbone a = 1, head b = 2: outputs 2 and -4 for x = 1 and -2, targets 3.5 and -7.
    # Loss: (1.5^2 + 3^2) / 2 = 5.625. By the outputs: -1.5 and 3.
    # By a: b (-1.5 * 1 + 3 * -2) = -15, by b: a (-7.5) = -7.5. Times the learning rate 0.01.
    model = Tiny(1.0, 2.0)
    targets = torch.tensor([3.5, -7.0]).reshape(2, 1, 1, 1)
    loss = distil(model, targets, [pixels(1.0, -2.0)], torch.optim.SGD(model.parameters(), lr=0.01))
    assert loss == pytest.approx(5.625)
    assert model.backbone.weight.item() == pytest.approx(1.15)
    assert model.head.weight.item() == pytest.approx(2.075)


def test_the_reported_loss_is_a_mean_over_examples():
    # Nothing moves at learning rate 0: errors 1, 2 and 3 in batches of two and one, (1 + 4 + 9) / 3.
    model = Tiny(1.0, 1.0)
    targets = torch.tensor([2.0, 4.0, 6.0]).reshape(3, 1, 1, 1)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    assert distil(model, targets, [pixels(1.0, 2.0), pixels(3.0)], still) == pytest.approx(14 / 3)


def test_features_by_hand():
    # Pixels average to (3, 4). Client 1 passes them on, client 2 swaps the channels: (0.6, 0.8) and (0.8, 0.6).
    model = nn.Sequential(OrderedDict(backbone=nn.Conv2d(2, 2, 1, bias=False)))
    one = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(2, 2, 1, 1)
    model.backbone.weight.data.copy_(10 * one)
    shown = batch(torch.tensor([[[2.0, 4.0]], [[3.0, 5.0]]]).reshape(1, 2, 1, 2))
    states = [{"backbone.weight": one}, {"backbone.weight": one.flip(0)}]
    targets = soft_targets(model, states, [shown], output="features")
    torch.testing.assert_close(targets, torch.tensor([[0.7, 0.7]]))
    # The student's features (30, 40) are taken as (0.6, 0.8) too: errors -0.1 and 0.1, whatever their length.
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    assert distil(model, targets, [shown], still, output="features") == pytest.approx(0.01)


def test_features_train_the_backbone_alone():
    model = PoseNet("resnet18", 2, head_width=8)
    examples = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = state_of(model)
    targets = normalize(torch.rand(2, 512, generator=torch.Generator().manual_seed(1)), dim=1)
    # Weight decay would move whatever has a gradient, even one of zero.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    distil(model, targets, [batch(examples)], optimizer, output="features")
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved and all(key.startswith("backbone.") for key in moved)


@pytest.mark.parametrize("output", ["outputs", "features"])
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_the_student_comes_nearer_to_its_teachers(output, batch_statistics):
    model, shown = small_network(), [batch(part) for part in images(8).split(4)]
    teachers = [small_network(seed).state_dict() for seed in (1, 2, 3)]
    options = {"output": output, "batch_statistics": batch_statistics}
    targets = soft_targets(model, teachers, shown, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = [distil(model, targets, shown, optimizer, **options) for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("training", [False, True])
def test_soft_targets_leave_the_model_as_it_was(training):
    model = small_network().train(training)
    before = state_of(model)
    soft_targets(model, [small_network(1).state_dict()], [batch(images())], batch_statistics=True)
    assert same(state_of(model), before) and model.training is training
    broken = {"nowhere.weight": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="nowhere"):
        soft_targets(model, [small_network(1).state_dict(), broken], [batch(images())])
    assert same(state_of(model), before)


def test_soft_targets_are_means_of_what_each_client_predicts():
    clients = [small_network(seed).eval() for seed in (1, 2, 3)]
    with torch.no_grad():
        heatmaps = torch.stack([client.head(client.backbone(images())) for client in clients])
        features = torch.stack([normalize(client.backbone(images()).mean((2, 3)), dim=1) for client in clients])
    states = [client.state_dict() for client in clients]
    shown = [batch(part) for part in images().split(2)]
    model = small_network()
    torch.testing.assert_close(soft_targets(model, states, shown), heatmaps.mean(0))
    torch.testing.assert_close(soft_targets(model, iter(states), shown, output="features"), features.mean(0))


@pytest.mark.parametrize("batch_statistics", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_distillation_never_touches_running_statistics(batch_statistics, training):
    model = small_network().train(training)
    before = state_of(model)
    targets = torch.zeros(5, 2, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    distil(model, targets, [batch(images())], optimizer, batch_statistics=batch_statistics)
    names = {name for name, _ in model.named_parameters()}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) != (key in names), key
    assert model.training is training


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_the_student_learns_by_the_statistics_that_it_is_told_to_use(batch_statistics):
    model, targets = small_network(), torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    by_hand = copy.deepcopy(model).train(batch_statistics)
    error = ((by_hand(images()) - targets) ** 2).mean()
    error.backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = distil(model, targets, [batch(images())], optimizer, batch_statistics=batch_statistics)
    assert loss == pytest.approx(error.item(), rel=1e-5)
    expected = {name: parameter - 0.1 * parameter.grad for name, parameter in by_hand.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name].detach(), rtol=1e-4, atol=1e-6)


def test_batch_statistics_make_running_ones_irrelevant():
    model = small_network()
    teacher = small_network(1).state_dict()
    shared = {key: value for key, value in teacher.items() if "running" not in key and "tracked" not in key}
    shown = [batch(images())]
    found = [soft_targets(model, [state], shown, batch_statistics=True) for state in (teacher, shared)]
    assert torch.equal(*found)
    found = [soft_targets(model, [state], shown) for state in (teacher, shared)]
    assert not torch.allclose(*found)


def test_distillation_repeats_bit_for_bit():
    runs = []
    for _ in range(2):
        model, shown = small_network(), [batch(part) for part in images(8).split(4)]
        targets = soft_targets(model, [small_network(seed).state_dict() for seed in (1, 2)], shown)
        loss = distil(model, targets, shown, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        runs.append((loss, state_of(model)))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])


def test_examples_and_targets_must_match():
    model = Tiny(1.0, 1.0)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    two = torch.zeros(2, 1, 1, 1)
    for shown in ([], [pixels(1.0)], [pixels(1.0, 2.0), pixels(3.0)]):
        with pytest.raises(ValueError, match="expected one for each"):
            distil(model, two, shown, still)
    with pytest.raises(UserError, match="found 0 examples"):
        soft_targets(model, [model.state_dict()], [])
    with pytest.raises(ValueError, match="found 0 states"):
        soft_targets(model, [], [pixels(1.0)])
    with pytest.raises(ValueError, match="each time"):
        soft_targets(model, [copy.deepcopy(model.state_dict())] * 2, iter([pixels(1.0), pixels(2.0)]))
    with pytest.raises(UserError, match=r"distillation\.output: found 'logits'"):
        soft_targets(model, [model.state_dict()], [pixels(1.0)], output="logits")
    with pytest.raises(UserError, match="without a `backbone`"):
        soft_targets(nn.Conv2d(1, 1, 1), [{}], [pixels(1.0)], output="features")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("output", ["outputs", "features"])
def test_the_gpu_agrees_with_the_cpu(output):
    teachers = [PoseNet("resnet18", 2, head_width=8).state_dict() for _ in range(2)]
    shown = [batch(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))]
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = PoseNet("resnet18", 2, head_width=8)
        targets = soft_targets(model, teachers, shown, output=output, device=device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        found.append((targets, distil(model, targets, shown, optimizer, output=output, device=device)))
    (on_cpu, loss), (on_gpu, gpu_loss) = found
    assert on_gpu.device.type == "cpu"
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0.05, atol=0.05 * on_cpu.abs().max().item())
    assert gpu_loss == pytest.approx(loss, rel=0.1)

import copy
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fedgh_app.config.choices import values_of
from fedgh_app.errors import UserError
from fedgh_app.pose.evaluation.tally import scores, tally
from fedgh_app.pose.models import PoseNet
from fedgh_app.pose.models.decoding import Integral, quarter
from fedgh_app.pose.models.losses import HeatmapCrossEntropy, HeatmapMSE, IntegralLoss
from fedgh_app.pose.training import evaluate, find_keypoints, train
from fedgh_app.vision.objectives import Dyn, Plain, Prox, Received, Scaffold
from fedgh_app.vision.training import cosine_distance, embed, predict

CONF = Path(__file__).parents[2] / "conf"
SIZE = 32


@dataclass(frozen=True)
class Examples:
    """A batch: bright squares on dark noise, whose centres are the keypoints."""

    images: torch.Tensor
    keypoints: torch.Tensor
    visible: torch.Tensor
    reference_length: torch.Tensor
    index: torch.Tensor

    def split(self, size):
        columns = [getattr(self, field.name).split(size) for field in fields(self)]
        return [Examples(*parts) for parts in zip(*columns, strict=True)]


def squares(count=12, joints=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    keypoints = torch.randint(4, SIZE - 4, (count, joints, 2), generator=generator)
    for image, points in zip(images, keypoints, strict=True):
        for joint, (x, y) in enumerate(points.tolist()):
            image[joint % 3, y - 2 : y + 3, x - 2 : x + 3] = 2.0
    return Examples(
        images,
        keypoints.float(),
        torch.rand(count, joints, generator=generator) < 0.8,
        torch.full((count,), 20.0),
        torch.arange(count),
    )


def small_network(seed=0, joints=2):
    """Two convolutions to a quarter of the input, with BatchNorm: like PoseNet in what matters here."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, joints, 5, 2, 2))


def adam(model, lr=0.01):
    return torch.optim.Adam(model.parameters(), lr=lr)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("debiased", [False, True])
def test_an_integral_net_overfits_a_handful_of_crops(debiased):
    model, batches, loss = small_network(), squares(8).split(8), IntegralLoss(debiased, sigma=4)
    model.integral = Integral(debiased)
    before = evaluate(model, batches, loss)
    train(model, batches, loss, adam(model), epochs=200)
    after = evaluate(model, batches, loss)
    seen = after.visible
    assert after.loss < before.loss / 3
    # In reference lengths of 20 px: the worst keypoint is nearer than the mean one was.
    assert after.distance[seen].max() < before.distance[seen].mean() / 2
    assert (after.heatmap_hit[seen & ~np.isnan(after.heatmap_hit)] == 1).mean() > 0.5
    np.testing.assert_allclose(after.coordinates, model.integral(predict(model, batches[0].images), (SIZE, SIZE))[0])


@pytest.mark.parametrize("loss", [HeatmapMSE(), HeatmapCrossEntropy()])
def test_training_reduces_the_loss_and_finds_the_keypoints(loss):
    model, batches = small_network(), squares().split(6)
    before = evaluate(model, batches, loss)
    done = train(model, batches, loss, adam(model), epochs=40)
    after = evaluate(model, batches, loss)
    assert (done.steps, done.examples) == (80, 480)
    assert after.loss < 0.9 * before.loss
    assert scores(tally(after, "ab", 0.2)).score > scores(tally(before, "ab", 0.2)).score + 0.3


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_pose_net_learns_with_each_configured_optimizer(optimizer):
    torch.manual_seed(0)
    model, batches, loss = PoseNet("resnet18", 2, head_width=8), squares(8).split(4), HeatmapCrossEntropy()
    build = instantiate(OmegaConf.load(CONF / "optimizer" / f"{optimizer}.yaml"))
    first = train(model, batches, loss, build(model.parameters()), epochs=1)
    later = train(model, batches, loss, build(model.parameters()), epochs=3)
    assert later.loss < first.loss


@pytest.mark.parametrize("name, kind", [("mse", HeatmapMSE), ("cross_entropy", HeatmapCrossEntropy)])
def test_the_config_builds_each_loss(name, kind):
    loss = instantiate(values_of("loss", name))
    assert type(loss) is kind
    assert loss.sigma == 2


def test_a_repeated_training_is_bit_equal():
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        model = PoseNet("resnet18", 2, head_width=16)
        build = instantiate(OmegaConf.load(CONF / "optimizer" / "adam.yaml"))
        done = train(model, squares(8).split(4), HeatmapMSE(), build(model.parameters()), epochs=2)
        runs.append((model, done, evaluate(model, squares(8).split(4), HeatmapMSE())))
    (model, done, found), (other, again, refound) = runs
    assert equal(model, other)
    assert done == again
    assert found.loss == refound.loss
    np.testing.assert_array_equal(found.scores, refound.scores)


def test_one_step_is_the_optimizers_step_on_the_gradient_of_the_loss():
    model, examples, loss = small_network(), squares(), HeatmapMSE()
    by_hand = copy.deepcopy(model).train()
    value = loss(by_hand(examples.images), examples.keypoints, examples.visible, (SIZE, SIZE))
    value.backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.1 * parameter.grad
    done = train(model, [examples], loss, torch.optim.SGD(model.parameters(), lr=0.1), epochs=1)
    assert done.loss == value.item()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_a_guide_is_added_to_what_a_step_minimises_and_not_to_the_loss():
    model, examples, loss = small_network(), squares(), HeatmapMSE()
    alone, by_hand = copy.deepcopy(model), copy.deepcopy(model).train()

    def guide(images, maps, visible):
        return images.mean() * (maps * visible[..., None, None]).square().mean()

    maps = by_hand(examples.images)
    value = loss(maps, examples.keypoints, examples.visible, (SIZE, SIZE))
    (value + guide(examples.images, maps, examples.visible)).backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.1 * parameter.grad
    done = train(model, [examples], loss, torch.optim.SGD(model.parameters(), lr=0.1), epochs=1, guide=guide)
    unguided = train(alone, [examples], loss, torch.optim.SGD(alone.parameters(), lr=0.1), epochs=1)
    assert done.loss == unguided.loss == pytest.approx(value.item())
    assert not equal(model, alone)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_the_reported_loss_is_a_mean_over_examples():
    model, batches = small_network(), squares(9).split(6)  # batches of 6 and 3
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    losses = [train(copy.deepcopy(model), [b], HeatmapMSE(), frozen, epochs=1).loss for b in batches]
    done = train(model, batches, HeatmapMSE(), frozen, epochs=1)
    assert done.loss == pytest.approx((6 * losses[0] + 3 * losses[1]) / 9, rel=1e-6)
    assert losses[0] != losses[1]


def test_each_epoch_asks_for_its_own_batches():
    asked = []

    def batches(epoch):
        asked.append(epoch)
        return squares(4, seed=epoch).split(2)

    model = small_network()
    assert train(model, batches, HeatmapMSE(), adam(model), epochs=3).steps == 6
    assert asked == [0, 1, 2]


def test_a_penalty_changes_the_step_but_not_the_reported_loss():
    start, examples = small_network(), squares()

    def step(penalty):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, train(model, [examples], HeatmapMSE(), optimizer, epochs=1, penalty=penalty)

    plain, without = step(None)
    pulled, with_penalty = step(lambda model: 0.5 * sum((p**2).sum() for p in model.parameters()))
    assert with_penalty == without
    for before, a, b in zip(start.parameters(), plain.parameters(), pulled.parameters(), strict=True):
        # The gradient of half the squared norm is the parameter itself.
        torch.testing.assert_close(b, a - 0.1 * before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [HeatmapMSE(), HeatmapCrossEntropy()])
def test_squared_losses_are_those_of_each_example_in_its_own_step(loss):
    model, batches = small_network(), squares(9).split(6)
    replay, squared = copy.deepcopy(model), []
    for batch in batches * 2:
        replay.train()
        each = loss.per_example(copy.deepcopy(replay)(batch.images), batch.keypoints, batch.visible, (SIZE, SIZE))
        squared += each.double().square().tolist()
        train(replay, [batch], loss, torch.optim.SGD(replay.parameters(), lr=0.1), epochs=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    done = train(model, batches, loss, optimizer, epochs=2, squared_losses=True)
    assert len(squared) == done.examples == 18
    assert done.loss_rms == pytest.approx(np.sqrt(np.mean(squared)), rel=1e-6)


def test_measuring_squared_losses_changes_nothing_else(monkeypatch):
    runs = []
    for asked in (True, False):
        model = small_network()
        if not asked:  # nor is anything computed for nobody
            monkeypatch.setattr(HeatmapMSE, "per_example", None)
        done = train(model, squares().split(6), HeatmapMSE(), adam(model), epochs=2, squared_losses=asked)
        runs.append((model, done))
    (model, done), (other, without) = runs
    assert equal(model, other)
    assert without.loss_rms is None and done.loss_rms > 0
    assert (done.loss, done.steps, done.examples) == (without.loss, without.steps, without.examples)


def test_each_objective_takes_the_steps_of_its_paper():
    """The training loop with each objective's term against the papers' own update, written out."""
    start, batches, loss, lr = small_network(), squares(9).split(3), HeatmapMSE(), 0.1
    # The second convolution stays local: it is trained as if there were no federation.
    shared = {name: value.detach().clone() for name, value in start.named_parameters() if not name.startswith("3")}
    torch.manual_seed(1)
    h, c, c_k = ({name: 0.1 * torch.randn_like(value) for name, value in shared.items()} for _ in range(3))
    corrections = {
        Plain(): lambda name, w: 0,
        Prox(0.5): lambda name, w: 0.5 * (w - shared[name]),
        Dyn(0.5): lambda name, w: 0.5 * (w - shared[name]) - h[name],
        Scaffold(): lambda name, w: c[name] - c_k[name],
    }
    for objective, correction in corrections.items():
        by_hand, gradients = copy.deepcopy(start).train(), []
        for batch in batches:
            by_hand.zero_grad()
            loss(by_hand(batch.images), batch.keypoints, batch.visible, (SIZE, SIZE)).backward()
            gradients.append({name: parameter.grad.clone() for name, parameter in by_hand.named_parameters()})
            with torch.no_grad():
                for name, parameter in by_hand.named_parameters():
                    pull = correction(name, parameter) if name in shared else 0
                    parameter -= lr * (parameter.grad + pull)
        model = copy.deepcopy(start)
        known = Received(shared, h if isinstance(objective, Dyn) else c_k, {"control": c})
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        done = train(model, batches, loss, optimizer, epochs=1, penalty=objective.penalty(known))
        for name, value in by_hand.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        after = objective.next_memory(known, model.state_dict(), steps=done.steps, learning_rate=lr)
        if isinstance(objective, Scaffold):
            for name, value in after.items():
                mean = torch.stack([gradient[name] for gradient in gradients]).mean(0)
                torch.testing.assert_close(value, mean, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", [HeatmapMSE(), HeatmapCrossEntropy()])
def test_evaluation_does_not_depend_on_the_batch_size(loss):
    torch.manual_seed(0)
    model, examples = PoseNet("resnet18", 2, head_width=16), squares(9)
    train(model, [examples], loss, adam(model, 1e-3), epochs=2)
    whole, split = evaluate(model, [examples], loss), evaluate(model, examples.split(2), loss)
    assert whole.loss == pytest.approx(split.loss, rel=1e-5)
    assert whole.loss_terms == split.loss_terms == int(examples.visible.sum())
    np.testing.assert_allclose(whole.scores, split.scores, rtol=1e-3, atol=1e-6)
    for name in ("visible", "index", "coordinates", "distance", "heatmap_hit"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(split, name))


def test_evaluation_reports_what_the_network_predicts():
    model, examples = small_network(), squares(5)
    model.train()
    state = copy.deepcopy(model.state_dict())
    found = evaluate(model, examples.split(2), HeatmapMSE())
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    heatmaps = predict(model, examples.images)
    coordinates, scores = quarter(heatmaps, (SIZE, SIZE))
    np.testing.assert_allclose(found.coordinates, coordinates.numpy())
    np.testing.assert_allclose(found.scores, scores.numpy(), rtol=1e-5)
    error = np.sqrt(((found.coordinates - examples.keypoints.numpy()) ** 2).sum(-1))
    np.testing.assert_allclose(found.distance, error / 20, rtol=1e-5)
    np.testing.assert_array_equal(found.visible, examples.visible.numpy())
    assert np.isnan(found.heatmap_hit[~found.visible]).all()
    assert found.index.tolist() == [0, 1, 2, 3, 4]
    whole = HeatmapMSE()(heatmaps, examples.keypoints, examples.visible, (SIZE, SIZE))
    assert found.loss == pytest.approx(whole.item(), rel=1e-5)


def test_a_flip_test_predicts_the_mirror_image_too():
    # Each channel pooled: joints 0 and 1 are red and green, and change places in a mirror.
    model, images = nn.AvgPool2d(4), squares(3).images
    maps = model(images)
    mirrored = maps[:, [1, 0, 2]]  # pooling knows no left and right: of the mirror image it makes the mirrored maps
    found = find_keypoints(model, images, quarter, flip_permutation=[1, 0, 2])
    coordinates, scores = quarter((maps + mirrored) / 2, (SIZE, SIZE))
    torch.testing.assert_close(found.maps, maps)
    torch.testing.assert_close((found.coordinates, found.scores), (coordinates, scores))
    plain = find_keypoints(model, images, quarter)
    torch.testing.assert_close((plain.coordinates, plain.scores), quarter(maps, (SIZE, SIZE)))


@pytest.mark.parametrize("loss", [HeatmapMSE(), HeatmapCrossEntropy()])
def test_a_flip_test_evaluates_other_points_and_the_same_loss(loss):
    model, batches = small_network(), squares(5).split(2)
    plain, flipped = evaluate(model, batches, loss), evaluate(model, batches, loss, flip_permutation=[1, 0])
    assert plain.loss == flipped.loss
    np.testing.assert_array_equal(plain.heatmap_hit, flipped.heatmap_hit)
    expected = torch.cat(
        [find_keypoints(model, batch.images, quarter, flip_permutation=[1, 0]).coordinates for batch in batches]
    )
    np.testing.assert_array_equal(flipped.coordinates, expected)
    assert (plain.coordinates != flipped.coordinates).any()


def test_no_examples_are_an_error():
    model = small_network()
    with pytest.raises(UserError, match="found 0 examples"):
        train(model, [], HeatmapMSE(), adam(model), epochs=2)
    with pytest.raises(UserError, match="found 0 examples"):
        evaluate(model, [], HeatmapMSE())


def test_prediction_uses_running_statistics_and_keeps_the_mode():
    model, images = small_network(), squares().images
    model.train()
    alone, together = predict(model, images[:1]), predict(model, images)
    torch.testing.assert_close(alone[0], together[0])
    assert model.training
    model.eval()
    predict(model, images)
    assert not model.training
    assert not alone.requires_grad


def test_batch_statistics_in_prediction_are_those_of_training_and_leave_no_trace():
    model, images = small_network(), squares().images
    model[1].running_mean.fill_(3.0)
    state = copy.deepcopy(model.state_dict())
    as_in_training = copy.deepcopy(model).train()(images)
    for training in (True, False):
        model.train(training)
        torch.testing.assert_close(predict(model, images, batch_statistics=True), as_in_training)
        assert all(module.training is training for module in model.modules())
        assert model[1].track_running_stats
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not torch.allclose(predict(model, images), as_in_training)


def test_a_batch_too_small_for_its_statistics_leaves_no_trace_either():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3)).train()
    with pytest.raises(ValueError, match="more than 1 value"):
        predict(model, torch.zeros(1, 3, 1, 1), batch_statistics=True)
    assert model[1].track_running_stats and model[1].training
    assert model[1].num_batches_tracked == 0


def test_embedding_is_the_backbones_output_averaged_over_pixels():
    torch.manual_seed(0)
    model, images = PoseNet("resnet18", 2, head_width=8).train(), squares(4).images
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        maps = copy.deepcopy(model).eval().backbone(torch.cat((images, images), -1))
    assert maps.shape == (4, 512, 1, 2)
    found = embed(model, torch.cat((images, images), -1))
    torch.testing.assert_close(found, (maps[..., 0, 0] + maps[..., 0, 1]) / 2)
    assert found.dtype == torch.float32 and not found.requires_grad
    assert model.training
    own = embed(model, images, batch_statistics=True)
    torch.testing.assert_close(own, copy.deepcopy(model).backbone(images).mean((2, 3)))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_model_without_a_backbone_has_no_embedding():
    with pytest.raises(UserError, match="found Sequential without a `backbone`"):
        embed(small_network(), squares(2).images)


def test_cosine_distance_by_hand():
    before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    after = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    # Same direction 0, right angle 1, opposite 2, and a zero output on either side counts as 0.
    assert cosine_distance(before, after) == pytest.approx((0 + 1 + 2 + 0 + 0) / 5)


def test_cosine_distance_flattens_heatmaps_and_sees_small_changes():
    before = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    assert cosine_distance(before, before) == pytest.approx(0, abs=1e-15)
    # For a small change e at right angles, 1 - cos is about e^2 / 2: far below what float32 can tell from 0.
    assert cosine_distance(before.double(), before.double() + 1e-5 * noise.double()) == pytest.approx(0.5e-10, rel=0.3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_path_learns_and_agrees_with_the_cpu():
    model, batches, loss = small_network(), squares().split(6), HeatmapCrossEntropy()
    model.to("cuda")
    train(model, batches, loss, adam(model), epochs=30, device="cuda")
    on_gpu = evaluate(model, batches, loss, device="cuda")
    on_cpu = evaluate(model, batches, loss, device="cpu")
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=0.05)
    assert tally(on_cpu, "ab", 0.2).pck > 0.6

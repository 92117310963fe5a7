import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgh_app.errors import UserError
from fedgh_app.pose.models.heatmaps import render_gaussian
from fedgh_app.pose.models.losses import HeatmapCrossEntropy, HeatmapMSE, IntegralLoss

LOSSES = [HeatmapMSE, HeatmapCrossEntropy, IntegralLoss]
INPUT, MAP = (32, 32), (8, 8)


def example(batch=3, joints=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    heatmaps = torch.randn(batch, joints, *MAP, generator=generator, dtype=dtype)
    keypoints = torch.rand(batch, joints, 2, generator=generator, dtype=dtype) * 31
    return heatmaps, keypoints, torch.ones(batch, joints, dtype=torch.bool)


def test_mse_by_hand():
    # Two joints; predictions 0 and 2 everywhere. Only the second is visible: 0.5 * mean (2 - Gaussian)^2.
    keypoints = torch.tensor([[[3.0, 3.0], [13.5, 9.5]]])
    visible = torch.tensor([[False, True]])
    heatmaps = torch.stack((torch.zeros(MAP), torch.full(MAP, 2.0)))[None]
    target = render_gaussian(keypoints, visible, INPUT, MAP)[0, 1]
    expected = 0.5 * sum((2 - t) ** 2 for t in target.flatten().tolist()) / 64
    assert HeatmapMSE()(heatmaps, keypoints, visible, INPUT).item() == pytest.approx(expected, rel=1e-6)


def test_mse_with_all_visible_is_that_of_simple_baselines():
    heatmaps, keypoints, visible = example()
    target = render_gaussian(keypoints, visible, INPUT, MAP)
    joints = [0.5 * torch.nn.functional.mse_loss(heatmaps[:, j], target[:, j]) for j in range(4)]
    torch.testing.assert_close(HeatmapMSE()(heatmaps, keypoints, visible, INPUT), sum(joints) / 4)


def test_cross_entropy_by_hand():
    heatmaps, keypoints, visible = example()
    visible[0, 1] = visible[2, 3] = False
    target = render_gaussian(keypoints, visible, INPUT, MAP).double()
    terms = []
    for b in range(3):
        for j in range(4):
            if visible[b, j]:
                probability = heatmaps[b, j].double().exp() / heatmaps[b, j].double().exp().sum()
                terms.append(-(target[b, j] / target[b, j].sum() * probability.log()).sum().item())
    assert len(terms) == 10
    found = HeatmapCrossEntropy()(heatmaps, keypoints, visible, INPUT).item()
    assert found == pytest.approx(sum(terms) / 10, rel=1e-5)


def test_cross_entropy_of_uniform_logits_is_the_logarithm_of_the_number_of_pixels():
    _, keypoints, visible = example()
    found = HeatmapCrossEntropy()(torch.full((3, 4, *MAP), 7.0), keypoints, visible, INPUT)
    assert found.item() == pytest.approx(math.log(64), rel=1e-5)


@pytest.mark.parametrize("loss", [HeatmapMSE, HeatmapCrossEntropy])
def test_each_loss_is_least_at_its_own_target(loss):
    _, keypoints, visible = example()
    target = render_gaussian(keypoints, visible, INPUT, MAP)
    best = target if loss is HeatmapMSE else target.clamp(min=1e-30).log()
    at_best = loss()(best, keypoints, visible, INPUT)
    if loss is HeatmapMSE:
        assert at_best == 0
    for seed in range(5):
        noise = 0.3 * torch.randn(best.shape, generator=torch.Generator().manual_seed(seed))
        assert loss()(best + noise, keypoints, visible, INPUT) > at_best


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_finite_differences(loss):
    heatmaps, keypoints, visible = example(2, 2, dtype=torch.float64)
    visible[1, 0] = False
    heatmaps.requires_grad_()
    assert torch.autograd.gradcheck(lambda h: loss()(h, keypoints, visible, INPUT), heatmaps)


@pytest.mark.parametrize("regulariser", ["js", "kl", "none"])
@pytest.mark.parametrize("debiased", [False, True])
def test_gradients_of_each_form_of_the_integral_loss_agree_with_finite_differences(regulariser, debiased):
    loss = IntegralLoss(debiased, beta=1.5, regulariser=regulariser, weight=0.7, sigma=8)
    logits, keypoints, visible = example(2, 2, dtype=torch.float64)
    visible[1, 0] = False
    logits[0, 0] -= 3  # nearly all background: read as it is also when debiased
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, keypoints, visible, INPUT), logits)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(LOSSES), st.integers(0, 1000), st.floats(-1e3, 1e3), st.booleans())
def test_invisible_joints_have_no_influence(loss, seed, value, nan):
    heatmaps, keypoints, visible = example(seed=seed)
    visible = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) < 0.5
    visible[0, 0] = True
    before = heatmaps.clone().requires_grad_()
    after = torch.where(visible[..., None, None], heatmaps, value).requires_grad_()
    moved = torch.where(visible[..., None], keypoints, math.nan if nan else value)
    a, b = loss()(before, keypoints, visible, INPUT), loss()(after, moved, visible, INPUT)
    a.backward()
    b.backward()
    assert torch.equal(a, b)
    assert torch.equal(before.grad, after.grad)
    assert (before.grad[~visible] == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_adding_invisible_joints_does_not_change_the_value(loss):
    heatmaps, keypoints, visible = example()
    both = (torch.cat((heatmaps, heatmaps), 1), torch.cat((keypoints, keypoints), 1))
    half_seen = torch.cat((visible, ~visible), 1)
    torch.testing.assert_close(
        loss()(*both, half_seen, INPUT), loss()(heatmaps, keypoints, visible, INPUT), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_targets_gives_zero_and_zero_gradients(loss):
    heatmaps, keypoints, visible = example()
    for points, seen in ((keypoints, ~visible), (keypoints + 500, visible)):
        leaf = heatmaps.clone().requires_grad_()
        value = loss()(leaf, points, seen, INPUT)
        value.backward()
        assert value.item() == 0
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("loss", LOSSES)
def test_totals_of_batches_add_up_to_the_whole(loss):
    heatmaps, keypoints, visible = example(6)
    visible[:3, 1:] = False
    parts = [loss().total(heatmaps[s], keypoints[s], visible[s], INPUT) for s in (slice(0, 1), slice(1, 6))]
    whole = loss()(heatmaps, keypoints, visible, INPUT)
    pooled = sum(total for total, _ in parts) / sum(count for _, count in parts)
    torch.testing.assert_close(pooled, whole, rtol=1e-6, atol=0)
    mean_of_means = (loss()(heatmaps[:1], keypoints[:1], visible[:1], INPUT) + whole) / 2
    assert not torch.allclose(mean_of_means, whole)  # the example tells the two apart


def test_cross_entropy_of_a_keypoint_just_outside_the_map_pulls_to_the_border():
    keypoints, visible = torch.tensor([[[-1.5, 15.5]]]), torch.ones(1, 1, dtype=torch.bool)
    leaf = torch.zeros(1, 1, *MAP, requires_grad=True)
    HeatmapCrossEntropy()(leaf, keypoints, visible, INPUT).backward()
    assert (-leaf.grad)[0, 0].argmax(-1)[4] == 0  # the steepest rise in row 4 is at column 0
    assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sigma", [0, -1.0, math.nan])
def test_a_sigma_that_is_not_positive_is_refused(loss, sigma):
    with pytest.raises(UserError, match=r"loss\.sigma"):
        loss(sigma=sigma)


def test_the_loss_of_each_example_by_hand():
    # Maps of a constant against Gaussians t: terms 0.5 mean (constant - t)^2. The first example has both joints, the
    # second only its second one, the third none.
    keypoints = torch.tensor([[[9.5, 9.5], [21.5, 13.5]]]).repeat(3, 1, 1)
    visible = torch.tensor([[True, True], [False, True], [False, False]])
    heatmaps = torch.tensor([[0.0, 1.0], [5.0, 2.0], [3.0, 4.0]])[..., None, None].expand(3, 2, *MAP)
    target = render_gaussian(keypoints, torch.ones(3, 2, dtype=torch.bool), INPUT, MAP)[0].flatten(1).tolist()

    def term(constant, joint):
        return 0.5 * sum((constant - t) ** 2 for t in target[joint]) / 64

    found = HeatmapMSE().per_example(heatmaps, keypoints, visible, INPUT)
    expected = [(term(0.0, 0) + term(1.0, 1)) / 2, term(2.0, 1), 0.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_an_example_is_its_loss_as_a_batch_of_its_own(loss):
    heatmaps, keypoints, visible = example(5)
    visible = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    visible[2] = False
    each = loss().per_example(heatmaps, keypoints, visible, INPUT)
    alone = [loss()(heatmaps[i : i + 1], keypoints[i : i + 1], visible[i : i + 1], INPUT) for i in range(5)]
    torch.testing.assert_close(each, torch.stack(alone))
    assert each[2] == 0 and (each[[0, 1, 3, 4]] > 0).all()


def logits_at(*masses, size):
    """Logits (1, 1, h, w) of a distribution: ((x, y), mass) each."""
    logits = torch.full((1, 1, *size), -1e4)
    for (x, y), mass in masses:
        logits[0, 0, y, x] = math.log(mass)
    return logits


def test_the_integral_loss_counts_an_error_as_a_fraction_of_the_map():
    # A map 16 wide and 8 high over an input of 64 x 32. The expectation is (3, 3), the truth (5, 4): 2 / 16 + 1 / 8.
    logits = logits_at(((2, 3), 0.75), ((6, 3), 0.25), size=(8, 16))
    truth, visible = torch.tensor([[[21.5, 17.5]]]), torch.ones(1, 1, dtype=torch.bool)
    loss = IntegralLoss(debiased=False, regulariser="none")
    assert loss(logits, truth, visible, (32, 64)).item() == pytest.approx(0.25, rel=1e-5)
    # Twice the resolution, the same places: the same error.
    finer = logits_at(((4, 6), 0.75), ((12, 6), 0.25), size=(16, 32))
    assert loss(finer, (truth + 0.5) * 1 - 1.5, visible, (32, 64)).item() == pytest.approx(0.25, rel=1e-5)


def test_the_debiased_loss_of_a_peak_on_a_background_of_zeros_is_that_of_the_peak():
    # 63 pixels of logit 0 and one of ln 37 at (6, 1): mass 37 % there, the centre (3.5, 3.5) draws by 64 %.
    logits = torch.zeros(1, 1, *MAP)
    logits[0, 0, 1, 6] = math.log(37)
    truth, visible = torch.tensor([[[25.5, 5.5]]]), torch.ones(1, 1, dtype=torch.bool)
    debiased, raw = (IntegralLoss(value, regulariser="none") for value in (True, False))
    assert debiased(logits, truth, visible, INPUT).item() == pytest.approx(0, abs=1e-6)
    assert raw(logits, truth, visible, INPUT).item() == pytest.approx(0.64 * (2.5 + 2.5) / 8, rel=1e-5)
    # beta scales the logits before anything else.
    assert IntegralLoss(True, 2.0, "none")(logits / 2, truth, visible, INPUT).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("regulariser", ["js", "kl"])
def test_the_divergence_by_hand(regulariser):
    logits, keypoints, visible = example(1, 1, dtype=torch.float64)
    p = (2 * logits[0, 0]).exp().flatten().tolist()
    x, y = ((keypoints[0, 0] + 0.5) / 4 - 0.5).tolist()
    # sigma 16 on a map 8 wide is 2 px.
    q = [math.exp(-((u - x) ** 2 + (v - y) ** 2) / 8) for v in range(8) for u in range(8)]
    p, q = ([value / sum(mass) for value in mass] for mass in (p, q))
    expected = kl(p, q)
    if regulariser == "js":
        mean = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        expected = (kl(p, mean) + kl(q, mean)) / 2
    plain = IntegralLoss(True, 2.0, "none", sigma=16)(logits, keypoints, visible, INPUT)
    for weight in (1.0, 0.25):
        found = IntegralLoss(True, 2.0, regulariser, weight, sigma=16)(logits, keypoints, visible, INPUT) - plain
        assert found.item() == pytest.approx(weight * expected, rel=1e-6)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_a_prediction_far_from_the_gaussian_has_a_finite_divergence_of_at_most_the_logarithm_of_two():
    logits = logits_at(((0, 0), 1.0), size=(64, 64)).requires_grad_()
    truth, visible = torch.tensor([[[250.0, 250.0]]]), torch.ones(1, 1, dtype=torch.bool)
    error = IntegralLoss(regulariser="none")(logits, truth, visible, (256, 256))
    loss = IntegralLoss()(logits, truth, visible, (256, 256))
    loss.backward()
    assert (loss - error).item() == pytest.approx(math.log(2), rel=1e-4)
    assert torch.isfinite(logits.grad).all()


def test_a_map_of_equal_logits_has_an_error_and_a_finite_gradient():
    # As a network starts: all is background, nothing to take out, the point is the centre.
    logits = torch.zeros(1, 1, *MAP, requires_grad=True)
    truth, visible = torch.tensor([[[25.5, 5.5]]]), torch.ones(1, 1, dtype=torch.bool)
    loss = IntegralLoss(regulariser="none")(logits, truth, visible, INPUT)
    loss.backward()
    assert loss.item() == pytest.approx(5 / 8)
    assert torch.isfinite(logits.grad).all()
    # A step against the gradient moves mass from the centre towards the keypoint (6, 1), most to that corner, (7, 0).
    assert logits.grad.argmin() == 7 and logits.grad[0, 0, 1, 6] < 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"regulariser": "JS"},
        *({"weight": value} for value in (-0.1, math.nan, math.inf)),
    ],
)
def test_senseless_arguments_of_the_integral_loss_are_refused(arguments):
    with pytest.raises(UserError, match=rf"loss\.{next(iter(arguments))}: found .* expected"):
        IntegralLoss(**arguments)

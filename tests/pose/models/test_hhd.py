"""Heterogeneous heatmap distillation against a loop over keypoints, by hand, and against what it is for."""

import itertools
import math

import pytest
import torch

from benchmarks import hhd as benchmark
from benchmarks.hhd import by_definition
from fedgh_app.errors import UserError
from fedgh_app.pose.models.decoding import Integral
from fedgh_app.pose.models.heatmaps import render_gaussian
from fedgh_app.pose.models.hhd import HHD, Guide, crop, student_centre

BIASED, DEBIASED = Integral(debiased=False), Integral(debiased=True)
SIZES = [(8, 8), (7, 5), (5, 8), (1, 6)]
SWITCHES = list(itertools.product((True, False), repeat=3))


def maps(size, *, batch=3, joints=2, seed=0, scale=2.0):
    """Logits z and a teacher's map, double, and who is visible; some peaks on the map's border and corners."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(batch, joints, *size, generator=generator, dtype=torch.float64)
    # From next to no background to nothing else: the centre's shift goes from 0 to off the map.
    z += torch.linspace(-3, 1, batch, dtype=torch.float64)[:, None, None, None]
    teacher = torch.randn(batch, joints, *size, generator=generator, dtype=torch.float64)
    teacher[0, 0, 0, 0] = teacher[0, 1, -1, size[1] // 2] = teacher[1, 0, size[0] // 2, -1] = 5
    visible = torch.rand(batch, joints, generator=generator) < 0.8
    return z.requires_grad_(), teacher, visible


def grad(z, value):
    return torch.autograd.grad(value, z)[0]


def row(*values):
    """A map of one row, (1, 1, 1, w)."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("normalise, unbiased_crop, mirror", SWITCHES)
def test_it_is_what_the_definition_says_keypoint_by_keypoint(size, normalise, unbiased_crop, mirror):
    choices = itertools.product(("l1", "l2"), (0.5, 0.8), (BIASED, Integral(False, 2.5), DEBIASED), (True, False))
    for seed, (loss, window, integral, logits) in enumerate(choices):
        z, teacher, visible = maps(size, seed=seed)
        hhd = HHD(0.7, loss, window, normalise, unbiased_crop, mirror)
        found = hhd(z, teacher, visible, integral=integral, logits=logits)
        expected = by_definition(hhd, z, teacher, visible, integral=integral, logits=logits)
        assert expected > 0
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(grad(z, found), grad(z, expected))


def test_the_windows_centres_cover_all_cases_of_the_test_above():
    # Otherwise that test would not say what it seems to: shifts of nothing, of a little, and off the map.
    shifts, last = [], torch.tensor([7.0, 7.0], dtype=torch.float64)
    for seed in range(24):
        z, teacher, _ = maps((8, 8), seed=seed)
        index = teacher.flatten(-2).argmax(-1)
        peak = torch.stack((index % 8, index // 8), -1).double()
        centre = student_centre(peak, z.detach(), z.detach().flatten(-2).softmax(-1).view_as(z))
        shifts += [("border" if ((c == 0) | (c == last)).any() else bool((c != p).any()))
                   for c, p in zip(centre.flatten(0, 1), peak.flatten(0, 1), strict=True)]  # fmt: skip
    assert set(shifts) == {"border", True, False}


def test_a_debiased_student_by_hand():
    # Teacher [0, 3/4, 1/4, 0], peak 1. Two cells at 1/2 and 3/2: of the teacher 3/8 and 1/2, of the student 3/8 each.
    z, teacher = row(0, math.log(5), 0, 0), row(-1, 3, 1, 0)
    found = HHD()(z, teacher, torch.tensor([[True]]), integral=DEBIASED, logits=False)
    assert found.item() == pytest.approx(1 / 8)
    squared = HHD(loss="l2", weight=3.0)(z, teacher, torch.tensor([[True]]), integral=DEBIASED, logits=False)
    assert squared.item() == pytest.approx(3 / 64)


def test_a_biased_student_by_hand():
    # Its mass is [1, 5, 1, 1] / 8, so r = 4/8; for an expectation of 1 its peak would lie at (1 - 1.5/2) / (1/2) = 1/2:
    # cells at 0 and 1 hold 1/8 and 5/8, the teacher's 3/8 and 1/2.
    z, teacher = row(0, math.log(5), 0, 0), row(0, 3, 1, 0)
    found = HHD()(z, teacher, torch.tensor([[True]]), integral=BIASED, logits=False)
    assert found.item() == pytest.approx(2 / 8 + 1 / 8)


@pytest.mark.parametrize("mirror, expected", [(True, 2 / 8), (False, 1 / 8)])
def test_mirror_expansion_by_hand(mirror, expected):
    # Teacher [3/4, 1/4, 0, 0], peak 0; the student's centre (0 - 1.5/2) / (1/2) goes back to 0. The cell at -1/2 is
    # outside: it takes the value at 1/2, 1/2 for the teacher and 3/8 for the student, or is 0 on both sides.
    z, teacher = row(math.log(5), 0, 0, 0), row(3, 1, 0, 0)
    found = HHD(mirror=mirror)(z, teacher, torch.tensor([[True]]), integral=BIASED, logits=False)
    assert found.item() == pytest.approx(expected)


def test_the_window_in_a_corner_by_hand():
    one = torch.arange(16.0).view(1, 1, 4, 4)  # 4 y + x
    corner = torch.zeros(1, 1, 2)
    # Offsets of 1/2 around (0, 0): one cell inside, its opposite takes its value, of the other two both are outside.
    assert crop(one, corner, (2, 2))[0, 0].tolist() == [[2.5, 0], [0, 2.5]]
    assert crop(one, corner, (2, 2), mirror=False)[0, 0].tolist() == [[0, 0], [0, 2.5]]
    # An odd window reads whole pixels; the one at x = -1 takes that at x = 1 of the opposite row.
    left = torch.tensor([[[0.0, 1.0]]])
    assert crop(one, left, (3, 3))[0, 0].tolist() == [[9, 0, 1], [5, 4, 5], [1, 8, 9]]


def test_everything_off_is_the_mean_squared_error_of_the_maps():
    z, teacher, _ = maps((7, 5))
    plain = HHD(loss="l2", normalise=False, unbiased_crop=False)
    visible = torch.ones(3, 2, dtype=torch.bool)
    found = plain(z, teacher, visible, integral=DEBIASED, logits=False)
    torch.testing.assert_close(found, torch.nn.functional.mse_loss(z, teacher))


def test_from_the_expectation_of_a_peak_on_a_background_it_finds_the_peak():
    # One pixel p on background of logit 0: its biased expectation is r c + (1 - r) p exactly.
    for place, height in itertools.product([(0, 0), (3, 5), (8, 2)], [2.0, 5.0, 9.0]):
        z = torch.zeros(1, 1, 7, 9, dtype=torch.float64)
        z[0, 0, place[1], place[0]] = height
        biased = BIASED.coordinates(z)
        centre = student_centre(biased, z, z.flatten(-2).softmax(-1).view_as(z))
        background = 63 / (62 + math.exp(height))
        expected = torch.tensor([[place]], dtype=torch.float64) if background < 0.95 else biased
        torch.testing.assert_close(centre, expected)


def test_gradients_agree_with_finite_differences():
    z, teacher, visible = maps((5, 4), batch=2)
    visible[0] = True
    for hhd in (HHD(loss="l1"), HHD(loss="l2"), HHD(loss="l2", normalise=False)):
        # The centre is detached: a debiased student's does not depend on z.
        assert torch.autograd.gradcheck(lambda z, h=hhd: h(z, teacher, visible, integral=DEBIASED, logits=False), z)


def test_only_visible_keypoints_count_and_only_the_student_learns():
    z, teacher, visible = maps((8, 8), batch=4)
    visible[:] = torch.tensor([True, False])
    teacher.requires_grad_()
    value = HHD()(z, teacher, visible, integral=BIASED, logits=False)
    value.backward()
    assert teacher.grad is None
    assert (z.grad[:, 1] == 0).all() and (z.grad[:, 0] != 0).any()
    alone = HHD()(z[:, :1], teacher[:, :1], visible[:, :1], integral=BIASED, logits=False)
    torch.testing.assert_close(value, alone)


def test_without_a_visible_keypoint_it_is_zero_with_zero_gradients():
    z, teacher, visible = maps((8, 8))
    value = HHD()(z, teacher, visible & False, integral=BIASED, logits=False)
    assert value == 0 and (grad(z, value) == 0).all()


def test_a_teacher_that_says_nothing_of_a_keypoint_teaches_nothing_of_it():
    z, teacher, _ = maps((8, 8))
    visible = torch.ones(3, 2, dtype=torch.bool)
    teacher[1, 1] = -teacher[1, 1].abs()
    expected = HHD()(z, teacher, visible & (torch.arange(6).view(3, 2) != 3), integral=BIASED, logits=False)
    torch.testing.assert_close(HHD()(z, teacher, visible, integral=BIASED, logits=False), expected)


def test_a_logit_teacher_and_a_height_teacher_of_one_distribution_say_the_same():
    z, teacher, visible = maps((8, 8))
    heights = HHD()(z, 7 * teacher.exp(), visible, integral=BIASED, logits=False)
    torch.testing.assert_close(HHD()(z, teacher - 3, visible, integral=BIASED, logits=True), heights)


@pytest.mark.parametrize("size", [(32, 32), (24, 16)])
def test_a_teacher_of_another_size_points_to_the_same_place(size):
    keypoint, visible, image = torch.tensor([[[38.0, 22.0]]]), torch.tensor([[True]]), (64, 64)
    z = render_gaussian(keypoint, visible, image, (16, 16), sigma=4).clamp(min=1e-12).log()

    def value(x):
        teacher = render_gaussian(torch.tensor([[[x, 22.0]]]), visible, image, size, sigma=4)
        return HHD()(z, teacher, visible, integral=DEBIASED, logits=False).item()

    assert value(38.0) < 0.35 < value(34.0) and value(38.0) < value(42.0)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_from_the_maps_alone_a_student_learns_to_put_its_mass_where_the_teachers_is(loss):
    keypoints, visible = torch.tensor([[[18.0, 40.0], [63.0, 1.0]]]), torch.ones(1, 2, dtype=torch.bool)
    teacher = render_gaussian(keypoints, visible, (64, 64), (16, 16), sigma=4)
    z = (0.1 * torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        HHD(loss=loss)(z, teacher, visible, integral=DEBIASED, logits=False).backward()
        optimizer.step()
    # Its softmax, that is: where the logits' level is nothing says, which a debiased decoding needs to know.
    found, _ = BIASED(z.detach(), (64, 64))
    assert (found - keypoints)[0, 0].norm() < 1.5
    assert (found - keypoints)[0, 1].norm() < 6  # on the border


@pytest.mark.parametrize("size, resized", [((32, 32), False), ((16, 16), True), ((64, 64), True)])
def test_a_guide_shows_the_teacher_the_same_images_in_the_size_that_it_knows(size, resized):
    seen = []

    class Teacher(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, images):
            seen.append((images, self.norm.training))
            return self.norm(images[..., ::4, ::4])[:, :2]

    images, maps = torch.rand(2, 3, 32, 32), torch.randn(2, 2, 8, 8, requires_grad=True)
    visible, teacher, distillation = torch.ones(2, 2, dtype=torch.bool), Teacher(), HHD(weight=2.0)
    value = Guide(teacher, distillation, BIASED, logits=True, input_size=size)(images, maps, visible)
    (shown, training), *_ = seen
    assert not training and shown.shape[-2:] == size and teacher.norm.running_mean.eq(0).all()
    assert resized or shown is images
    expected = distillation(maps, teacher.eval()(shown), visible, integral=BIASED, logits=True)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert (maps.grad != 0).any() and teacher.norm.weight.grad is None


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"weight": -1.0}, "teacher.weight=-1.0: expected a number of at least 0"),
        ({"loss": "huber"}, "teacher.loss=huber: expected l1 or l2"),
        ({"window": 0.0}, "teacher.window=0.0: expected a share of the map's size above 0, at most 1"),
        ({"window": 1.5}, "teacher.window=1.5: expected a share of the map's size above 0, at most 1"),
    ],
)
def test_bad_options_are_told_in_one_line(wrong, told):
    with pytest.raises(UserError) as error:
        HHD(**wrong)
    assert str(error.value) == told


def test_the_benchmark_measures_what_it_shows():
    found = benchmark.measure("cpu", debiased=False, repeats=1, batch=2, keypoints=3, size=8)
    assert found.loop_seconds > 0 and found.batched_seconds > 0
    assert benchmark.table([found]).row_count == 1

"""Heterogeneous heatmap distillation, forward and backward: one batched operation next to a loop over keypoints.

    python -m benchmarks.hhd [--repeats N] [--json FILE]

Batch 32, 16 keypoints, maps of 64 x 64, and HHD as `teacher=hhd` has it, on two threads and on a GPU where there is
one. The loop, `by_definition`, takes one keypoint of one sample after the other and writes out what HHD says of it; the
tests hold `fedgh_app.pose.models.hhd` to it. Repeats are interleaved, so that a busy machine slows both alike; the
ratio is the median over the repeats of the loop's seconds to the batched operation's in the same repeat.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import output
from benchmarks.memory import peak_bytes
from fedgh_app.pose.models.decoding import Integral
from fedgh_app.pose.models.hhd import HHD

THREADS = 2
BATCHED_CALLS = 5  # for one of the loop's: a short time is measured as the mean of several
WANTED = {"cpu": 20, "cuda": 50}  # times as fast as the loop


@dataclass(frozen=True)
class Measurement:
    """Seconds of forward and backward, medians over repeats; memory beyond the maps and the gradient, at its peak."""

    device: str
    debiased: bool
    loop_seconds: float
    batched_seconds: float
    ratio: float
    loop_bytes: int | None
    batched_bytes: int | None


def by_definition(
    loss: HHD, z: Tensor, teacher: Tensor, visible: Tensor, *, integral: Integral, logits: bool
) -> Tensor:
    """What `HHD` computes, for maps of one size."""
    height, width = z.shape[-2:]
    total, count = z.sum() * 0, 0
    # Taken apart once: the gradient of z[sample, keypoint] would be a tensor as large as z for every keypoint.
    students = [sample.unbind() for sample in z.unbind()]
    for sample in range(z.shape[0]):
        for keypoint in range(z.shape[1]):
            student, explicit = students[sample][keypoint], teacher[sample, keypoint]
            if not visible[sample, keypoint]:
                continue
            place = int(explicit.argmax())
            peak = centre = torch.tensor([place % width, place // width], dtype=z.dtype, device=z.device)
            logits_of_student = integral.beta * student
            background = float(height * width / logits_of_student.detach().exp().sum())
            if not integral.debiased and background < 0.95:
                middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=z.dtype, device=z.device)
                centre = (peak - background * middle) / (1 - background)
                centre = torch.stack((centre[0].clamp(0, width - 1), centre[1].clamp(0, height - 1)))
            if loss.normalise:
                explicit = explicit.exp() if logits else explicit.clamp(min=0)
                if explicit.sum() == 0:
                    continue
                explicit = explicit / explicit.sum()
                student = logits_of_student.exp() / logits_of_student.exp().sum()
            if loss.unbiased_crop:
                explicit = window_by_definition(explicit, peak, loss)
                student = window_by_definition(student, centre, loss)
            difference = student - explicit
            cells = difference.abs() if loss.loss == "l1" else difference**2
            total = total + (cells.sum() if loss.normalise else cells.mean())
            count += 1
    return loss.weight * total / max(count, 1)


def window_by_definition(one: Tensor, centre: Tensor, loss: HHD) -> Tensor:
    """The window of a map (h, w) around a point (2,)."""
    height, width = one.shape
    rows, columns = max(1, round(loss.window * height)), max(1, round(loss.window * width))
    down = torch.arange(rows, dtype=one.dtype, device=one.device) - (rows - 1) / 2
    right = torch.arange(columns, dtype=one.dtype, device=one.device) - (columns - 1) / 2
    y, x = torch.meshgrid(down, right, indexing="ij")
    value, inside = reading(one, centre[0] + x, centre[1] + y)
    if not loss.mirror:
        return value
    opposite, _ = reading(one, centre[0] - x, centre[1] - y)
    return torch.where(inside, value, opposite)


def reading(one: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What a map (h, w) holds at points between its pixels, bilinearly, 0 outside; and which points are inside."""
    height, width = one.shape
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    left, top = x.floor(), y.floor()
    right_share, low_share = x - left, y - top

    def pixel(column: Tensor, row: Tensor) -> Tensor:
        return one[row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]

    above = (1 - right_share) * pixel(left, top) + right_share * pixel(left + 1, top)
    below = (1 - right_share) * pixel(left, top + 1) + right_share * pixel(left + 1, top + 1)
    return torch.where(inside, (1 - low_share) * above + low_share * below, 0), inside


def measure(
    device: str,
    *,
    debiased: bool,
    repeats: int = 5,
    batch: int = 32,
    keypoints: int = 16,
    size: int = 64,
) -> Measurement:
    """Both ways on random maps; raises AssertionError where they differ."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, keypoints, size, size)
    z = torch.randn(shape, generator=generator).to(device).requires_grad_()
    teacher = torch.randn(shape, generator=generator).to(device)
    visible = torch.ones(batch, keypoints, dtype=torch.bool, device=device)
    distillation, integral = HHD(), Integral(debiased=debiased)

    def batched() -> Tensor:
        return _with_gradient(z, distillation(z, teacher, visible, integral=integral, logits=False))

    def loop() -> Tensor:
        return _with_gradient(z, by_definition(distillation, z, teacher, visible, integral=integral, logits=False))

    torch.testing.assert_close(batched(), loop())  # and both are warm
    pairs = [(_seconds(loop, 1, device), _seconds(batched, BATCHED_CALLS, device)) for _ in range(repeats)]
    return Measurement(
        device,
        debiased,
        loop_seconds=statistics.median(pair[0] for pair in pairs),
        batched_seconds=statistics.median(pair[1] for pair in pairs),
        ratio=statistics.median(slow / fast for slow, fast in pairs),
        loop_bytes=_peak(loop, device),
        batched_bytes=_peak(batched, device),
    )


def _with_gradient(z: Tensor, value: Tensor) -> Tensor:
    torch.autograd.grad(value, z)
    return value.detach()


def _seconds(call: Callable[[], object], calls: int, device: str) -> float:
    """Mean seconds of a call."""
    _finish(device)
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    _finish(device)
    return (time.perf_counter() - begin) / calls


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak(call: Callable[[], object], device: str) -> int | None:
    if device == "cpu":
        return peak_bytes(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def table(found: list[Measurement]) -> Table:
    """The measurements for the eye."""
    named = ("device", "student")
    headings = (*named, "loop, s", "batched, s", "times faster", "loop, MiB", "batched, MiB")
    view = output.empty_table(f"HHD, forward and backward, {THREADS} threads on the CPU", headings, left=named)
    for m in found:
        memory = ("-" if value is None else f"{value / 2**20:.0f}" for value in (m.loop_bytes, m.batched_bytes))
        student = "debiased" if m.debiased else "biased"
        view.add_row(m.device, student, f"{m.loop_seconds:.3f}", f"{m.batched_seconds:.4f}", f"{m.ratio:.1f}", *memory)
    short = [m for m in found if m.ratio < WANTED[m.device]]
    view.caption = "; ".join(f"wanted on {device}: {times} times" for device, times in WANTED.items())
    if short:
        view.caption += "; MISSED on " + ", ".join(sorted({m.device for m in short}))
    if not torch.cuda.is_available():
        view.caption += "; not measured on a GPU: none here"
    return view


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = output.parser("hhd", __doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found = [measure(device, debiased=way, repeats=options.repeats) for device in devices for way in (True, False)]
    output.show(options.json, found, table(found), width=120)


if __name__ == "__main__":
    main()

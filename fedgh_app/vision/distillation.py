"""Knowledge distillation on the server: the clients' models teach the aggregated one on images without labels.

Zhuang et al., "Performance Optimization for Federated Person Re-identification via Benchmark Analysis", ACM MM 2020:
the mean of the clients' outputs on a shared set is a soft target, to which the global model is fine-tuned by mean
squared error, with a hundredth of the clients' learning rate.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from fedgh_app.errors import UserError
from fedgh_app.vision.training import Batch, evaluation_mode, features_of, outputs_of, place

# What is distilled. outputs: as the network puts them out. Where a softmax follows these are logits: their mean is the
# normalised product of the clients' distributions, high where all of them agree. A mean of distributions would have a
# peak for each client that errs.
# features: the backbone's, averaged over pixels and of length 1, (C,): clients of one backbone agree on no more.
Output = Literal["outputs", "features"]


def soft_targets(
    model: nn.Module,
    states: Iterable[Mapping[str, Tensor]],
    batches: Iterable[Batch],
    *,
    output: Output = "outputs",
    device: torch.device | str = "cpu",
    batch_statistics: bool = False,
) -> Tensor:
    """What the clients agree on: the mean over ``states`` of their outputs on every example.

    Args:
        model: takes the states one after the other, and is afterwards what it was before.
        states: of the clients' models. One that lacks some of the model's keys, because they stay on its client, is
            completed by the model's own values.
        batches: N examples in the same order each time they are walked through, once for each state; without labels.
        output: what is distilled.
        batch_statistics: see `evaluation_mode`.

    Returns:
        (N, …) or (N, C) float32, on the CPU. Means of features of length 1 are shorter where clients disagree.
    """
    device = torch.device(device)
    place(model, device)
    own = {key: value.clone() for key, value in model.state_dict().items()}
    total: Tensor | None = None
    count = 0
    try:
        for state in states:
            model.load_state_dict({**own, **state})
            with torch.inference_mode(), evaluation_mode(model, batch_statistics=batch_statistics):
                parts = [_output(model, batch.images, output, device).cpu() for batch in batches]
            found = sum(map(len, parts))
            if total is None and not found:
                raise UserError("distillation: found 0 examples, expected at least 1")
            if total is not None and found != len(total):
                raise ValueError(f"found {len(total)} examples, then {found}, expected the same batches each time")
            # Outside of inference mode: what is made here can be compared with something that has a gradient.
            outputs = torch.cat(parts)
            total = outputs if total is None else total.add_(outputs)
            count += 1
    finally:
        model.load_state_dict(own)
    if total is None:
        raise ValueError("found 0 states, expected at least 1: a soft target is a mean over clients")
    return total.div_(count)


def distil(
    model: nn.Module,
    targets: Tensor,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    output: Output = "outputs",
    device: torch.device | str = "cpu",
    batch_statistics: bool = False,
) -> float:
    """Fine-tune ``model`` in place toward ``targets`` in one pass; the mean over examples of the squared error.

    ``targets`` are as `soft_targets` gave them for the same ``batches`` and ``output``: the i-th belongs to the i-th
    example. The ``optimizer`` is already built over the parameters of ``model``; see `evaluation_mode` for the rest.
    """
    device = torch.device(device)
    place(model, device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    seen = 0
    # Running statistics stay what the clients' images made them: those of a public set would take their place in every
    # BatchNorm layer, at any learning rate. And so the student is trained as the teachers answered and as it is used.
    with evaluation_mode(model, batch_statistics=batch_statistics):
        for batch in batches:
            target = targets[seen : seen + len(batch.images)].to(device, non_blocking=True)
            seen += len(batch.images)
            if seen > len(targets):
                raise ValueError(f"found {len(targets)} targets, expected one for each example, {seen} or more")
            # The student's features have length 1 here too, which they have not in the authors' code: most of the error
            # would be their length, and a backbone that shrank them would no longer fit its head.
            value = mse_loss(_output(model, batch.images, output, device), target)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            total += value.detach() * len(target)
    if seen < len(targets) or not seen:
        raise ValueError(f"found {seen} examples, expected one for each of {len(targets)} targets")
    return total.item() / seen


def _output(model: nn.Module, images: Tensor, output: Output, device: torch.device) -> Tensor:
    """What is distilled of images (B, 3, H, W), float32, in whichever mode the model is."""
    if output == "outputs":
        return outputs_of(model, images, device)
    if output == "features":
        return normalize(features_of(model, images, device), dim=1)
    raise UserError(f"distillation.output: found {output!r}, expected outputs or features")

"""The updates of one round's clients, seen tensor by tensor on the bytes of their messages."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from torch import Tensor

from strategies import npy
from strategies.gramian import squares

RUNNING_STATISTICS = ("running_mean", "running_var")

# A block of K differences should stay in the L2 cache between its subtraction and its product.
_BLOCK_BYTES = 1 << 19
_MIN_BLOCK_WIDTH = 256

# Products of float32 numbers are right to some 1e-7, and a squared norm of which only this share is left to 1e-4.
_CANCELLED = 1e-3
# Below this share of what its terms could add up to, a length is the rounding of float32 updates.
_ROUNDING = 4 * torch.finfo(torch.float32).eps


class ClientUpdates:
    """K updates ``Δ_k = w_k - w`` against the model w that was sent, in the order of the clients' names.

    No update is ever held as a whole: the Gramian and the combination each take one pass over views of the
    replies, in blocks that fit the cache. Differences are formed before anything is summed, so that an
    update's precision is relative to its own size and not to that of the weights; float16 computes in
    float32, and blocks of the Gramian are summed in float64.

    An asynchronous server may hold two updates of one client: its name then stands twice, in the order in
    which the replies were given.

    Parameters
    ----------
    sent : the state dict that the clients started from.
    replies : Flower messages with one ArrayRecord and one MetricRecord each. Never modified.
    client_names : name of each node id; a node that is not listed goes by its id.
    weighted_by_key : metric that counts a client's training examples.

    Attributes
    ----------
    names : the client of each update.
    labels : the same, made unique: the second update of client ``lab`` is ``lab#2``.
    """

    def __init__(
        self,
        sent: Mapping[str, Array],
        replies: Sequence[Message],
        *,
        client_names: Mapping[int, str] | None = None,
        weighted_by_key: str = "num-examples",
    ) -> None:
        if not replies:
            raise ValueError("no replies to aggregate")
        client_names = client_names or {}
        self.sent = dict(sent)
        self.replies: tuple[Message, ...] = tuple(by_name(replies, client_names))
        self.names = tuple(client_name(reply, client_names) for reply in self.replies)
        self.labels = labels(self.names)
        self.arrays = tuple(map(only_arrays, self.names, self.replies))
        self.metrics = tuple(map(only_metrics, self.names, self.replies))
        self.examples = _examples(self.names, self.metrics, weighted_by_key)
        self._headers = {tensor: npy.header(array) for tensor, array in self.sent.items()}
        for name, arrays in zip(self.names, self.arrays, strict=True):
            self._check(name, arrays)
        self._buffers: dict[np.dtype[Any], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shares(self) -> Tensor:
        """Shares of the examples p, (K,) float64, summing to 1."""
        return self.examples / self.examples.sum()

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the T tensors that G, cosines and norms run over; see :func:`parameters_of`."""
        return parameters_of(self.sent)

    @cached_property
    def sizes(self) -> Tensor:
        """Elements of each parameter tensor, (T,) float64."""
        counts = [math.prod(self._headers[tensor].shape) for tensor in self.parameters]
        return torch.tensor(counts, dtype=torch.float64)

    @cached_property
    def products(self) -> Tensor:
        """Gramian of each parameter tensor, (T, K, K) float64, as it is: not finite where an update overflows."""
        size = len(self)
        products = torch.zeros(len(self.parameters), size, size, dtype=torch.float64)
        for gramian, tensor in zip(products, self.parameters, strict=True):
            for _, block in self._blocks(tensor):
                gramian += block @ block.T
        return products

    @property
    def comparable(self) -> bool:
        """Whether every update has a length that its precision can hold."""
        return bool(self.products.isfinite().all())

    @cached_property
    def gramians(self) -> Tensor:
        """Gramian of each parameter tensor, (T, K, K) float64; ``ValueError`` naming the client that overflows one."""
        for tensor, gramian in zip(self.parameters, self.products, strict=True):
            if not gramian.isfinite().all():
                raise ValueError(self._too_large(tensor, gramian))
        return self.products

    @cached_property
    def gramian(self) -> Tensor:
        """Gramian of the whole model, (K, K) float64: the sum of the tensors' Gramians."""
        return self.gramians.sum(0)

    def norms(self, combination: Tensor) -> Tensor:
        """Return |Σ c_k Δ_k|, of the whole model, (), for c (K,), or of each parameter tensor, (T,), for c (T, K).

        From the Gramian. Its products are those of float32 numbers, so where little is left of the terms the updates
        themselves are measured, in one more pass; what is left of rounding alone counts as 0.
        """
        of_model = combination.ndim == 1
        both = squares(combination.unsqueeze(-2), self.gramian if of_model else self.gramians)
        squared, magnitude = (each.squeeze(-1) for each in both)
        doubtful = squared < _CANCELLED * magnitude
        if of_model and doubtful:
            squared = torch.stack([self._squared(tensor, combination) for tensor in self.parameters]).sum()
        elif not of_model:
            for place in doubtful.nonzero().flatten().tolist():
                squared[place] = self._squared(self.parameters[place], combination[place])
        return squared.where(squared > _ROUNDING**2 * magnitude, 0.0).sqrt()

    def rescaled(self, combination: Tensor, weights: Tensor) -> Tensor:
        """Return a combination, (K,) or (T, K), scaled to the length of ``Σ ψ_k Δ_k``; a zero update stays as it is.

        With a row for each tensor, each tensor is brought to its own length, since each was combined on its own.
        """
        before, after = self.norms(weights.expand_as(combination)), self.norms(combination)
        return combination * (before / after).where(after > 0, 1.0).unsqueeze(-1)

    def combine(
        self,
        combination: Tensor,
        *,
        convex: Tensor,
        learning_rate: float = 1.0,
        shift: Mapping[str, Tensor] | None = None,
    ) -> ArrayRecord:
        """Return the next model.

        Parameters ``w + η (Σ c_k Δ_k + shift)``; running statistics ``Σ ψ_k s_k``, without η, since a variance must
        stay positive; integer buffers their maximum. Keys, shapes and dtypes are those of the model that was sent.

        Parameters
        ----------
        combination : c, (K,) for all tensors or (T, K) for one row each.
        convex : ψ, (K,), not negative and summing to 1.
        learning_rate : η.
        shift : what else each parameter tensor moves by, in its shape.
        """
        expected = (len(self.parameters), len(self))
        if tuple(combination.shape) not in (expected, expected[1:]):
            raise ValueError(f"combination has shape {expected[1:]} or {expected}, got {tuple(combination.shape)}")
        rows = (learning_rate * combination).expand(expected)
        coefficients = dict(zip(self.parameters, rows, strict=True))

        def step(tensor: str, piece: slice, block: Tensor) -> np.ndarray:
            combined = coefficients[tensor].to(block.dtype) @ block
            if shift is not None:
                combined += learning_rate * shift[tensor].flatten()[piece]
            return combined.numpy()

        def average(values: np.ndarray) -> np.ndarray:
            total = np.zeros(values.shape[1])
            for weight, row in zip(convex.tolist(), values, strict=True):
                total += weight * row
            return total

        return self._next_model(step, average)

    def reduce(self, rule: Callable[[np.ndarray], np.ndarray], *, learning_rate: float = 1.0) -> ArrayRecord:
        """Return the next model by a rule that looks at each coordinate on its own, such as the median.

        Parameters ``w + η rule(Δ)``, running statistics ``rule(s)``, the rest as in :meth:`combine`.

        Parameters
        ----------
        rule : from one column per coordinate, (K, n), to one number each, (n,). It moves with its values,
            ``rule(x + a) = rule(x) + a``, so that parameters may be given as updates.
        learning_rate : η.
        """

        def step(tensor: str, piece: slice, block: Tensor) -> np.ndarray:
            return learning_rate * rule(block.numpy())

        return self._next_model(step, rule)

    def weighted_sum(self, combination: Tensor) -> dict[str, Tensor]:
        """Return ``Σ c_k Δ_k`` of each parameter tensor, in its shape, as float32 or wider. c is (K,)."""
        sums = {}
        for tensor in self.parameters:
            head = self._headers[tensor]
            total = torch.from_numpy(np.empty(math.prod(head.shape), npy.wide(head.dtype)))
            for piece, block in self._blocks(tensor):
                total[piece] = combination.to(block.dtype) @ block
            sums[tensor] = total.reshape(head.shape)
        return sums

    def _squared(self, tensor: str, combination: Tensor) -> Tensor:
        """Return |Σ c_k Δ_k|² of one tensor, with Σ c_k Δ_k as `combine` makes it, summed in float64."""
        total = torch.zeros((), dtype=torch.float64)
        for _, block in self._blocks(tensor):
            total += (combination.to(block.dtype) @ block).double().square().sum()
        return total

    def _too_large(self, tensor: str, gramian: Tensor) -> str:
        worst = int(gramian.diagonal().nan_to_num(torch.inf, torch.inf).argmax())
        return (
            f"client {self.names[worst]!r}, tensor {tensor!r}: the update overflowed or is not a number, "
            "expected one whose squared length is a finite float32"
        )

    def _next_model(
        self, step: Callable[[str, slice, Tensor], np.ndarray], statistic: Callable[[np.ndarray], np.ndarray]
    ) -> ArrayRecord:
        result, parameters = ArrayRecord(), set(self.parameters)
        for tensor, head in self._headers.items():
            if tensor in parameters:
                fill = partial(self._step, tensor, step)
            elif head.dtype.kind == "f":
                fill = partial(self._statistic, tensor, statistic)
            else:
                fill = partial(self._maximum, tensor)
            result[tensor] = npy.filled(head.dtype, head.shape, fill)
        return result

    def _step(self, tensor: str, step: Callable[[str, slice, Tensor], np.ndarray], out: np.ndarray) -> None:
        start = npy.flat(self.sent[tensor])
        for piece, block in self._blocks(tensor):
            moved = step(tensor, piece, block)
            np.add(start[piece], moved, out=out[piece], dtype=moved.dtype, casting="same_kind")

    def _statistic(self, tensor: str, statistic: Callable[[np.ndarray], np.ndarray], out: np.ndarray) -> None:
        out[:] = statistic(np.stack([npy.flat(arrays[tensor]).astype(np.float64) for arrays in self.arrays]))

    def _maximum(self, tensor: str, out: np.ndarray) -> None:
        out[:] = npy.flat(self.arrays[0][tensor])
        for arrays in self.arrays[1:]:
            np.maximum(out, npy.flat(arrays[tensor]), out=out)

    def _blocks(self, tensor: str) -> Iterator[tuple[slice, Tensor]]:
        """Yield (where, Δ (K, width)) along a flattened tensor. The block is overwritten by the next one."""
        start = npy.flat(self.sent[tensor])
        rows = [npy.flat(arrays[tensor]) for arrays in self.arrays]
        dtype = npy.wide(start.dtype)
        buffer = self._buffer(dtype)
        width = len(buffer) // len(rows)
        for begin in range(0, len(start), width):
            piece = slice(begin, min(begin + width, len(start)))
            block = buffer[: len(rows) * (piece.stop - begin)].reshape(len(rows), -1)
            origin = start[piece]
            for row, difference in zip(rows, block, strict=True):
                np.subtract(row[piece], origin, out=difference, dtype=dtype)
            yield piece, torch.from_numpy(block)

    def _buffer(self, dtype: np.dtype[Any]) -> np.ndarray:
        if dtype not in self._buffers:
            width = max(_BLOCK_BYTES // (dtype.itemsize * len(self)), _MIN_BLOCK_WIDTH)
            self._buffers[dtype] = np.empty(len(self) * width, dtype)
        return self._buffers[dtype]

    def _check(self, name: str, arrays: ArrayRecord) -> None:
        missing, unknown = self.sent.keys() - arrays.keys(), arrays.keys() - self.sent.keys()
        if missing or unknown:
            raise ValueError(f"client {name!r}: tensors missing {sorted(missing)[:3]}, unknown {sorted(unknown)[:3]}")
        for tensor, head in self._headers.items():
            try:
                found = npy.header(arrays[tensor])
            except ValueError as error:
                raise ValueError(f"client {name!r}, tensor {tensor!r}: {error}") from error
            if (found.shape, found.dtype) != (head.shape, head.dtype):
                raise ValueError(
                    f"client {name!r}, tensor {tensor!r}: {found.dtype} {found.shape}, "
                    f"expected {head.dtype} {head.shape}"
                )


def parameters_of(arrays: Mapping[str, Array]) -> tuple[str, ...]:
    """Return the names of a model's parameters: floating tensors that are no running statistics."""
    return tuple(
        tensor
        for tensor, array in arrays.items()
        if npy.header(array).dtype.kind == "f" and not tensor.endswith(RUNNING_STATISTICS)
    )


def client_name(reply: Message, client_names: Mapping[int, str]) -> str:
    """Return the name of the client that sent a reply; that of an unnamed node is its id."""
    node_id = reply.metadata.src_node_id
    return client_names.get(node_id, str(node_id))


def by_name(replies: Sequence[Message], client_names: Mapping[int, str]) -> list[Message]:
    """Return the replies in the order of their clients' names, those of one client in the order given.

    No arithmetic then depends on which client was fast.
    """
    return sorted(replies, key=lambda reply: client_name(reply, client_names))


def labels(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names made unique: the second ``lab`` is ``lab#2``."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(unique)


def only_arrays(name: str, reply: Message) -> ArrayRecord:
    """Return the one ArrayRecord of a reply; ``ValueError`` if there is none or more than one."""
    records = list(reply.content.array_records.values())
    if len(records) != 1:
        raise ValueError(f"client {name!r}: {len(records)} ArrayRecords in the reply, expected 1")
    return records[0]


def only_metrics(name: str, reply: Message) -> MetricRecord:
    """Return the one MetricRecord of a reply; ``ValueError`` if there is none or more than one."""
    records = list(reply.content.metric_records.values())
    if len(records) != 1:
        raise ValueError(f"client {name!r}: {len(records)} MetricRecords in the reply, expected 1")
    return records[0]


def _examples(names: Sequence[str], metrics: Sequence[MetricRecord], key: str) -> Tensor:
    counts = [number(name, record, key) for name, record in zip(names, metrics, strict=True)]
    if sum(counts) <= 0:
        raise ValueError(f"metric {key!r} is 0 for every client: nothing to weight by")
    return torch.tensor(counts, dtype=torch.float64)


def number(name: str, metrics: MetricRecord, key: str, *, tolerance: float = 0.0) -> float:
    """Return a client's metric that has to be one finite number, negative by at most a rounding error."""
    value = metrics.get(key)
    if not isinstance(value, int | float) or not math.isfinite(value) or value < -tolerance:
        raise ValueError(f"client {name!r}: metric {key!r} is {value!r}, expected one number >= 0")
    return max(float(value), 0.0)

"""The Gaussian mechanism: a client's update clipped to a length, and noise that hides what is left of it."""

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch

from strategies.updates import ClientUpdates
from strategies.weights import Weights

Normal = Callable[[int], np.ndarray]

_BLOCK = 1 << 20  # numbers drawn at a time, 16 bytes of entropy each pair


def system_normal(count: int) -> np.ndarray:
    """Return ``count`` independent standard normal numbers, float64, made of the operating system's randomness.

    By Box and Muller (1958). Who could repeat the noise could take it off again: so it depends on no seed, and comes
    from no generator whose state could be guessed. PyTorch's on the CPU keeps 32 bits of its seed.
    """
    pairs = -(-count // 2)
    bits = np.frombuffer(os.urandom(16 * pairs), np.uint64) >> np.uint64(11)
    uniform = (bits + 0.5) * 2.0**-53  # above 0
    radius, angle = np.sqrt(-2 * np.log(uniform[:pairs])), 2 * np.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


class GaussianMechanism:
    """Clips updates to the length C, all tensors of the model together, and adds noise of the standard deviation z C to
    each coordinate (McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018).

    Parameters
    ----------
    clipping_norm : C, the Euclidean length that no update exceeds.
    noise_multiplier : z.
    normal : where noise comes from: a count to as many standard normal numbers.
    """

    def __init__(self, clipping_norm: float, noise_multiplier: float, normal: Normal = system_normal) -> None:
        for name, value in (("clipping_norm", clipping_norm), ("noise_multiplier", noise_multiplier)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} is a number > 0, got {value}")
        self.clipping_norm = clipping_norm
        self.noise_multiplier = noise_multiplier
        self.normal = normal

    def release(self, start: Sequence[np.ndarray], trained: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return what one client may show of its training: ``w + clip(w_k - w) + z C · normal``, in the dtypes of w_k.

        An update that is not finite counts as none, so that what is released never tells.
        """
        updates = [np.subtract(after, before, dtype=np.float64) for after, before in zip(trained, start, strict=True)]
        length = float(np.sqrt(sum(float(np.vdot(update, update)) for update in updates)))
        factor = min(1.0, self.clipping_norm / length) if 0 < length < float("inf") else 0.0
        deviation = self.noise_multiplier * self.clipping_norm
        released = []
        for before, after, update in zip(start, trained, updates, strict=True):
            shown = self._noise(before.size, deviation).reshape(before.shape)
            shown += before
            if factor:
                shown += factor * update
            released.append(shown.astype(after.dtype))
        return released

    def protect(self, updates: ClientUpdates, count: int) -> Weights:
        """Return the weights of a noisy mean: ``Σ_k clip(Δ_k) / n + (z C / n) · normal``.

        Parameters
        ----------
        updates : those that came.
        count : n, how many clients were asked. Who did not answer counts as an update of zeros: were the divisor the
            number of answers, it would depend on the clients' data.
        """
        lengths = updates.gramian.diagonal().clamp(min=0.0).sqrt()
        factors = (self.clipping_norm / lengths).clamp(max=1.0)
        deviation = self.noise_multiplier * self.clipping_norm / count
        shapes = [tuple(updates.sent[tensor].shape) for tensor in updates.parameters]
        shift = {
            tensor: torch.from_numpy(self._noise(int(size), deviation).astype(np.float32)).reshape(shape)
            for tensor, size, shape in zip(updates.parameters, updates.sizes.tolist(), shapes, strict=True)
        }
        convex = torch.full((len(updates),), 1 / len(updates), dtype=torch.float64)
        return Weights(convex=convex, combination=factors / count, shift=shift)

    def _noise(self, count: int, deviation: float) -> np.ndarray:
        noise = np.empty(count)
        for begin in range(0, count, _BLOCK):
            piece = noise[begin : begin + _BLOCK]
            np.multiply(self.normal(len(piece)), deviation, out=piece)
        return noise

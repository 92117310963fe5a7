"""An update moved to another model: what a stale client learned, on top of what the server has now."""

from collections.abc import Mapping
from copy import copy

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from strategies import npy
from strategies.updates import only_arrays, parameters_of


def rebase(reply: Message, start: Mapping[str, Array], base: Mapping[str, Array], scale: float = 1.0) -> Message:
    """Return the reply as if its client had started from another model, its update scaled.

    Parameters become ``base + scale · (w_k - start)``, computed in float32 or wider; running statistics and
    integer buffers stay as the client sent them. So any rule, also one of Flower's, takes updates of
    different ages and of clients that started from different models: all are updates of ``base``.

    Parameters
    ----------
    reply : what the client sent. Never modified; returned itself where nothing would change.
    start : the model w that the client started from.
    base : the model that the update is to be taken against.
    scale : such as FedBuff's (1 + s)^(-a) for an update that started s versions ago.

    Returns
    -------
    A message with the metadata and the metrics of the reply.

    Raises ``ValueError`` naming the node when the three models are not of the same tensors.
    """
    if start is base and scale == 1.0:
        return reply
    node = str(reply.metadata.src_node_id)
    trained = only_arrays(node, reply)
    if not trained.keys() == start.keys() == base.keys():
        differing = sorted((trained.keys() ^ start.keys()) | (trained.keys() ^ base.keys()))
        raise ValueError(f"node {node}: tensors {differing[:3]} are not in all of reply, start and base")
    moved = ArrayRecord(dict(trained))
    for tensor in parameters_of(trained):
        moved[tensor] = _moved(node, tensor, trained[tensor], start[tensor], base[tensor], scale)
    records = {key: moved if record is trained else record for key, record in reply.content.items()}
    message = copy(reply)
    message.content = RecordDict(records)
    return message


def _moved(node: str, tensor: str, trained: Array, start: Array, base: Array, scale: float) -> Array:
    head, *others = map(npy.header, (trained, start, base))
    if any((other.shape, other.dtype) != (head.shape, head.dtype) for other in others):
        expected = " and ".join(f"{other.dtype} {other.shape}" for other in others)
        raise ValueError(
            f"node {node}, tensor {tensor!r}: {head.dtype} {head.shape}, but start and base are {expected}"
        )
    wide = npy.wide(head.dtype)
    step = np.subtract(npy.flat(trained), npy.flat(start), dtype=wide)
    step *= scale

    def fill(out: np.ndarray) -> None:
        np.add(npy.flat(base), step, out=out, dtype=wide, casting="same_kind")

    return npy.filled(head.dtype, head.shape, fill)

"""What is wrong with a client's reply, in one line, and how far the update in it moved the model.

A reply is written by another machine: whatever it holds, looking at it never raises.
"""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from fedgh_app.flower import ErrorCode
from fedgh_app.vision.tally import Tally
from strategies.npy import flat, header, wide
from strategies.updates import RUNNING_STATISTICS

# The engine answers in the client's place with these: the client itself has said nothing yet, and may still be at work.
OVERDUE = "no reply within the time it had"
UNANSWERED = {
    ErrorCode.MESSAGE_UNAVAILABLE: OVERDUE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: OVERDUE,
    ErrorCode.NODE_UNAVAILABLE: "its node is not connected any more",
}
MOST_STEPS = 10**9  # that a counter in the model may go up by in one training
CLAIM = 2  # a reply may count at most so many times the examples that its client declared

# A client's name goes into logs, tables, plots and file names.
NAME = r"[\w .@+:,;=()/#'-]{1,100}"

_RAISED = re.compile(r"<class '(?:\w+\.)*(\w+)'>:<'(.*)'>")
_WRAPPED = re.compile(r"Exception ClientAppException occurred\. Message: (.*)'>")  # the same in a simulation
_BLOCK = 1 << 16  # elements: differences stay in the L2 cache between subtraction and product


@dataclass(frozen=True)
class Expected:
    """What a good reply holds."""

    metrics: frozenset[str] | None = None  # names, beside those that the message asked for; None to accept any
    examples: float = math.inf  # the most that it may count
    bounds: Mapping[str, str] = field(default_factory=dict)  # of each kind of an evaluation's sums; see `Tally.fault`


@dataclass(frozen=True)
class Norms:
    """Euclidean length of an update, the received arrays minus the sent ones."""

    parameters: float = 0.0
    statistics: float = 0.0  # running ones of normalisation layers, which have a scale of their own


@dataclass(frozen=True)
class Verdict:
    """What a reply is worth."""

    fault: str | None = None  # what is wrong with it, in one line; None for a good one
    norms: Norms | None = None  # of the update in a good reply to a training message
    answered: bool = True  # whether it is the client's own; otherwise the engine says that there is none


def examine(asked: Message, reply: Message, expected: Expected | None = None) -> Verdict:
    """Find out what a reply is worth, in one pass over its arrays. The config of the message ``asked`` may name further
    metrics than are ``expected`` under ``report``.
    """
    if reply.has_error():
        code = reply.error.code
        return Verdict(UNANSWERED.get(code) or _error_line(reply), answered=code not in UNANSWERED)
    try:
        return _examine(asked, reply.content, expected or Expected())
    # A reply may be odd in ways that nobody thought of; that is a fault of the reply, and none of the run.
    except Exception as error:
        return Verdict(f"cannot be read ({type(error).__name__}: {one_line(error)})")


def _error_line(reply: Message) -> str:
    lines = str(reply.error.reason or "").strip().splitlines()
    if not lines:
        return f"error {reply.error.code}"
    if wrapped := _WRAPPED.fullmatch(lines[-1]):
        return one_line(wrapped[1])
    # As Flower's processes write what a client raised; our own errors say it all.
    if raised := _RAISED.fullmatch(lines[-1]):
        kind, said = raised.groups()
        return one_line(said if kind in ("RunFailed", "UserError") else f"{kind}: {said}")
    return one_line(lines[-1])


def one_line(text: object) -> str:
    """What a client wrote, as one line that a log can hold."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "?" for c in (line if len(line) <= 200 else line[:199] + "…"))


def _examine(asked: Message, content: RecordDict, expected: Expected) -> Verdict:
    kind = asked.metadata.message_type
    if kind == MessageType.QUERY:
        return Verdict(_query_fault(content))
    if len(content.metric_records) != 1:
        return Verdict(f"{len(content.metric_records)} MetricRecords; expected 1")
    metrics, names = next(iter(content.metric_records.values())), expected.metrics
    if names is not None:
        config = next(iter(asked.content.config_records.values()), ConfigRecord())
        names = names | frozenset(config.get("report", []))  # type: ignore[arg-type]  # our own server's names
    if reason := _metric_fault(metrics, names, expected.examples):
        return Verdict(reason)
    if kind != MessageType.TRAIN:
        return Verdict(_sum_fault(dict(metrics), expected.bounds))
    if len(content.array_records) != 1:
        return Verdict(f"{len(content.array_records)} ArrayRecords; expected 1")
    sent = next(iter(asked.content.array_records.values()))
    return _array_verdict(sent, next(iter(content.array_records.values())))


def _query_fault(content: RecordDict) -> str | None:
    said = next(iter(content.config_records.values()), None)
    if len(content.config_records) != 1 or said is None:
        return f"{len(content.config_records)} ConfigRecords; expected 1 that describes the client"
    kinds = {"name": str, "label": str, "predicts": str, "num-examples": int, "num-test": int, "speed": float}
    names = {str: "text", int: "a whole number", float: "a number"}
    for key, kind in kinds.items():
        if not isinstance(said.get(key), kind):
            return f"{key} is {one_line(repr(said.get(key)))}; expected {names[kind]}"
    for key, least in {"num-examples": 1, "num-test": 0, "speed": sys.float_info.min}.items():
        if not least <= said[key] < math.inf:  # type: ignore[operator]  # a number, as seen above
            return f"{key} is {one_line(said[key])}; expected {'above 0' if key == 'speed' else f'at least {least}'}"
    if not re.fullmatch(NAME, str(said["name"])):
        return f"name is {one_line(repr(said['name']))}; expected 1 to 100 letters, digits, blanks and .@+:,;=()/#'-"
    return None


def _metric_fault(metrics: MetricRecord, expected: frozenset[str] | None, most: float) -> str | None:
    if expected is not None:
        if missing := sorted(expected - metrics.keys()):
            return f"metric {missing[0]} is missing"
        if extra := sorted(metrics.keys() - expected):
            return f"metric {one_line(extra[0])} was not asked for"
        if lists := [key for key, value in metrics.items() if isinstance(value, list)]:
            return f"metric {lists[0]} is a list; expected a number"
    for key, value in metrics.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(number, Real) and -1e300 < number < 1e300 for number in values):
            return f"metric {one_line(key)} is {one_line(value)}; expected finite numbers"
    examples = metrics.get("num-examples")
    if not isinstance(examples, int | float) or not examples > 0:
        return f"num-examples is {one_line(examples)}; expected a positive number"
    if examples > most:
        return f"num-examples is {examples}; expected at most {most:g}, {CLAIM} times what it declared at the start"
    steps = metrics.get("steps", 1)
    if not isinstance(steps, int | float) or not steps > 0:
        return f"steps is {one_line(steps)}; expected a positive number"
    # FedReID's weight is a distance; rounding may take it a little below 0.
    distance = metrics.get("cosine-distance", 0.0)
    if not isinstance(distance, int | float) or distance < -1e-5:
        return f"metric cosine-distance is {one_line(distance)}; expected at least 0"
    return None


def _sum_fault(metrics: dict[str, Any], bounds: Mapping[str, str]) -> str | None:
    if reason := Tally.from_scalars(metrics, bounds).fault(bounds, metrics["num-examples"]):
        return one_line(reason)
    if (terms := metrics.get("loss-terms", 0)) < 0:
        return f"loss-terms is {one_line(terms)}; expected at least 0"
    return None


def _array_verdict(sent: ArrayRecord, received: ArrayRecord) -> Verdict:
    if missing := [key for key in sent if key not in received]:
        return Verdict(f"array {missing[0]} is missing")
    if extra := [key for key in received if key not in sent]:
        return Verdict(f"array {one_line(extra[0])} was never sent")
    squares = {True: 0.0, False: 0.0}
    for key, wanted in sent.items():
        array = received[key]
        if reason := _form_fault(array, wanted):
            return Verdict(f"array {key} {reason}")
        values = flat(array)
        if values.dtype.kind != "f":
            start = flat(wanted)
            # Whole numbers in a model count batches: they go up, and not so far that the next ones overflow.
            if (values < start).any() or (values > start + MOST_STEPS).any():
                went = f"from {start.max()} to {values.max()}"
                return Verdict(f"array {key} counts {went}; expected at most {MOST_STEPS:g} more, and no less")
            continue
        if key.endswith("running_var") and (values < 0).any():
            return Verdict(f"array {key} holds a negative variance")
        square = squared_distance(flat(wanted), values)
        # Finite differences have finite ends; the exact test settles what is huge.
        if not math.isfinite(square) and not np.isfinite(values).all():
            return Verdict(f"array {key} holds NaN or infinity")
        squares[key.endswith(RUNNING_STATISTICS)] += square
    return Verdict(norms=Norms(math.sqrt(squares[False]), math.sqrt(squares[True])))


def _form_fault(array: Array, wanted: Array) -> str | None:
    if tuple(array.shape) != tuple(wanted.shape):
        return f"has shape {one_line(tuple(array.shape))}; expected {tuple(wanted.shape)}"
    if array.dtype != wanted.dtype:
        return f"has dtype {one_line(array.dtype)}; expected {wanted.dtype}"
    try:
        held = header(array)
    except ValueError as error:
        return f"cannot be read: {one_line(str(error).splitlines()[0])}"
    if held.shape != tuple(wanted.shape) or str(held.dtype) != wanted.dtype:
        return f"holds {held.dtype} of shape {held.shape}, not what it declares"
    return None


def squared_distance(start: np.ndarray, end: np.ndarray) -> float:
    """‖end - start‖² of two flat arrays of one floating dtype, block by block and without a copy of either.

    Not finite where ``end`` holds NaN or infinity, and where float64 overflows.
    """
    dtype = wide(end.dtype)
    buffer = np.empty(min(_BLOCK, len(end)), dtype)
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, len(end), _BLOCK):
            piece = slice(begin, begin + _BLOCK)
            difference = buffer[: len(end[piece])]
            np.subtract(end[piece], start[piece], out=difference, dtype=dtype)
            square = float(np.dot(difference, difference))
            if not math.isfinite(square):  # float32 overflows at lengths of 1e19, which are odd but finite
                far = np.subtract(end[piece], start[piece], dtype=np.float64)
                square = float(np.dot(far, far))
            total += square
    return total


def finite(arrays: ArrayRecord) -> str | None:
    """The name of the first array that holds NaN or infinity; None where all are finite."""
    for key, array in arrays.items():
        values = flat(array)
        if values.dtype.kind != "f":
            continue
        # One pass without a mask; the exact test settles what is huge. float16 would overflow early.
        with np.errstate(over="ignore", invalid="ignore"):
            if values.dtype != np.float16 and math.isfinite(float(np.dot(values, values))):
                continue
        if not np.isfinite(values).all():
            return key
    return None

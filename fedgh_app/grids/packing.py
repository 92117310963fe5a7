"""A model as one array on its way between server and site.

Flower sends every array as an object of its own, each several HTTP requests to each of the SuperLink, the SuperNode and
the app's process, so that a model's many small arrays cost far more than its bytes. Neither the ServerApp's loop nor
TaskClient see packed messages: `PackingGrid` and the mod `packing` pack what goes out and unpack what comes in, bit for
bit.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedgh_app.grids.wrapped import WrappedGrid

LAYOUT = "layout of "  # before a record's name: the ConfigRecord that says what its one array holds
_STYPE = "fedgh.packed"

Packed = tuple[ArrayRecord, ConfigRecord]  # an ArrayRecord as one array, and how to undo it


def pack(content: RecordDict, packed_before: dict[int, Packed] | None = None) -> RecordDict:
    """``content`` with each ArrayRecord as one array, and a ConfigRecord that says how to undo it.

    ``packed_before`` holds, by the id of an ArrayRecord, what it was packed to, and is added to: messages of a round
    share the model, and its bytes are to be there once, not once for each client.
    """
    packed = RecordDict(dict(content))
    known = {} if packed_before is None else packed_before
    for name, record in content.array_records.items():
        if id(record) not in known:
            known[id(record)] = _packed(record)
        packed[name], packed[LAYOUT + name] = known[id(record)]
    return packed


def _packed(record: ArrayRecord) -> Packed:
    arrays = [(key, array.dtype, list(array.shape), array.stype, len(array.data)) for key, array in record.items()]
    data = b"".join(array.data for array in record.values())
    return ArrayRecord({"": Array("uint8", (len(data),), _STYPE, data)}), ConfigRecord({"arrays": json.dumps(arrays)})


def unpack(content: RecordDict) -> RecordDict:
    """What `pack` was given; content that is not packed as it is.

    Raises ValueError where the layout is none, or not that of the data.
    """
    names = [name.removeprefix(LAYOUT) for name in content.config_records if name.startswith(LAYOUT)]
    plain = RecordDict({name: record for name, record in content.items() if not name.startswith(LAYOUT)})
    for name in names:
        plain[name] = _unpacked(content, name)
    return plain


def _unpacked(content: RecordDict, name: str) -> ArrayRecord:
    try:
        data = content.array_records[name][""].data
        layout = json.loads(str(content.config_records[LAYOUT + name]["arrays"]))
        made, end = {}, 0
        for key, dtype, shape, stype, size in layout:
            start, end = end, end + int(size)
            if not start <= end <= len(data):
                break
            made[str(key)] = Array(str(dtype), tuple(map(int, shape)), str(stype), data[start:end])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"the layout of {name!r} cannot be read ({type(error).__name__})") from None
    if end != len(data) or len(made) != len(layout):
        raise ValueError(f"the layout of {name!r} is not that of its {len(data)} bytes")
    return ArrayRecord(made)


def packing(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """A ClientApp's mod: a packed message is unpacked, and its reply packed."""
    if not (message.has_content() and any(name.startswith(LAYOUT) for name in message.content.config_records)):
        return call_next(message, context)
    message.content = unpack(message.content)
    reply = call_next(message, context)
    if reply.has_content():
        reply.content = pack(reply.content)
    return reply


@contextlib.contextmanager
def _packed_meanwhile(messages: Iterable[Message]) -> Iterator[None]:
    """Messages hold afterwards what they held before."""
    plain = [(message, message.content) for message in messages]
    packed: dict[int, Packed] = {}
    try:
        for message, content in plain:
            message.content = pack(content, packed)
        yield
    finally:
        for message, content in plain:
            message.content = content


def _opened(reply: Message) -> Message:
    """A reply unpacked; one whose layout cannot be read stays packed, and so lacks every array."""
    if reply.has_content():
        with contextlib.suppress(ValueError):
            reply.content = unpack(reply.content)
    return reply


class PackingGrid(WrappedGrid):
    """Passes messages to ``inner`` packed, and its replies on unpacked."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`; the messages are not changed."""
        sent = list(messages)
        with _packed_meanwhile(sent):
            return list(self.inner.push_messages(sent))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """See `Grid`; a reply whose layout cannot be read lacks every array."""
        return [_opened(reply) for reply in self.inner.pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """See `Grid`; as both of these."""
        sent = list(messages)
        with _packed_meanwhile(sent):
            return [_opened(reply) for reply in self.inner.send_and_receive(sent, timeout=timeout)]

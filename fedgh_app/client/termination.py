"""A client that is told to end while it works says so before it does."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedgh_app.errors import RunFailed


def terminable(applies: Callable[[Context], bool]) -> Callable[[Message, Context, ClientAppCallable], Message]:
    """A mod of the ClientApp: where it applies, SIGTERM raises in the client, whose failure is then the reply.

    Flower's own handler ends the process without any, and the SuperNode, which answers one message after the other,
    would wait for it without end. In simulation processes are Ray's, which ends them by this signal itself.
    """

    def answer(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if not applies(context) or threading.current_thread() is not threading.main_thread():
            return call_next(message, context)
        before = signal.signal(signal.SIGTERM, _raise)
        try:
            return call_next(message, context)
        finally:
            signal.signal(signal.SIGTERM, before)

    return answer


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise RunFailed("its process was told to end while it was at work (SIGTERM)")

"""The processes of a run, told from others by a mark in their environment."""

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import psutil

MARK = "FEDGH_RUN_MARK"  # environment variable that every process of a run inherits
PATIENCE_SECONDS = 7.5
RAY_CALL = "ray::ClientAppActor.run"  # what Ray calls a process while it runs a client
CALL_SECONDS = 0.5


def end(process: subprocess.Popen[bytes], mark: str, patience: float) -> None:
    """End a process, which has ``patience`` seconds to end its own, and what then carries ``mark``.

    A second Ctrl-C or SIGTERM must not leave half of them running.
    """
    in_main = threading.current_thread() is threading.main_thread()  # no other may change what signals do
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if in_main else ()
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        end_marked(mark)
        process.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_marked(mark: str) -> None:
    """End every process that carries ``mark``, Ray's daemons among them."""
    left = list(marked(mark))
    for survivor in left:
        with contextlib.suppress(psutil.Error):
            survivor.terminate()
    _, alive = psutil.wait_procs(left, timeout=PATIENCE_SECONDS)
    stubborn = [*alive, *marked(mark)]
    for survivor in stubborn:
        with contextlib.suppress(psutil.Error):
            survivor.kill()
    psutil.wait_procs(stubborn, timeout=PATIENCE_SECONDS)


def marked(mark: str) -> Iterator[psutil.Process]:
    """Processes that carry ``mark``."""
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if candidate.environ().get(MARK) == mark:
                yield candidate


def end_ray_calls() -> None:
    """From now on, end every call of a client that is still running below this process.

    Flower's simulation ends only after all calls have; a run that has ended waits for none, least of all for a client
    that never answers. Calls that were queued start when others are ended, so that this goes on until the process ends.
    """

    def end_calls() -> None:
        while True:
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if child.cmdline()[:1] == [RAY_CALL]:
                        child.kill()
            time.sleep(CALL_SECONDS)

    threading.Thread(target=end_calls, name="end of calls", daemon=True).start()

"""Starts a site's ClientApps from a process that has loaded their libraries already.

Flower starts a new Python for every message, which then spends seconds importing PyTorch. Its ``--isolation process``
leaves starting them to somebody else: to this, which forks each from a process where the libraries lie ready. A message
still has a process of its own, which loads the app's code from the bundle that the server sent.
"""

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import NoReturn

import httpx

from fedgh_app.errors import UserError
from fedgh_app.flower import (
    AcquireTaskRequest,
    AcquireTaskResponse,
    ProtobufClientInterceptor,
    RuntimeHttpClient,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
    TaskType,
    load_superexec_auth_secret,
    run_clientapp,
)

POLL_SECONDS = 0.25
# For the libraries that they import; torchvision and timm take as long as PyTorch. Who is not installed is passed over.
PRELOAD = ["fedgh_app.flower", "fedgh_app.client_app", "torchvision.models", "timm"]
OWN = ("fedgh_app", "strategies")


def supernode(arguments: Sequence[str]) -> NoReturn:
    """Become ``flower-supernode`` with these arguments, beside an executor of its own that ends with it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="9094")
    parser.add_argument("--superexec-auth-secret-file")
    known, _ = parser.parse_known_args(arguments)
    options = ["--runtime-api-address", f"{known.host}:{known.port}", "--parent-pid", str(os.getpid())]
    if known.superexec_auth_secret_file is not None:
        options += ["--superexec-auth-secret-file", known.superexec_auth_secret_file]
    subprocess.Popen([sys.executable, "-m", __name__, *options])
    script = Path(sysconfig.get_path("scripts")) / "flower-supernode"
    os.execv(script, [str(script), *arguments, "--isolation", "process"])


def executor(arguments: Sequence[str]) -> NoReturn:
    """Become an executor with these arguments; a module, as its children import what they were started by."""
    os.execv(sys.executable, [sys.executable, "-m", __name__, *arguments])


def serve(address: str, secret: bytes | None, parent: int | None) -> None:
    """Start a process for every message that the SuperNode has, until the process ``parent`` ends.

    The ``address`` is of the SuperNode's Runtime API, on this machine or a network that is as safe; by the ``secret``
    it knows this executor, None where it asks for nothing. UserError where it does not take the secret.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    context.Process(target=time.time, daemon=True).start()  # loads them now, not when the first message is here
    interceptors: list[ProtobufClientInterceptor] = [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
    if secret is not None:
        methods = frozenset({"/flwr.proto.Runtime/AcquireTask"})
        interceptors.append(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=methods))
    client = RuntimeHttpClient.from_server_address(address, True, None, interceptors=interceptors)
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while parent is None or os.getppid() == parent:
        try:
            found = client.AcquireTask(request)
        except httpx.TransportError:  # the SuperNode is still starting, or ending
            found = AcquireTaskResponse()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                raise UserError(
                    f"--superexec-auth-secret-file: the SuperNode at {address} answers with status {status}; "
                    "expected the secret that it was started with"
                ) from None
            if status < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            found = AcquireTaskResponse()  # it stumbled, over its locked database for one
        if found.HasField("task") and found.token:
            # Not a daemon: that could start no process, such as the one that MATLAB files are read in.
            context.Process(target=_answer, args=(address, found.token, os.getpid())).start()
        multiprocessing.active_children()  # collects those that have ended
        time.sleep(POLL_SECONDS)


def _answer(address: str, token: str, parent: int) -> None:
    """One message, in a process of its own."""
    # The app's code is the bundle's, as the server sent it, not what is installed here.
    for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
        del sys.modules[name]
    run_clientapp(address, token, insecure=True, parent_pid=parent)


def main() -> None:
    """The process that `supernode` and `executor` start."""
    parser = argparse.ArgumentParser(prog="fedgh deploy executor", description=__doc__)
    parser.add_argument("--runtime-api-address", default="127.0.0.1:9094", help="host:port of the SuperNode")
    parser.add_argument("--superexec-auth-secret-file", type=Path, help="the secret that the SuperNode was given too")
    parser.add_argument("--parent-pid", type=int, help="process with which this one ends")
    known = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    file = known.superexec_auth_secret_file
    secret = None if file is None else load_superexec_auth_secret(secret_file=file)
    try:
        serve(known.runtime_api_address, secret, known.parent_pid)
    except UserError as error:
        parser.exit(2, f"fedgh: {error}\n")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # one is enough
            signal.signal(number, signal.SIG_IGN)
        for answering in multiprocessing.active_children():
            answering.terminate()
        if os.getppid() == known.parent_pid:  # a SuperNode alone would take messages that nobody answers
            os.kill(known.parent_pid, signal.SIGTERM)


if __name__ == "__main__":
    main()

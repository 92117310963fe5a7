"""What a SuperLink has to do for each node: CPU time of a poll, of a heartbeat, and of a model that comes and goes.

    python -m benchmarks.superlink [--nodes N] [--registered N] [--json FILE]

A real SuperLink on loopback, without TLS, and nodes that speak to it through the SuperNode's own connection (every call
signed, as always), but train nothing: what they send back is the model that they got, changed. CPU time is that of the
SuperLink's process, so that it holds on a busy machine too; it serves all requests from one process, which is where
``one core`` in the table comes from.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sysconfig
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import tomli_w
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects, push_objects
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.fleet_http_connection import http_request_response
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from benchmarks import output
from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.config.compose import compose_config
from fedgh_app.pose.data.records import load_spec
from fedgh_app.runtimes.superlink import free_port

# What the ServerApp of the load does: it sends one model to every node, and takes what comes back.
SERVER = """
import time
from pathlib import Path
import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    folder, count = Path(str(context.run_config["folder"])), int(context.run_config["nodes"])
    while len(nodes := list(grid.get_node_ids())) < count:
        time.sleep(0.2)
    with np.load(folder / "model.npz") as stored:
        model = ArrayRecord({key: Array(stored[key]) for key in stored.files})
    (folder / "started").touch()
    waiting = set(grid.push_messages([Message(RecordDict({"arrays": model}), node, "train") for node in nodes]))
    while waiting:
        waiting -= {reply.metadata.reply_to_message_id for reply in grid.pull_messages(waiting)}
        time.sleep(0.2)
    (folder / "ended").touch()
"""
CLIENT = """
from flwr.clientapp import ClientApp

app = ClientApp()
"""
PROJECT: dict[str, Any] = {
    "project": {"name": "load", "version": "1.0.0", "license": {"text": "none"}, "dependencies": []},
    "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
    "tool": {
        "flwr": {
            "app": {
                "publisher": "load",
                "components": {"serverapp": "load.server:app", "clientapp": "load.client:app"},
                "config": {"folder": "", "nodes": 0},
            }
        }
    },
}
MODELS = {
    "1.6 M": ("model=shufflenet_v2", "model.head_width=224"),
    "34 M": ("model=pose_resnet50",),
}


ONE_AT_A_TIME = threading.Lock()  # Flower keeps who is speaking once a process


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the SuperLink's process for one ``what``, and how many requests that is."""

    what: str
    cpu_seconds: float
    requests: float
    wall_seconds: float


@dataclass
class SuperLink:
    """One on loopback."""

    address: str
    home: Path
    environment: dict[str, str]
    process: psutil.Popen

    def cpu(self) -> float:
        """CPU seconds so far of the server and, where it is one of its own, the process that serves."""
        times = [process.cpu_times() for process in (self.process, *_servers(self.process))]
        return float(sum(each.user + each.system for each in times))


def _servers(process: psutil.Popen) -> list[psutil.Process]:
    """Processes below it that are the SuperLink too, not the apps that it runs."""
    return [child for child in process.children() if "flower-superlink" in " ".join(child.cmdline())]


@contextlib.contextmanager
def superlink() -> Iterator[SuperLink]:
    """Started, and ended with all that it started."""
    scripts = Path(sysconfig.get_path("scripts"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home, port = Path(folder), free_port()
        address = f"127.0.0.1:{port}"
        environment = {
            **os.environ,
            "FLWR_HOME": folder,
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        (home / "config.toml").write_text(
            tomli_w.dumps({"superlink": {"default": "load", "load": {"address": address, "insecure": True}}})
        )
        with (home / "log").open("wb") as log:
            process = psutil.Popen(
                [str(scripts / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            _wait(lambda: httpx.get(f"http://{address}/health", timeout=1).is_success)
            yield SuperLink(address, home, environment, process)
        finally:
            family = [process, *process.children(recursive=True)]
            for member in family:
                with contextlib.suppress(psutil.Error):
                    member.terminate()
            for member in psutil.wait_procs(family, timeout=10)[1]:
                member.kill()


def _wait(ready: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if ready():
                return
        time.sleep(0.1)
    raise TimeoutError(f"not ready within {seconds:g} seconds")


def idle(registered: int, seconds: float = 8.0) -> list[Cost]:
    """Polls and heartbeats of nodes for which there is nothing to do, as fast as two threads ask."""
    with superlink() as link, ExitStack() as stack:
        nodes = []
        for _ in range(registered):
            private, public = generate_key_pairs()
            client = FleetHttpClient.from_server_address(
                link.address, True, None, interceptors=[NodeAuthHttpInterceptor(private, public)]
            )
            stack.enter_context(client)
            key = public_key_to_bytes(public)
            client.RegisterNode(RegisterNodeFleetRequest(public_key=key))
            found = client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=30))
            nodes.append((client, Node(node_id=found.node_id)))
        calls: dict[str, Callable[[FleetHttpClient, Node], object]] = {
            "poll": lambda client, node: client.PullMessages(PullMessagesRequest(node=node)),
            "heartbeat": lambda client, node: client.SendNodeHeartbeat(
                SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)
            ),
        }
        return [_repeated(link, f"{name}, {registered} nodes", call, nodes, seconds) for name, call in calls.items()]


def _repeated(
    link: SuperLink, what: str, call: Callable[[FleetHttpClient, Node], object], nodes: list[Any], seconds: float
) -> Cost:
    end = time.monotonic() + seconds

    def ask(part: list[Any]) -> int:
        count = 0
        while time.monotonic() < end:
            call(*part[count % len(part)])
            count += 1
        return count

    before, begin = link.cpu(), time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        count = sum(threads.map(ask, (nodes[::2], nodes[1::2] or nodes)))
    return Cost(what, (link.cpu() - before) / count, 1.0, (time.monotonic() - begin) / count)


def transfer(name: str, count: int, packed: bool) -> Cost:
    """A model to each of ``count`` nodes and another one back, from the ServerApp's push to its last pull.

    ``packed``: as one array, as a deployment sends it (``runtime.packed``), not each of its tensors as one.
    """
    config = compose_config(["dataset=mpii", "partition=iid", *MODELS[name]])
    noise = np.random.default_rng(0)
    # No two tensors alike, as after training: Flower sends equal ones once.
    model = {
        key: np.asarray(tensor.numpy() + noise.normal(size=tuple(tensor.shape)), tensor.numpy().dtype)
        for key, tensor in ClientAssembly(config).build_model(load_spec("mpii")).state_dict().items()
    }
    arrays = f"{len(model)} arrays"
    if packed:
        data = b"".join(array.tobytes() for array in model.values())
        model, arrays = {"packed": np.frombuffer(data, np.uint8)}, "1 array"
    with superlink() as link, ExitStack() as stack:
        np.savez(link.home / "model.npz", **model)
        connections = [stack.enter_context(http_request_response(link.address, True)) for _ in range(count)]
        _start(link, count)
        _wait((link.home / "started").exists)
        before, begin = link.cpu(), time.monotonic()
        with ThreadPoolExecutor(count) as threads:
            requests = list(threads.map(_node, connections))
        _wait((link.home / "ended").exists, 900)
        return Cost(
            f"a model of {name} as {arrays}, to a node and back",
            (link.cpu() - before) / count,
            sum(requests) / count,
            (time.monotonic() - begin) / count,
        )


def _start(link: SuperLink, nodes: int) -> None:
    app = link.home / "app"
    (app / "load").mkdir(parents=True)
    (app / "load" / "__init__.py").touch()
    (app / "load" / "server.py").write_text(textwrap.dedent(SERVER))
    (app / "load" / "client.py").write_text(textwrap.dedent(CLIENT))
    (app / "pyproject.toml").write_text(tomli_w.dumps(PROJECT))
    (link.home / "run.toml").write_text(tomli_w.dumps({"folder": str(link.home), "nodes": nodes}))
    flwr = Path(sysconfig.get_path("scripts")) / "flwr"
    command = [str(flwr), "run", str(app), "load", "--run-config", str(link.home / "run.toml")]
    subprocess.run(command, env=link.environment, check=True, capture_output=True)


def _node(connection: Any) -> int:
    """One message in, one out, as SuperNode and ClientApp would; how many requests that took."""
    _, receive, send, _, _, pull_object, push_object, confirm = connection
    asked = 0
    while (received := receive()) is None:
        asked += 1
        time.sleep(1)
    message, tree = received
    run = message.metadata.run_id
    ids = [node.object_id for node in iterate_object_tree(tree)]
    contents = pull_objects(ids, lambda number: pull_object(run, number))
    confirm(run, message.metadata.message_id)
    asked_for = message.metadata.message_id
    message = inflate_object_from_contents(asked_for, contents)
    message.metadata.__dict__["_message_id"] = asked_for
    step = np.random.default_rng(message.metadata.dst_node_id).integers(1, 200)
    arrays = message.content.array_records["arrays"]
    trained = ArrayRecord({key: Array(np.asarray(array.numpy() + step, array.dtype)) for key, array in arrays.items()})
    content = RecordDict({"arrays": trained, "metrics": MetricRecord({"num-examples": 1})})
    with ONE_AT_A_TIME:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, message.metadata.dst_node_id
        reply = Message(content, reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    objects = get_all_nested_objects(reply)
    missing, session = send(reply, get_object_tree(reply), 0.0)
    push_objects(
        objects, lambda number, content: push_object(run, session, number, content), object_ids_to_push=missing
    )
    return asked + 3 + len(ids) + len(missing)


HEADINGS = ("what", "requests of the node", "SuperLink's CPU, ms", "a second on one core", "here, ms")


def cells(cost: Cost) -> tuple[str, ...]:
    """A row under `HEADINGS`."""
    rate = 1 / cost.cpu_seconds
    return (
        cost.what,
        f"{cost.requests:.0f}",
        f"{1e3 * cost.cpu_seconds:.1f}",
        f"{rate:.0f}" if rate >= 10 else f"{rate:.{1 - math.floor(math.log10(rate))}f}",
        f"{1e3 * cost.wall_seconds:.1f}",
    )


def main() -> None:
    """Measure, print a table, write it as JSON."""
    parser = output.parser("superlink", __doc__)
    parser.add_argument("--registered", type=int, nargs="+", default=[10, 300])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["1.6 M"])
    options = parser.parse_args()
    costs = [cost for registered in options.registered for cost in idle(registered)]
    costs += [transfer(name, options.nodes, packed) for name in options.models for packed in (False, True)]
    table = output.empty_table("One SuperLink", HEADINGS)
    table.caption = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    for cost in costs:
        table.add_row(*cells(cost))
    output.show(options.json, costs, table, width=120)


if __name__ == "__main__":
    main()

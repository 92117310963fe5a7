"""The ClientApp: messages in, TaskClient's methods, messages out."""

import functools
import json
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.typing import Scalar

from fedgh_app.assembly.client import ClientAssembly
from fedgh_app.client.boundary import check_demand, discreet
from fedgh_app.client.client import TaskClient
from fedgh_app.client.local_state import LocalState, file_of
from fedgh_app.client.termination import terminable
from fedgh_app.config.compose import compose_config, split_overrides
from fedgh_app.config.site import SitePaths, bounded
from fedgh_app.data.site import Site, open_site
from fedgh_app.errors import UserError
from fedgh_app.grids.packing import packing
from fedgh_app.resources import Values
from fedgh_app.vision.threads import limit_threads


# One process serves many messages, and in simulation many clients: what does not change is built once.
@functools.lru_cache(maxsize=4)
def assembly_at(overrides: str, paths: SitePaths) -> ClientAssembly:
    """The parts of every client of one run in this process."""
    return ClientAssembly(bounded(compose_config(split_overrides(overrides)), paths))


def _assembly(context: Context) -> ClientAssembly:
    return assembly_at(str(context.run_config["overrides"]), SitePaths.of(context.node_config))


def _deployed(context: Context) -> bool:
    return _assembly(context).settings.runtime.name == "deployment"


# The border comes first: whatever is raised inside of it passes there.
app = ClientApp(mods=[discreet, terminable(_deployed), packing])


@app.query()
def query(message: Message, context: Context) -> Message:
    """Tell the server this client's name, sizes and what its head predicts; fail now where anything is missing."""
    client = _client(context)
    return Message(RecordDict({"client": ConfigRecord({**client.site.properties()})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model; reply with the trained one under the received keys."""
    client = _addressed(context, message)
    check_demand(_assembly(context).settings.privacy, context.node_config)
    parameters, examples, metrics = client.fit(_parameters(client, message), _config(message))
    if client.keeps_state:
        client.local.store(_file(client, message))
    trained = ArrayRecord({key: Array(array) for key, array in zip(client.shared_keys, parameters, strict=True)})
    measured = MetricRecord({"num-examples": examples, **_numbers(metrics)})
    return Message(RecordDict({"arrays": trained, "metrics": measured}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the received model on this client's own examples."""
    client = _addressed(context, message)
    loss, examples, metrics = client.evaluate(_parameters(client, message), _config(message))
    measured = MetricRecord({"num-examples": examples, "loss": loss, **_numbers(metrics)})
    return Message(RecordDict({"metrics": measured}), reply_to=message)


def _config(message: Message) -> dict[str, Scalar]:
    return dict(message.content.config_records["config"])  # type: ignore[arg-type]  # Flower's Scalar leaves out lists


def _parameters(client: TaskClient, message: Message) -> list[np.ndarray]:
    """The received arrays in the order of the client's own state dict, whatever order they came in."""
    received = message.content.array_records["arrays"]
    if missing := [key for key in client.shared_keys if key not in received]:
        raise UserError(f"array {missing[0]} was not sent; expected the {len(client.shared_keys)} shared ones")
    return [received[key].numpy() for key in client.shared_keys]


def _numbers(metrics: dict[str, Scalar]) -> dict[str, int | float]:
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def _client(context: Context) -> TaskClient:
    """The client of this node, before any message."""
    assembly = _assembly(context)
    limit_threads(assembly.settings.runtime.client_cpus)
    overrides = str(context.run_config["overrides"])
    return assembly.client(_site(overrides, json.dumps(dict(context.node_config), sort_keys=True)))


def _addressed(context: Context, message: Message) -> TaskClient:
    """The client of this node as it stands when it gets ``message``."""
    client = _client(context)
    if client.keeps_state:
        client.local = LocalState.open(_file(client, message))
        sent = _config(message)
        client.local.acknowledge(int(sent["acknowledged"]), int(sent["settled"]), int(sent["session"]))
    client.extra = {
        name: {key: torch.as_tensor(array.numpy()).clone() for key, array in record.items()}
        for name, record in message.content.array_records.items()
        if name != "arrays"
    }
    return client


def _file(client: TaskClient, message: Message) -> Path:
    return file_of(client.training.settings, str(_config(message)["run"]), client.site.name)


@functools.lru_cache(maxsize=256)
def _site(overrides: str, node_config: str) -> Site:
    node: Values = json.loads(node_config)
    return open_site(assembly_at(overrides, SitePaths.of(node)).data, node)

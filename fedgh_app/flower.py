"""All that fedgh takes from Flower beyond its documented API, which any version may change.

Written for the version in ``constraints.txt``: with another, the test of this module says what is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# isort: split
# A Grid: its run, and who is speaking, which Flower's engines say and the in-process
# runtime says here. The code of a reply's error tells a node that is away from a client that raised.
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

# isort: split
# What `flwr list` and `flwr stop` ask a SuperLink: without these every question would be a new Python.
from flwr.cli.constant import FLOWER_CONFIG_FILE
from flwr.cli.run_utils import format_runs
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StopRunRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.utils import get_flwr_home

# isort: split
# Signed bundles: a bundle's name, and signatures as a SuperNode checks them. Flower makes them only on its hub.
from flwr.common.config import get_fab_config, get_metadata_from_config
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, load_private_key, sign_message

# isort: split
# What `flower-superexec` is made of: our executor takes a SuperNode's messages as it does, with libraries loaded once.
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import run_clientapp

if TYPE_CHECKING:
    from flwr.cli.typing import SuperLinkConnection


def superlink_connection(name: str) -> SuperLinkConnection:
    """What Flower's configuration says of a SuperLink; an error of click or typer where it says nothing."""
    from flwr.cli.flower_config import read_superlink_connection  # only here: it loads all of Flower's commands

    return read_superlink_connection(name)


def control_client(connection: SuperLinkConnection) -> ControlHttpClient:
    """What puts questions to a SuperLink, with the certificates and the account that the connection names."""
    from flwr.cli.utils import init_http_client_from_connection  # as above

    return init_http_client_from_connection(connection)

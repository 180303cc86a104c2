"""What the server uses of Flower beyond its public API: its Control and Runtime APIs, errors, keys and signatures.

See :mod:`fednnunet.exchange.flower_internals`; ``tests/test_flower_contract.py`` names what a release changed.
The SuperLink itself takes a second to import and stands in :mod:`fednnunet.deployment.server.flower_superlink`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.cli.build import build_fab_from_files
from flwr.common.constant import (
    HEARTBEAT_PATIENCE,
    SUPERLINK_NODE_ID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    Status,
    SubStatus,
)
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, NodeStatus, TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.date import now
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    pull_objects,
)
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes, verify_signature
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient

if TYPE_CHECKING:
    from flwr.superlink.grid import HttpGrid

__all__ = [
    "API_ERROR_MAP",
    "FLEET_HTTP_PUBLIC_KEY_HEADER",
    "FLEET_HTTP_SIGNATURE_HEADER",
    "HEARTBEAT_PATIENCE",
    "SUPERLINK_NODE_ID",
    "SYSTEM_TIME_TOLERANCE",
    "TIMESTAMP_HEADER",
    "TIMESTAMP_TOLERANCE",
    "AcquireTaskRequest",
    "ApiErrorCode",
    "ConfirmMessageReceivedRequest",
    "ControlHttpClient",
    "Fab",
    "FlowerError",
    "HeartbeatSender",
    "ListNodesRequest",
    "ListRunsRequest",
    "Node",
    "NodeInfo",
    "NodeStatus",
    "ObjectPullError",
    "ObjectPushError",
    "ObjectUnavailableError",
    "ProtobufCall",
    "ProtobufRequestContext",
    "PullAppMessagesRequest",
    "PullTaskInputRequest",
    "PushAppMessagesRequest",
    "PushMessagesRequest",
    "PushMessagesResponse",
    "PushTaskOutputRequest",
    "RetryInvoker",
    "RuntimeHttpClient",
    "RuntimeTokenHttpInterceptor",
    "RuntimeVersionHttpInterceptor",
    "SendTaskHeartbeatRequest",
    "StartRunRequest",
    "Status",
    "StopRunRequest",
    "SubStatus",
    "TaskType",
    "build_fab_from_files",
    "bytes_to_public_key",
    "exponential",
    "grid_over",
    "iterate_object_tree",
    "make_pull_object_fn_protobuf",
    "make_push_object_fn_protobuf",
    "now",
    "public_key_to_bytes",
    "pull_objects",
    "run_from_proto",
    "verify_signature",
]


def grid_over(client: RuntimeHttpClient, address: str, token: str) -> HttpGrid:
    """Flower's grid at ``address`` that sends by ``client`` instead of a client that it makes itself.

    Args:
        client: has the interceptors and the retries that the grid's own would lack.
        address: ``host:port`` of the SuperLink.
        token: of the task that the grid acts for.
    """
    from flwr.superlink.grid import HttpGrid  # half a second, which other users of this module need not wait for

    grid = HttpGrid(address, insecure=True, token=token)
    grid._client = client
    return grid

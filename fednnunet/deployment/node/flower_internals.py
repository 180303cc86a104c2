"""What a node uses of Flower beyond its public API: the client of the Fleet API, and messages taken apart.

See :mod:`fednnunet.exchange.flower_internals`; ``tests/test_flower_contract.py`` names what a release changed.
"""

from __future__ import annotations

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode, FlowerError
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
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fednnunet.config.node_file import NAME_HEADER, NodeFile
from fednnunet.deployment.keys import read_authorities

__all__ = [
    "HEARTBEAT_DEFAULT_INTERVAL",
    "SYSTEM_TIME_TOLERANCE",
    "TIMESTAMP_TOLERANCE",
    "ActivateNodeRequest",
    "ApiErrorCode",
    "ConfirmMessageReceivedRequest",
    "DeactivateNodeRequest",
    "FleetHttpClient",
    "FlowerError",
    "HeartbeatSender",
    "Node",
    "NodeAuthHttpInterceptor",
    "ObjectPullError",
    "ObjectPushError",
    "ObjectTree",
    "PullMessagesRequest",
    "PushMessagesRequest",
    "RegisterNodeFleetRequest",
    "RuntimeVersionHttpInterceptor",
    "SendNodeHeartbeatRequest",
    "fleet_client",
    "http_client",
    "iterate_object_tree",
    "make_pull_object_fn_protobuf",
    "make_push_object_fn_protobuf",
    "public_key_to_bytes",
    "pull_objects",
    "push_objects",
]


def fleet_client(node_file: NodeFile, key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
    """Flower's client of the Fleet API, as a SuperNode has it, with the node's name on each request.

    It trusts the authority in ``certificate`` only.

    Args:
        node_file: configuration of the node.
        key: private key of the node, which signs every request.

    Raises:
        ConfigError: ``certificate`` cannot be read.
    """
    signed = NodeAuthHttpInterceptor(key, key.public_key())
    versioned = RuntimeVersionHttpInterceptor(component_name="SuperNode")
    trusted = None
    if node_file.certificate is not None and not node_file.insecure:
        # Without the text that may stand around certificates: Flower takes ASCII only.
        trusted = b"".join(one.public_bytes(Encoding.PEM) for one in read_authorities(node_file.certificate))
    client = FleetHttpClient.from_server_address(
        node_file.server, node_file.insecure, trusted, interceptors=[versioned, signed]
    )
    http_client(client).headers[NAME_HEADER] = node_file.name
    return client


def http_client(client: FleetHttpClient) -> httpx.Client:
    """The HTTP client inside Flower's client of the Fleet API, to set what that one has no arguments for."""
    return client._client

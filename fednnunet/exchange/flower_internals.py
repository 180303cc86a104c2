"""Details of Flower's messages that are not part of its public API (``flwr.app``, ``clientapp``, ``serverapp``).

Everything that this project uses beyond that API stands in three modules of this name: this one, and those of
``deployment/node`` and ``deployment/server``. ``tests/test_flower_contract.py`` names what a release of Flower changed.
"""

from __future__ import annotations

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "ErrorCode",
    "Run",
    "act_as",
    "aggregate_metricrecords",
    "get_object_body",
    "get_object_head_values_from_object_content",
    "inflate_object_from_contents",
    "relabel",
    "set_message_id",
]

_OWN_TASK = 1
"""Id of the task that sends; Flower requires one and looks only at the node's."""


def act_as(node_id: int, run_id: int, task_id: int = _OWN_TASK) -> None:
    """Make ``node_id`` the sender of all messages that this process creates from now on."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, which Flower itself does when it sends or receives one."""
    message.metadata.__dict__["_message_id"] = message_id


def relabel(reply: Message, src_node_id: int, reply_to_message_id: str) -> None:
    """Set who sent a reply, and to which message it is one."""
    reply.metadata.__dict__.update(_src_node_id=src_node_id, _reply_to_message_id=reply_to_message_id)

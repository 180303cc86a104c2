"""What a node sends after a round, without a node."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict

from fednnunet.exchange.records import to_array_record


def train_reply(node: int, arrays: Mapping[str, np.ndarray], num_cases: int = 1, **metrics: float) -> Message:
    """A node's reply to a train request; Flower needs a grid to be there."""
    request = Message(RecordDict(), dst_node_id=node, message_type="train")
    record = MetricRecord({"num-examples": num_cases, **metrics})
    reply = Message(RecordDict({"arrays": to_array_record(arrays), "metrics": record}), reply_to=request)
    reply.metadata.__dict__["_src_node_id"] = node
    return reply

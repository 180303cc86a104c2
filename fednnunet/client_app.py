"""The Flower ClientApp: a relay between the grid and the node's worker.

Under a SuperNode it is a new process for every message, so it imports no torch and holds no state: it checks the
request, hands it to the long-lived worker, and turns the reply into a Flower message.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fednnunet import __version__
from fednnunet.errors import ProtocolError
from fednnunet.exchange.arrays import SharedArrays
from fednnunet.exchange.channel import WorkerFailure, WorkerUnreachable, call_worker
from fednnunet.exchange.error_codes import ERROR_CODES
from fednnunet.exchange.messages import (
    REPLIES,
    REQUESTS,
    Body,
    Kind,
    TrainReply,
    parse_body,
)
from fednnunet.exchange.records import arrays_in, as_array_record, config_in, from_array_record

MAX_DEATHS = 3
"""Number of workers that may die of a request; after that it is given up."""
RETRY_SECONDS = 0.5

app = ClientApp()


def relay(message: Message, context: Context) -> Message:
    """Hand ``message`` to the worker that ``context.node_config`` names, and return its reply."""
    try:
        return Message(_forward(message, context), reply_to=message)
    except WorkerFailure as error:
        return _error(message, ERROR_CODES[error.failure.error], error.failure.reason)
    except WorkerUnreachable as error:
        nodes = context.node_config.get("nodes-of-worker")
        hosted = f"; it was the worker of nodes {nodes}" if nodes else ""
        return _error(message, ERROR_CODES["unreachable"], f"{error}{hosted}")
    except ProtocolError as error:
        return _error(message, ERROR_CODES["protocol"], str(error))


for _kind in Kind:
    _category, _, _action = _kind.value.partition(".")
    getattr(app, _category)(*([_action] if _action else []))(relay)


def _forward(message: Message, context: Context) -> RecordDict:
    kind = Kind(message.metadata.message_type)
    body = _request_body(kind, message.content)
    arrays = from_array_record(arrays_in(message.content), "the server")
    key = Path(str(context.node_config["key-file"])).read_bytes()
    text, shared = _call_worker(context, key, kind, body.model_dump_json(), arrays)
    reply = parse_body(REPLIES[kind], text, "the node worker")
    content = RecordDict({"config": ConfigRecord({"body": reply.model_dump_json(), "version": __version__})})
    if shared is not None:
        content["arrays"] = as_array_record(shared)
    if isinstance(reply, TrainReply):
        content["metrics"] = _metrics(reply)
    return content


def _call_worker(
    context: Context, key: bytes, kind: Kind, body: str, arrays: Mapping[str, np.ndarray]
) -> tuple[bytes, SharedArrays | None]:
    """Send the worker a request, again for ``retry-timeout-s`` seconds where it is restarted when it dies."""
    address = str(context.node_config["socket"])
    retry_timeout_s = float(context.node_config.get("retry-timeout-s", 0.0))
    deadline, deaths = time.monotonic() + retry_timeout_s, 0
    while True:
        try:
            return call_worker(address, key, kind, body, arrays)
        except WorkerUnreachable as error:
            deaths += error.started
            if not retry_timeout_s or deaths == MAX_DEATHS or time.monotonic() > deadline:
                raise
            if error.started:
                deadline = time.monotonic() + retry_timeout_s
            time.sleep(RETRY_SECONDS)


def _request_body(kind: Kind, content: RecordDict) -> Body:
    text = config_in(content).get("body", "{}")
    if not isinstance(text, str):
        raise ProtocolError("the server sent a body that is not text")
    return parse_body(REQUESTS[kind], text, "the server")


def _metrics(reply: TrainReply) -> MetricRecord:
    """Metrics that Flower's strategies weigh and average; undefined ones are left out."""
    values = reply.model_dump(exclude={"fold", "server_round", "num_examples", "shares"})
    metrics = MetricRecord({name: float(value) for name, value in values.items() if value is not None})
    metrics["num-examples"] = reply.num_examples
    return metrics


def _error(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)

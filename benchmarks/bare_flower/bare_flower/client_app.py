"""A client that changes every value, as training would, and sends them back."""

from __future__ import annotations

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Multiply with a factor of the node's own, so that no two nodes send the same objects."""
    factor = np.float32(1 - 0.001 * int(context.node_config["number"]))
    arrays = message.content.array_records["arrays"]
    started = time.perf_counter()
    state = {name: array.numpy() for name, array in arrays.items()}
    loaded = time.perf_counter()
    for name, values in state.items():
        state[name] = values * factor
    trained = time.perf_counter()
    metrics = {"num-examples": 10, "seconds_train": trained - loaded, "seconds_load": loaded - started}
    record = ArrayRecord({name: Array(values) for name, values in state.items()})
    return Message(RecordDict({"arrays": record, "metrics": MetricRecord(metrics)}), reply_to=message)

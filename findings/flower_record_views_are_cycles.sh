#!/usr/bin/env bash
# Memory of messages that were read through array_records, config_records or metric_records and let go.
#
# Versions:  flwr 1.42.0
# Guess:     a message's arrays are freed with the last name of the message, as other Python objects are.
# Behaviour: each of the three views refers to itself (it keeps its own bound method) and to the whole content, so the
#            arrays stay until Python's cyclic garbage collector runs. That counts objects, not bytes: dozens of messages
#            stay meanwhile, however large, and all of them where it is off. Reading content["arrays"] leaves nothing
#            behind. Flower's own strategies read through the views.
# Output:    100 messages read and let go, arrays left with collector off, with collector on, after gc.collect():
#            by key 0, 0, 0; array_records 100, 35, 0; config_records 100, 35, 0; metric_records 100, 35, 0;
#            FedAvg 100, 11, 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0 numpy==2.3.5
cd "$folder"
FLWR_TELEMETRY_ENABLED=0 venv/bin/python - 2> /dev/null <<'PYTHON'
import gc
import weakref

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # as Flower's own processes set it
strategy = FedAvg()


def left(read, collector):
    """How many of 100 arrays are there after their messages are gone, and how many of them after gc.collect()."""
    gc.collect()
    (gc.enable if collector else gc.disable)()
    arrays = []
    for _ in range(100):
        record = ArrayRecord({"weight": Array(np.zeros(1000, np.float32))})
        metrics, config = MetricRecord({"num-examples": 5}), ConfigRecord({"lr": 0.1})
        content = RecordDict({"arrays": record, "metrics": metrics, "config": config})
        message = Message(content, dst_node_id=1, message_type="train")
        arrays.append(weakref.ref(record["weight"]))
        read(message)
        del record, content, message
    before = sum(array() is not None for array in arrays)
    gc.collect()
    return before, sum(array() is not None for array in arrays)


ways = {
    "by key": lambda message: message.content["arrays"],
    "array_records": lambda message: message.content.array_records["arrays"],
    "config_records": lambda message: message.content.config_records["config"],
    "metric_records": lambda message: message.content.metric_records["metrics"],
    "FedAvg": lambda message: strategy.aggregate_train(1, [message]),
}
seen = {}
for way, read in ways.items():
    (off, after_off), (on, after_on) = left(read, collector=False), left(read, collector=True)
    seen[way] = (off, on, after_off + after_on)
print("; ".join(f"{way} {off}, {on}, {after}" for way, (off, on, after) in seen.items()))
assert seen.pop("by key") == (0, 0, 0)
assert all(off == 100 and on > 0 and after == 0 for off, on, after in seen.values())
PYTHON

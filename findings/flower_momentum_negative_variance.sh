#!/usr/bin/env bash
# Networks with batch normalisation under Flower's server momentum (FedAvgM), as state_dict() sends them.
#
# Versions:  flwr 1.42.0
# Guess:     a running variance stays among the values that nodes send, which are positive.
# Behaviour: FedAvgM treats all arrays alike: momentum carries a running variance past what nodes send, here below 0. Its
#            square root is NaN, so predictions are, while training goes on as if all were well.
# Output:    both nodes send 0.1; the server has 1.0, 0.1, -0.71, -0.629
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0 numpy==2.3.5
cd "$folder"
FLWR_TELEMETRY_ENABLED=0 venv/bin/python - 2> /dev/null <<'PYTHON'
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvgM
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # as Flower's own processes set it


class Nodes:
    def get_node_ids(self):
        return [1, 2]


def record(value):
    return ArrayRecord({"norm.running_var": Array(np.array([value], np.float32))})


strategy = FedAvgM(server_learning_rate=1.0, server_momentum=0.9)
held = record(1.0)
seen = [1.0]
for server_round in (1, 2, 3):
    requests = strategy.configure_train(server_round, held, ConfigRecord(), Nodes())
    replies = [
        Message(RecordDict({"arrays": record(0.1), "metrics": MetricRecord({"num-examples": 5})}), reply_to=request)
        for request in requests
    ]
    held, _ = strategy.aggregate_train(server_round, replies)
    seen.append(round(float(held["norm.running_var"].numpy()[0]), 3))
print("both nodes send 0.1; the server has " + ", ".join(map(str, seen)))
assert seen == [1.0, 0.1, -0.71, -0.629], seen
PYTHON

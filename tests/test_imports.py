"""What a server needs runs where there is no training library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
WITHOUT_TRAINING_LIBRARIES = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "lightning", "nnunetv2", "monai", "torchmetrics"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
MERGE = """
import json
from fednnunet.fingerprint import DatasetFingerprint, merge_fingerprints
golden = json.load(open(sys.argv[1] + "/fingerprints.json"))
parts = [DatasetFingerprint.from_json(json.dumps(part)) for part in golden["fingerprints"]]
print(merge_fingerprints(parts)["spacings"] == golden["merged"]["spacings"])
"""
AVERAGE = """
import json
import numpy as np
from fednnunet.server.strategy.averaging import StreamingAverage
from fednnunet.server.strategy.layer_matching import match_layers
golden = json.load(open(sys.argv[1] + "/aggregation.json"))
states = [{name: np.array(values) for name, values in state.items()} for state in golden["states"]]
groups = match_layers({node: {name: array.shape for name, array in state.items()} for node, state in enumerate(states)})
average = StreamingAverage()
for node, state in enumerate(states):
    average.add({group: state[layer] for layer, group in groups[node].items()})
means = average.result()
same = all(np.allclose(means[name], mean) for name, mean in golden["mean"].items())
print(same and sorted(means) == sorted(golden["common"]))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TRAINING_LIBRARIES + code, str(GOLDEN)]
    return subprocess.run(command, capture_output=True, text=True)


def test_training_libraries_are_absent_here() -> None:
    for module in ("torch", "nnunetv2", "lightning.pytorch"):
        assert f"No module named '{module.partition('.')[0]}" in run(f"import {module}").stderr


def test_fingerprints_merge_without_training_libraries() -> None:
    result = run(MERGE)
    assert result.stdout == "True\n", result.stderr


def test_layers_average_without_training_libraries() -> None:
    result = run(AVERAGE)
    assert result.stdout == "True\n", result.stderr


def test_an_audit_is_read_without_training_libraries() -> None:
    result = run("import fednnunet.audit.report; print('flwr' in sys.modules)")
    assert result.stdout == "False\n", result.stderr


def test_servers_and_nodes_start_without_what_reads_images() -> None:
    result = run("import fednnunet.cli.main; print({'SimpleITK', 'pydicom', 'highdicom'} & set(sys.modules))")
    assert result.stdout == "set()\n", result.stderr

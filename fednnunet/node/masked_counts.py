"""Counts that only their sum over all nodes tells: with secure sums, a node sends no other ones.

The masks of pairs cancel where every node's counts are added up; there are no shares for missing ones. So a node counts
for one set of nodes in a run: the difference of two sums would be the counts of one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import FingerprintRequest
from fednnunet.exchange.quantities import Counts
from fednnunet.files import write_atomically
from fednnunet.node.secure_rounds import SecureRounds

COUNTED_WITH = "counted_with.json"
"""File in the node's folder of a run: the nodes whose counts are added up with its own."""


def mask_counts(secure: SecureRounds, request: FingerprintRequest, counts: Counts, folder: Path) -> Counts:
    """``counts`` with masks that cancel in the sum over all nodes whose keys are in ``request``.

    Raises:
        ProtocolError: counts in clear are asked for, for too few nodes, or for others than before in this run.
    """
    if request.secure_run is None or not request.keys:
        raise ProtocolError("the server asks for counts in clear, which are summed securely here")
    member = secure.join(request)
    members = sorted(key.node for key in request.keys)
    quantities = sorted(counts)
    vector = np.array([count for quantity in quantities for count in counts[quantity]], np.int32)
    below = json.dumps([(quantity, (request.below or {})[quantity]) for quantity in quantities])
    member.mask_for_all(vector, members, request.secure_run, hashlib.sha256(below.encode()).hexdigest())
    _hold_to(folder / COUNTED_WITH, members)
    masked = iter(vector.tolist())
    return {quantity: [next(masked) for _ in counts[quantity]] for quantity in quantities}


def _hold_to(path: Path, members: list[str]) -> None:
    """Keep to the nodes that were first counted with in a run's folder, on disk before anything leaves."""
    before = json.loads(path.read_text()) if path.is_file() else None
    if before is None:
        write_atomically(path, json.dumps(members))
    elif before != members:
        raise ProtocolError(
            f"cases were counted for {', '.join(before)} in this run and are not counted for {', '.join(members)}: the "
            "difference would tell one node's; start a new run"
        )

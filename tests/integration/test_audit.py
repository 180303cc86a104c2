"""What the nodes of a whole federation logged, beside what the server counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from fednnunet.audit.reader import find_logs, read_trail, summarise
from fednnunet.exchange.messages import Kind
from tests.integration.conftest import CENTRES
from tests.integration.test_exchange import HEADER

pytestmark = pytest.mark.xdist_group("finished")


def test_the_nodes_logs_agree_with_the_servers_count_of_bytes(finished: Callable[[str], Path]) -> None:
    run = finished("asym")
    rounds = pd.read_csv(run / "rounds.csv")
    trails = {path.parent.name: read_trail(path) for path in find_logs(run)}
    assert set(trails) == {*CENTRES, "Riga"}
    for node, trail in trails.items():
        assert not trail.breaks
        told = summarise(trail.entries)
        assert (told.unexpected, told.uncompared, told.withheld) == ([], 0, 0)
        assert "case_" not in trail.path.read_text()
        trained = {
            entry.asked["server_round"]: sum(tensor.bytes + HEADER for tensor in entry.tensors.values())
            for entry in trail.entries
            if entry.kind is Kind.TRAIN and entry.asked["server_round"]
        }
        counted = rounds[rounds.node == node].set_index("round")["bytes_up"]
        assert trained == counted.to_dict()
    assert {entry.kind for entry in trails["Riga"].entries} == {Kind.FINGERPRINT, Kind.KEEP_MODEL, Kind.SCORE_MODELS}
    assert not any(entry.tensors for entry in trails["Riga"].entries), "an external centre has no model to send"

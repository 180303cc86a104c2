"""Flower's FedAvg as it is, with a clock around its rounds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class TimedFedAvg(FedAvg):
    """FedAvg that writes down how long each round took.

    Args:
        record: file that takes a JSON line per round.
        options: of FedAvg.
    """

    def __init__(self, record: Path, **options: Any) -> None:
        super().__init__(**options)
        self.record = record
        self.started = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The clock starts here."""
        self.started = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The clock stops here."""
        aggregated, metrics = super().aggregate_train(server_round, replies)
        wall = time.perf_counter() - self.started
        if aggregated is None or metrics is None:
            raise RuntimeError(f"round {server_round}: no result")
        line = {"round": server_round, "wall": wall, "training": metrics["seconds_train"]}
        with self.record.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return aggregated, metrics


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds, from random values."""
    config = context.run_config
    shapes = json.loads(Path(str(config["shapes"])).read_text())
    rng = np.random.default_rng(0)
    state = {name: Array(rng.standard_normal(shape, dtype=np.float32)) for name, shape in shapes.items()}
    nodes = int(config["nodes"])
    strategy = TimedFedAvg(
        Path(str(config["record"])), fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes
    )
    strategy.start(grid, ArrayRecord(state), num_rounds=int(config["rounds"]))

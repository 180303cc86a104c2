"""TensorBoard's files, read back by TensorBoard."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fednnunet.reporting.run_folder import read_run
from fednnunet.reporting.tables.results_table import summarise
from fednnunet.tracking.tensorboard_tracker import TensorBoardTracker
from tests.support.run_folders import many_nodes, track

MakeRun = Callable[..., Path]


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def curve(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(tag)}


def test_curves_scores_and_pictures_are_those_of_the_run_folder(make_run: MakeRun) -> None:
    folder = make_run("asym", overlays=True)
    track(TensorBoardTracker(folder), folder)
    run = read_run(folder)
    rows = run.rounds[run.rounds["node"] == "NACT"].set_index("round")
    node, server = read(folder / "tensorboard" / "NACT"), read(folder / "tensorboard" / "server")
    for column in ("train_loss", "val_loss", "seconds_train", "bytes_up"):
        assert curve(node, column) == pytest.approx(dict(rows[column]), rel=1e-6)
    assert curve(server, "bytes_up/total") == dict.fromkeys(range(1, 13), 4 * 3_100_000)
    summary = summarise(run.cases).set_index("node")
    assert curve(server, "dsc/KAUNO") == {12: pytest.approx(summary.loc["KAUNO", "dsc"])}
    assert curve(server, "dsc/mean") == {12: pytest.approx(summary.drop(index="KAUNO")["dsc"].mean())}
    (picture,) = node.Images("held-out case")
    assert picture.encoded_image_string.startswith(b"\x89PNG")


def test_curves_of_several_folds_are_told_apart(tmp_path: Path) -> None:
    tracker = TensorBoardTracker(tmp_path)
    tracker.on_run_start({"fold": [0, 1]})
    for fold in (0, 1):
        tracker.on_fold_start(fold, 1, 0)
        tracker.on_round_end(1, [{"node": "Oslo", "train_loss": float(fold)}])
    tracker.on_run_end()
    events = read(tmp_path / "tensorboard" / "Oslo")
    assert [curve(events, f"fold_{fold}/train_loss") for fold in (0, 1)] == [{1: 0.0}, {1: 1.0}]


def test_it_loads_no_training_library(tmp_path: Path) -> None:
    code = f"""
import sys
from fednnunet.tracking.tensorboard_tracker import TensorBoardTracker
tracker = TensorBoardTracker({str(tmp_path)!r})
tracker.on_round_end(1, [{{"node": "Oslo", "train_loss": 0.5}}])
tracker.on_run_end()
print(sorted({{"torch", "tensorflow", "lightning"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


def test_many_nodes_are_summarised(make_run: MakeRun) -> None:
    nodes, external = many_nodes()
    folder = make_run("asym", nodes=nodes, external=external, held_out=None, overlays=True)
    track(TensorBoardTracker(folder), folder)
    assert [path.name for path in (folder / "tensorboard").iterdir()] == ["server"]
    events, run = read(folder / "tensorboard" / "server"), read_run(folder)
    by_round = run.rounds.groupby("round")["pseudo_dice"]
    lowest = curve(events, "pseudo_dice/lowest")
    assert lowest == pytest.approx(dict(by_round.min().dropna()), rel=1e-6)
    summary = summarise(run.cases).set_index("node")["dsc"]
    assert curve(events, "dsc/highest") == {12: pytest.approx(summary[list(nodes)].max(), rel=1e-6)}
    assert len(events.Tags()["scalars"]) < 40
    assert len(events.Tags()["images"]) == 6

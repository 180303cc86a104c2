"""W&B without an account, for real: what was logged is read back from the files it wrote."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import wandb

from fednnunet.errors import ConfigError
from fednnunet.reporting.run_folder import read_run
from fednnunet.reporting.tables import SUMMARY_COLUMNS, summarise
from fednnunet.reporting.tracking import CsvTracker, Tracker, WandbTracker

MakeRun = Callable[..., Path]


@dataclass
class Logged:
    """One W&B run, read back."""

    group: str = ""
    job_type: str = ""
    history: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    files: list[Path] = field(default_factory=list)


def records(path: Path) -> Iterator[Any]:
    """Records of a ``.wandb`` file: LevelDB's log format, 32 KiB blocks, a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, block, at, parts = path.read_bytes(), 32768, 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_wandb(folder: Path) -> dict[str, Logged]:
    wandb.teardown()  # its process may still be writing after a run's finish
    runs = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        logged, name = Logged(files=list(path.parent.glob("files/media/**/*.*"))), ""
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
                logged.group, logged.job_type = record.run.run_group, record.run.job_type
                updates, target = record.run.config.update, logged.config
            elif kind == "config":
                updates, target = record.config.update, logged.config
            elif kind == "summary":
                updates, target = record.summary.update, logged.summary
            elif kind == "history":
                for item in record.history.item:
                    key = item.key or "/".join(item.nested_key)
                    logged.history[key].append(json.loads(item.value_json))
                continue
            elif kind == "exit":
                logged.exit_code = record.exit.exit_code
                continue
            else:
                continue
            for item in updates:
                target[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        runs[name] = logged
    return runs


Offline = tuple[Path, dict[str, Logged]]


def track(tracker: Tracker, folder: Path, *, ok: bool = True) -> None:
    run = read_run(folder)
    tracker.start({key: run.info[key] for key in ("strategy", "dataset", "seed", "fold", "configuration")})
    tracker.log_plans(run.plans)
    for _, rows in run.rounds.groupby("round"):
        tracker.log_round(rows.to_dict("records"))
    tracker.log_result(folder)
    tracker.finish(ok=ok)


@pytest.fixture(scope="module")
def offline(write_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Offline:
    folder = write_run(tmp_path_factory.mktemp("run") / "asym", "asym", overlays=True)
    track(WandbTracker("fednnunet", mode="offline", tags=["test"], folder=folder), folder)
    return folder, read_wandb(folder)


def test_one_group_with_a_run_for_the_server_and_each_node(offline: Offline) -> None:
    _, logged = offline
    assert {name: run.job_type for name, run in logged.items()} == {
        "server": "server",
        **dict.fromkeys(("ISPY1", "ISPY2", "DUKE", "NACT", "KAUNO"), "node"),
    }
    (group,) = {run.group for run in logged.values()}
    assert group.startswith("asym-phantom-seed0-fold0-")
    assert {run.exit_code for run in logged.values()} == {0}


def test_curves_scores_and_plans_are_those_of_the_run_folder(offline: Offline) -> None:
    folder, logged = offline
    run = read_run(folder)
    for node in ("ISPY1", "NACT"):
        rows = run.rounds[run.rounds["node"] == node]
        assert logged[node].history["train_loss"] == pytest.approx(list(rows["train_loss"]))
        assert logged[node].history["pseudo_dice"] == pytest.approx(list(rows["pseudo_dice"].dropna()))
        assert logged[node].config["plan"]["patch_size"] == [56, 56]
    summary = summarise(run.cases).set_index("node")
    for node in ("ISPY1", "KAUNO"):
        assert logged[node].summary["dsc"] == pytest.approx(summary.loc[node, "dsc"])
        assert logged["server"].summary[f"hd95/{node}"] == pytest.approx(summary.loc[node, "hd95"])
    training = summary.drop(index="KAUNO")
    assert logged["server"].summary["dsc/mean"] == pytest.approx(training["dsc"].mean())
    assert logged["server"].history["bytes_up/total"] == [4 * 3_100_000] * 12


def test_final_table_and_pictures_are_there(offline: Offline) -> None:
    _folder, logged = offline
    tables = [path for path in logged["server"].files if "results" in path.name]
    content = json.loads(tables[0].read_text())
    assert content["columns"] == SUMMARY_COLUMNS
    assert [row[1] for row in content["data"]] == ["ISPY1", "ISPY2", "DUKE", "NACT", "KAUNO"]
    for node in ("ISPY1", "KAUNO"):
        assert [path.suffix for path in logged[node].files] == [".png"]


def test_quietly_without_pictures_when_told_so_and_marked_when_failed(
    make_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_run("centralized", overlays=True)
    track(WandbTracker("fednnunet", "mine", mode="offline", folder=folder, pictures=False), folder, ok=False)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    logged = read_wandb(folder)
    assert {"server", "centralized"} <= set(logged)
    assert not any(path.suffix == ".png" for run in logged.values() for path in run.files)
    assert {(run.group, run.exit_code) for run in logged.values()} == {("mine", 1)}


def test_no_account_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = WandbTracker("fednnunet", "g", mode="online", folder=tmp_path)
    with pytest.raises(ConfigError, match="WANDB_MODE=offline"):
        tracker.start({})
    tracker.finish(ok=False)


def test_csv_adds_no_files(make_run: MakeRun) -> None:
    folder = make_run("asym")
    before = sorted(folder.rglob("*"))
    track(CsvTracker(), folder)
    assert sorted(folder.rglob("*")) == before


def test_curves_of_several_folds_are_told_apart(tmp_path: Path) -> None:
    tracker = WandbTracker("fednnunet", mode="offline", folder=tmp_path)
    tracker.start({"strategy": "asym", "dataset": "x", "seed": 0, "fold": [0, "all"]})
    for fold in (0, "all"):
        tracker.begin_fold(fold, 2)
        for server_round in (1, 2):
            tracker.log_round(
                [{"node": "Oslo", "round": server_round, "train_loss": float(server_round), "fold": fold}]
            )
    tracker.finish(ok=True)
    history = read_wandb(tmp_path)["Oslo"].history
    assert history["fold_0/train_loss"] == history["fold_all/train_loss"] == [1.0, 2.0]
    assert history["round"] == [1, 2, 1, 2]


def test_an_interrupted_run_goes_on_under_its_ids(tmp_path: Path) -> None:
    for server_round in (1, 2):
        tracker = WandbTracker("fednnunet", mode="offline", folder=tmp_path)
        tracker.start({"strategy": "asym", "dataset": "x", "seed": 0, "fold": 0, "started": f"at {server_round}"})
        tracker.begin_fold(0, 2)
        tracker.log_round([{"node": "Oslo", "round": server_round, "train_loss": 0.5}])
        tracker.finish(ok=server_round == 2)
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 2, "one id for the server, one for the node"
    assert {run.group for run in read_wandb(tmp_path).values()} == {"asym-x-seed0-fold0-at 1"}

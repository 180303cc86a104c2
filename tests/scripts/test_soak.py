"""The script that judges a long run, on samples and records whose faults are known."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/soak.py"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# kills ---------------------------------------------------------------------------------------------------


def test_kills_are_those_of_the_seed_and_reach_every_part_of_every_node(soak: ModuleType) -> None:
    nodes = ["Oslo", "Porto"]
    kills = soak.plan_kills(2000, 8, nodes, seed=3)
    assert kills == soak.plan_kills(2000, 8, nodes, seed=3)
    assert kills != soak.plan_kills(2000, 8, nodes, seed=4)
    assert len(kills) == pytest.approx(2000 / 8, rel=0.2)
    assert [kill.after_round for kill in kills] == sorted(kill.after_round for kill in kills)
    counts = Counter(kill.part for kill in kills)
    assert set(counts) == set(soak.PARTS)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {kill.node for kill in kills if kill.part == "connection"} == set(nodes)
    assert {kill.node for kill in kills if kill.part in ("server", "superlink", "train")} == {None}


# leaks ---------------------------------------------------------------------------------------------------


def samples(soak: ModuleType, **slopes: float) -> list[Any]:
    """Twenty samples with noise, a start that grows anyway, kills that show, and growth per round of what is named."""
    rng = np.random.default_rng(0)
    found = []
    for server_round in range(10, 210, 10):
        start = min(server_round, 60)
        sample = soak.Sample(server_round, server_round * 3.0, 4000 + start + rng.normal(), 500, 30, 9.0, 2.0, 40.0)
        changes = {name: getattr(sample, name) + slope * server_round for name, slope in slopes.items()}
        found.append(replace(sample, **changes))
    found[14] = replace(found[14], memory_mib=1500.0, processes=12)  # just after a kill
    return found


def test_what_does_not_grow_holds_though_the_start_grows_and_kills_show(soak: ModuleType) -> None:
    verdicts = soak.judge(samples(soak))
    assert {verdict.measure for verdict in verdicts if verdict.holds} == set(soak.LIMITS)


@pytest.mark.parametrize("measure", ["memory_mib", "handles", "processes", "state_mib", "run_mib", "nodes_mib"])
def test_a_leak_is_found_at_its_size(soak: ModuleType, measure: str) -> None:
    slope = 3 * soak.LIMITS[measure]
    verdicts = soak.judge(samples(soak, **{measure: slope}))
    (found,) = [verdict for verdict in verdicts if not verdict.holds]
    assert found.measure == measure
    assert found.slope == pytest.approx(slope, rel=0.1)


def test_too_few_samples_are_no_good_verdict(soak: ModuleType) -> None:
    assert not any(verdict.holds for verdict in soak.judge(samples(soak)[:4]))


def test_a_process_and_those_it_started_are_measured_until_they_end(soak: ModuleType, tmp_path: Path) -> None:
    opened = [tmp_path / f"{number}" for number in range(20)]
    child = f"import sys; f = [open(p, 'w') for p in {[str(p) for p in opened]}]; print('ready', flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    found = soak.trees([process.pid, process.pid])
    memory, handles, number = soak.measure_processes(found)
    assert number == 2
    assert 26 <= handles < 60
    assert 5 < memory < 200
    process.communicate("end\n")
    assert soak.measure_processes(found) == (0.0, 0, 0)
    assert soak.trees([process.pid]) == []


def test_disk_is_that_of_files_alone(soak: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(bytes(3 * 2**20))
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "b" / "file")
    (tmp_path / "a" / "dangling").symlink_to(tmp_path / "nowhere")
    assert soak.disk_mib(tmp_path) == 3.0
    assert soak.disk_mib(tmp_path / "nowhere") == 0.0


# records ---------------------------------------------------------------------------------------------------

RECORDED = [(number, node) for number in (1, 2, 3) for node in ("Oslo", "Porto")]
AUDITS = {"Oslo": {1: 1, 2: 2, 3: 1}, "Porto": {1: 1, 2: 1, 3: 1}}


@pytest.mark.parametrize(
    ("recorded", "audits", "problem"),
    [
        (RECORDED, AUDITS, None),
        (RECORDED[:-1], AUDITS, "round 3 has 1 nodes instead of 2"),
        (RECORDED[:4], AUDITS, "round 3 has 0 nodes instead of 2"),
        ([*RECORDED, (2, "Oslo")], AUDITS, "round 2 has node Oslo 2 times"),
        ([*RECORDED, (4, "Oslo")], {**AUDITS, "Oslo": {**AUDITS["Oslo"], 4: 1}}, "round 4 is recorded; there are 3"),
        (RECORDED, {**AUDITS, "Porto": {1: 1, 3: 1}}, "round 2 has node Porto, whose audit log has no such reply"),
        ([*RECORDED, (3, "Lund")], AUDITS, "round 3 has node Lund, which there is not"),
    ],
)
def test_contradicting_records_are_reported(
    soak: ModuleType, recorded: list[tuple[int, str]], audits: dict[str, dict[int, int]], problem: str | None
) -> None:
    assert soak.compare_records(3, recorded, audits, least_nodes=2) == ([problem] if problem else [])


def test_a_round_without_a_node_is_fine_where_fewer_are_enough(soak: ModuleType) -> None:
    assert soak.compare_records(3, RECORDED[:-1], AUDITS, least_nodes=1) == []


def test_books_are_read_from_files(soak: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "rounds.csv").write_text("strategy,round,node,train_loss\nasym,1,Oslo,0.5\nasym,2,Oslo,0.4\n")
    entries: list[dict[str, Any]] = [
        {"kind": "query.fingerprint", "ok": True},
        {"kind": "train", "ok": True, "asked": {"fold": 0}},
        *({"kind": "train", "ok": True, "asked": {"server_round": number}} for number in (1, 1, 2)),
        {"kind": "train", "ok": False, "asked": {"server_round": 3}},
    ]
    path = tmp_path / "audit.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert soak.read_rounds(tmp_path / "rounds.csv") == [(1, "Oslo"), (2, "Oslo")]
    assert soak.read_audit(path) == {0: 1, 1: 2, 2: 1}
    path.write_text(path.read_text() + '{"kind": "tra')
    with pytest.raises(ValueError, match=r"audit\.jsonl, line 7, is torn"):
        soak.read_audit(path)


def test_a_missing_end_is_reported(soak: ModuleType, tmp_path: Path) -> None:
    run, work = tmp_path / "run", tmp_path / "work"
    run.mkdir()
    problems = soak.check_ends(run, {"stage": "train", "finished": False}, {"Oslo": work})
    assert problems == [
        "the run folder holds no finished run",
        "the server says that the run is at stage train",
        "node Oslo has 0 final checkpoints",
    ]
    checkpoint = work / "runs" / "1" / "nnUNet_results" / "Dataset301_Oslo" / "T__P__2d" / "fold_0"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint_final.pth").touch()
    (run / "run.json").write_text(json.dumps({"strategy": "asym", "fold": "all", "nodes": ["Oslo"]}))
    assert soak.check_ends(run, {"finished": True}, {"Oslo": work}) == []

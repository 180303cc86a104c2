"""What is left, and what goes on, after Ctrl-C or the death of a worker."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from fednnunet.training.checkpoint import finished_rounds, intact_rounds
from tests.integration.conftest import CENTRES, Train, command, final_weights, go_on, result_folder
from tests.support.own_trainer import GPU_IS_FULL
from tests.support.train_script import ROOT

LONGER = ("strategy=asym", "trainer.epochs=5")
AUGMENTED = (*LONGER, "compute.augmentation_workers=2", "dataset.centres=[{name: Oslo, dataset: 201}]")
WAIT_SECONDS = 200.0
Whole = Callable[[tuple[str, ...]], Path]


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Folder of an undisturbed run with these options and a worker per node; each is trained once."""

    @functools.cache
    def of(options: tuple[str, ...]) -> Path:
        run = tmp_path_factory.mktemp("whole") / "run"
        assert train(run, *options, "federation.workers=4").returncode == 0
        return run

    return of


def start_and_wait_for_round(
    raw: Path, run: Path, server_round: int, options: tuple[str, ...] = LONGER
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command(raw, run, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
        # Started in the background by a shell, this process ignores SIGINT, and so would its child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for_round(process, run, server_round)
    return process


def wait_for_round(process: subprocess.Popen[str], run: Path, server_round: int) -> None:
    """Until a round of the run is over."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if is_over(run, server_round):
            return
        time.sleep(0.02)
    raise AssertionError(f"round {server_round} was not reached: {process.communicate()}")


def is_over(run: Path, server_round: int) -> bool:
    """Whether every node's figures of a round are written."""
    rounds = run / "rounds.csv"
    return rounds.exists() and bool(re.search(rf"^\w+,{server_round},", rounds.read_text(), re.MULTILINE))


@contextlib.contextmanager
def worker_killed(run: Path, node: str, after_round: int) -> Iterator[list[psutil.Process]]:
    """``kill -9`` a node's worker after a round of a run that this process starts.

    Yields:
        The processes of all nodes when it was killed, filled in then.
    """
    everyone: list[psutil.Process] = []
    stop = threading.Event()

    def wait_and_kill() -> None:
        while not is_over(run, after_round):
            if stop.wait(0.02):
                raise AssertionError(f"round {after_round} was not reached")
        writers = {name: processes_that_write(run / "nodes" / name / "node.log") for name in os.listdir(run / "nodes")}
        everyone.extend(process for processes in writers.values() for process in processes)
        ours = {process.pid for process in writers[node]}
        (worker,) = [process for process in writers[node] if process.ppid() not in ours]
        worker.kill()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(wait_and_kill)
        try:
            yield everyone
        finally:
            stop.set()
        killed.result()


def processes_that_write(log: Path) -> list[psutil.Process]:
    """Below this process, those that have a log open: a worker, and what augments for it."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any(Path(file.path) == log for file in _open_files(child))]


def losses(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "rounds.csv")[["round", "node", "train_loss", "val_loss", "pseudo_dice"]]


INTERRUPTED = {
    "asym": LONGER,
    "bfloat16": (*LONGER, "exchange.dtype=bfloat16"),
    "int4": (*LONGER, "exchange.dtype=int4"),
    "fedadam": ("strategy=fedadam", "trainer.epochs=8", "strategy.local_epochs=2"),
    "two of three nodes per round": ("strategy=asym", "strategy.aggregation.fraction_train=0.6", "trainer.epochs=6"),
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=() if name == "asym" else pytest.mark.nightly)
        for name, options in INTERRUPTED.items()
    ],
)
def test_interrupted_run_of_nodes_in_one_worker_goes_on_to_the_result_of_a_worker_each(
    raw: Path, whole: Whole, tmp_path: Path, options: tuple[str, ...]
) -> None:
    process = start_and_wait_for_round(raw, tmp_path / "run", 2, (*options, "federation.workers=1"))
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"continue={os.path.relpath(tmp_path / 'run', ROOT)}" in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert list((tmp_path / "run").glob("nodes/*/nnUNet_results/*/*/fold_0/checkpoint_latest.pth"))
    assert not (tmp_path / "run" / "cases.csv").exists()

    go_on(tmp_path / "run")
    pd.testing.assert_frame_equal(losses(tmp_path / "run"), losses(whole(options)))
    assert (tmp_path / "run" / "cases.csv").read_text() == (whole(options) / "cases.csv").read_text()
    for node in CENTRES:
        ours, theirs = final_weights(tmp_path / "run", node), final_weights(whole(options), node)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items()), node
    assert not list((tmp_path / "run").glob("strategy_fold_*"))


def test_killed_worker_ends_the_run_by_name_and_it_can_go_on(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with worker_killed(run, "Porto", after_round=1) as everyone:
        result = train(run, *LONGER, "federation.workers=2")
    assert result.returncode == 2
    assert "error: node Porto" in result.stderr
    assert "it was the worker of nodes Porto, Riga" in result.stderr
    assert len(everyone) == len(CENTRES) + 1
    _, alive = psutil.wait_procs(everyone, timeout=10)
    assert not alive
    assert train(run, *LONGER).returncode == 0
    assert sorted(losses(run)["round"].unique()) == [1, 2, 3, 4, 5]


def test_after_a_kill_of_everything_a_damaged_checkpoint_costs_a_round(
    raw: Path, train: Train, whole: Whole, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start_and_wait_for_round(raw, run, 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    damage(newest_checkpoint(run, "Oslo"))
    assert train(run, *LONGER).returncode == 0
    assert "is damaged" in (run / "nodes" / "Oslo" / "node.log").read_text()
    assert re.search(r"goes on from round [2-4]", (run / "train.log").read_text())
    pd.testing.assert_frame_equal(losses(run), losses(whole(LONGER)))
    assert (run / "cases.csv").read_text() == (whole(LONGER) / "cases.csv").read_text()


def newest_checkpoint(run: Path, node: str) -> Path:
    """Of the last round that the node has finished."""
    folder = result_folder(run, node)
    return max(folder.glob("checkpoint_round_*.json"), key=lambda path: int(path.stem.rpartition("_")[2])).with_suffix(
        ".pth"
    )


def damage(path: Path) -> None:
    """Turn over some bits in the middle of a file, as a disk does."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
    path.write_bytes(content)


def _open_files(process: psutil.Process) -> list[psutil._common.popenfile]:
    try:
        return process.open_files()
    except psutil.Error:
        return []


def processes_of(session: int) -> list[psutil.Process]:
    """Processes that ``start_and_wait_for_round`` started, also those whose parents are gone."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.nightly
@pytest.mark.parametrize("end", ["finish", "server killed"])
def test_no_process_of_the_augmentation_is_left_behind(raw: Path, tmp_path: Path, end: str) -> None:
    process = start_and_wait_for_round(raw, tmp_path / "run", 1, AUGMENTED)
    everyone = processes_of(process.pid)
    logs = [node for node in everyone if any(Path(f.path).name == "node.log" for f in _open_files(node))]
    assert len(logs) > 3, "the worker and its augmentation processes write to its log"
    if end == "server killed":
        process.kill()
    process.communicate(timeout=200)
    _, alive = psutil.wait_procs(everyone, timeout=20)
    assert not alive
    assert not processes_of(process.pid)


def test_a_node_out_of_gpu_memory_is_named_and_the_run_goes_on_when_it_has_more(
    train: Train, whole: Whole, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ("strategy=asym", "trainer.epochs=3", "trainer.class=tests.support.own_trainer.LargeAtPorto")
    run.mkdir()
    (run / GPU_IS_FULL).touch()
    result = train(run, *options, "federation.workers=2")
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert "node Porto: out of GPU memory with plans for 8 GB; continue with more of it (gpu_memory.cap=false, " in line
    assert intact_rounds(result_folder(run, "Porto")) == [1]
    for node in ("Oslo", "Lund"):
        kept = finished_rounds(result_folder(run, node))
        assert 1 in kept
        assert intact_rounds(result_folder(run, node)) == sorted(kept)
    (run / GPU_IS_FULL).unlink()
    go_on(run, "gpu_memory.cap=false", "federation.workers=1")
    pd.testing.assert_frame_equal(losses(run), losses(whole(options)))
    assert (run / "cases.csv").read_text() == (whole(options) / "cases.csv").read_text()
    for node in CENTRES:
        ours, theirs = final_weights(run, node), final_weights(whole(options), node)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items()), node


def test_no_process_of_the_augmentation_outlives_its_worker(train: Train, tmp_path: Path) -> None:
    with worker_killed(tmp_path / "run", "Oslo", after_round=1) as everyone:
        assert train(tmp_path / "run", *AUGMENTED).returncode == 2
    assert len(everyone) > 3, "the worker and its augmentation processes write to its log"
    _, alive = psutil.wait_procs(everyone, timeout=20)
    assert not alive


def test_a_federation_goes_on_without_a_node_while_enough_are_in(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with worker_killed(run, "Porto", after_round=1):
        result = train(run, *LONGER, "federation.min_nodes=2", "federation.workers=4")
    assert result.returncode == 0, result.stderr
    assert "node Porto: " in result.stdout
    assert "the federation goes on without it" in result.stdout
    rounds = losses(run)
    assert set(rounds[rounds["round"] == 5].node) == {"Oslo", "Lund"}
    assert set(pd.read_csv(run / "cases.csv").node) == {"Oslo", "Lund", "Riga"}

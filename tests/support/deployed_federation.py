"""A federation of real processes on this machine: server, nodes with TLS and keys, and train.py."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml

from fednnunet.deployment.keys import make_keys
from tests.conftest import write_boxes
from tests.support.train_script import ROOT, run_local

CENTRES = {"Oslo": 201, "Porto": 202, "Riga": 204}
EXTERNAL = ("Riga",)
SMALL = (
    "dataset=custom",
    "trainer=short",
    "trainer.iterations=3",
    "trainer.val_iterations=1",
    "model=small",
    "model.overrides.UNet_base_num_features=4",
    "model.overrides.UNet_max_features_2d=8",
    "compute.threads=1",
)
WAIT_SECONDS = 240.0
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


def write_centres(raw: Path) -> None:
    """Two training centres of different resolutions, and an external one."""
    write_boxes(raw, "Dataset201_Oslo", cases=6, seed=1)
    write_boxes(raw, "Dataset202_Porto", cases=8, shape=(6, 80, 80), spacing=(3.0, 0.5, 0.5), seed=2)
    write_boxes(raw, "Dataset204_Riga", cases=2, seed=4)


def train_locally(raw: Path, run: Path, *options: str, nodes: Sequence[str] = tuple(CENTRES)) -> None:
    """The same training on the local grid."""
    centres = ", ".join(
        f"{{name: {name}, dataset: {CENTRES[name]}, external: {str(name in EXTERNAL).lower()}}}" for name in nodes
    )
    given = [f"dataset.centres=[{centres}]", f"dataset.raw_folder={raw}", f"paths.cache={raw.parent / 'cache'}"]
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, *given, f"hydra.run.dir={run}", *options]
    result = run_local(command)
    assert result.returncode == 0, result.stdout + result.stderr


def free_port() -> int:
    """A port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Federation:
    """Server, nodes and train.py as a user starts them, each in a process group of its own.

    Args:
        folder: takes keys, state, work folders and logs.
        raw: folder of the datasets.
        nodes: names of the nodes.
        address: of the server, as nodes reach it.
        inside: prefix of a command by the name of the machine it runs on (``server`` or a node).
    """

    def __init__(
        self,
        folder: Path,
        raw: Path,
        nodes: Sequence[str] = tuple(CENTRES),
        address: str | None = None,
        inside: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.folder, self.raw, self.nodes = folder, raw, nodes
        self.address = address or f"127.0.0.1:{free_port()}"
        self.inside = inside or {}
        self.keys, self.state = folder / "keys", folder / "server"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        make_keys(self.keys, [self.address.rpartition(":")[0]], nodes)

    # processes -----------------------------------------------------------------------------------------

    def start_server(self, wait: bool = True) -> None:
        """``fednnunet server up``; with ``wait``, until it serves."""
        self._start("server", ["server", "up", str(self.keys), "--address", self.address, "--state", str(self.state)])
        if wait:
            self.wait_for(lambda: (self.state / "server.json").is_file(), "the server")

    def start_node(self, name: str, **changes: Any) -> None:
        """``fednnunet node up``."""
        self._start(name, ["node", "up", str(self.write_node_file(name, **changes))])

    def write_node_file(self, name: str, **changes: Any) -> Path:
        """``node.yaml`` of a node."""
        content = {
            "name": name,
            "data": CENTRES.get(name),  # other nodes name their own
            "raw_folder": str(self.raw),
            "external": name in EXTERNAL,
            "server": self.address,
            "certificate": str(self.keys / "ca.crt"),
            "key": str(self.keys / "nodes" / name / "node.key"),
            "node_certificate": str(self.keys / "nodes" / name / "node.crt"),
            "folder": "work",
            "compute": {"threads": 1},
            **changes,
        }
        path = self.folder / "nodes" / name / "node.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
        return path

    def work_folder(self, name: str) -> Path:
        """Of a node."""
        return self.folder / "nodes" / name / "work"

    def start_train(self, run: Path, *options: str) -> None:
        """``python train.py federation=deployment``; in the same folder it goes on."""
        centres = ", ".join(f"{{name: {name}, external: {str(name in EXTERNAL).lower()}}}" for name in self.nodes)
        given = [f"dataset.centres=[{centres}]", "federation=deployment", f"federation.server={self.state}"]
        command = [sys.executable, str(ROOT / "train.py"), *SMALL, *given, f"hydra.run.dir={run}", *options]
        self._spawn("train", [*self.inside.get("server", ()), *command])

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "fednnunet.cli.main", *arguments]
        self._spawn(name, [*self.inside.get(name, ()), *command])

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command, stdout=out, stderr=out, cwd=ROOT, env=ENVIRONMENT, start_new_session=True
            )

    def output(self, name: str) -> str:
        """What a process and those before it have printed."""
        return (self.folder / f"{name}.out").read_text()

    def wait_for(self, there: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
        """Until ``there`` returns something true; every process must live meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := there():
                return found
            for name, process in self.processes.items():
                if name != "train" and process.poll() is not None:
                    raise AssertionError(f"{name} ended: {self.output(name)}")
            time.sleep(0.02)
        raise AssertionError(f"{what} did not come in {seconds} s: {self.everything()}")

    def finish_train(self, seconds: float = WAIT_SECONDS) -> str:
        """Wait for train.py's end, which must be a good one; what it printed."""
        try:
            code = self.processes.pop("train").wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"train.py did not end in {seconds} s: {self.everything()}") from None
        assert code == 0, self.everything()
        return self.output("train")

    def fail_train(self, seconds: float = WAIT_SECONDS) -> str:
        """Wait until train.py ends with an error that the user can fix; what it printed."""
        code = self.processes.pop("train").wait(seconds)
        assert code == 2, self.everything()
        return self.output("train")

    def everything(self) -> str:
        """All outputs and logs, for the failure of a test."""
        logs = [*self.folder.glob("*.out"), *self.folder.glob("nodes/*/work/*.log")]
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)

    def status(self) -> dict[str, Any]:
        """Where the run stands; empty before it has begun."""
        path = self.state / "run_status.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    # faults --------------------------------------------------------------------------------------------

    def part(self, of: str, name: str) -> psutil.Process | None:
        """The process of ``worker``, ``connection`` (of node ``of``) or ``superlink`` (of the server), if it lives."""
        log = {"worker": "worker.log", "connection": "connection.log", "superlink": "server.log"}[name]
        with contextlib.suppress(psutil.Error, KeyError):
            for child in psutil.Process(self.processes[of].pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any(Path(file.path).name == log for file in child.open_files()):
                        return child
        return None

    def kill(self, of: str, name: str) -> None:
        """``kill -9`` a part of a node or of the server, as soon as it lives."""
        self.wait_for(lambda: self.part(of, name), f"{name} of {of}").kill()

    def stop(self, name: str) -> None:
        """End one machine's part, as ``systemctl stop`` does."""
        process = self.processes.pop(name)
        process.terminate()
        process.wait(40)

    def kill_all_of(self, name: str) -> None:
        """``kill -9`` everything that runs on one machine."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        """End all processes, as Ctrl-C does; what is left of them is an error."""
        groups = [process.pid for process in self.processes.values()]
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
        # What serves forks, and what looks after shared memory, end when they see that they are alone.
        _, left = psutil.wait_procs([p for p in psutil.process_iter() if _group(p.pid) in groups], timeout=20)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.processes.clear()
        assert not left, f"processes were left behind: {left}"


def _group(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


@contextlib.contextmanager
def waiting_server(folder: Path, *nodes: str) -> Iterator[Federation]:
    """A server that knows these nodes, of which none runs."""
    federation = Federation(folder, folder / "raw", nodes=nodes)
    try:
        federation.start_server()
        registered = [f"node {node} may join" for node in nodes]
        federation.wait_for(lambda: all(line in federation.output("server") for line in registered), "registration")
        yield federation
    finally:
        federation.end()


@contextlib.contextmanager
def running(federation: Federation) -> Iterator[Federation]:
    """Server and all nodes up; everything is ended afterwards."""
    try:
        federation.start_server()
        for node in federation.nodes:
            federation.start_node(node)
        yield federation
    finally:
        federation.end()


def reached(federation: Federation, run: Path, stage: str) -> bool:
    """Whether ``run`` is at a stage, or has finished a round (``round 2``)."""
    status = federation.status()
    if status.get("run") != str(run):
        return False
    if stage.startswith("round"):
        return bool(status["round"] >= int(stage.split()[1]))
    return bool(status["stage"] == stage)


def check_result(run: Path, undisturbed: Path) -> None:
    """Whether two runs came to the same losses and scores, to the last digit."""
    pd.testing.assert_frame_equal(losses(run), losses(undisturbed))
    assert (run / "cases.csv").read_text() == (undisturbed / "cases.csv").read_text()


def losses(run: Path) -> pd.DataFrame:
    """What the nodes' training came to, round by round."""
    return pd.read_csv(run / "rounds.csv")[["round", "node", "train_loss", "val_loss", "pseudo_dice"]]

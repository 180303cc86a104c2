"""Processes of a measurement. It imports little: what a script imports is in the memory of all that it spawns."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import psutil

START_SECONDS = 120
END_SECONDS = 10


class Processes:
    """Processes of a measurement, each with a log; a context manager that ends them and all they started.

    They find the commands of this script's environment, such as Flower's, also where it is not activated.

    Args:
        folder: takes the logs.
        environment: variables in addition to our own.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        self.environment = {**os.environ, "PATH": path, **environment}
        self._started: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}

    def __enter__(self) -> Processes:
        return self

    def start(self, name: str, *command: str) -> None:
        """Start ``command``; it writes to ``name.log``. A Ctrl-C of the terminal does not reach it: we end it."""
        log = (self.folder / f"{name}.log").open("wb")
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, start_new_session=True
        )
        self._started[name] = process, log

    def pid(self, name: str) -> int:
        """Of the process that was started under this name."""
        return self._started[name][0].pid

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run ``command`` to its end."""
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=START_SECONDS)

    def check(self) -> None:
        """Raise if one has ended, with the end of its log."""
        for name, (process, _) in self._started.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}:\n{self.log(name)}")

    def log(self, name: str) -> str:
        """The end of a process's log."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def wait_for(self, what: str, done: Callable[[], bool], seconds: float) -> None:
        """Until ``done``; raises if a process ends before, or time is up."""
        deadline = time.monotonic() + seconds
        while not done():
            self.check()
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {name}\n{self.log(name)}" for name in self._started)
                raise TimeoutError(f"{what} did not come in {seconds} s\n{logs}")
            time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        mine = [psutil.Process(process.pid) for process, _ in self._started.values() if process.poll() is None]
        everyone = [*mine, *(child for process in mine for child in process.children(recursive=True))]
        for process in mine:
            process.terminate()
        _, alive = psutil.wait_procs(everyone, timeout=END_SECONDS)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process, log in self._started.values():
            process.wait()
            log.close()


def free_port() -> int:
    """A TCP port of loopback that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]

"""Memory and seconds outside training of many nodes that share the worker processes of one machine.

    python benchmarks/many_nodes.py [--against CHECKOUT] [--nodes 10,30,100] [--parts memory,demo,large]

Whole trainings of ``train.py dataset=phantom_many`` on small images, with few steps. ``memory``: the largest federation
with two workers, against four nodes with a worker each; these train in CHECKOUT, an older one with a ``.venv`` of its
own that need not know of shared workers, or in this one. ``demo``: seconds outside training by number of nodes, with
the network of ``make demo``. ``large``: the same with 30 M parameters.

Seconds outside training are those of a round (``train.log``) without the training (``rounds.csv``) of the worker that
trains longest: loading and sending layers, checkpoints, the change from one node to the next, and averaging.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the next imports, however this script is started

from fednnunet.config.numbered_centres import numbered_centres  # noqa: E402
from fednnunet.node.launcher import memory_of_tree  # noqa: E402
from fednnunet.run_files import LOG_FILE, ROUNDS_FILE  # noqa: E402

NODES, WORKERS, ROUNDS = (10, 30, 100), 2, 4
LARGE_NODES, LARGE_CACHE_GIB = 6, 2.0
OWN_NODES = 4
"""Nodes with a worker each that memory is compared with."""
WARM_UP = 1
"""Rounds that are not counted: they begin with building Lightning's trainer."""
LARGE_ROUNDS, LARGE_WARM_UP = 8, 4
"""Three checkpoints of each node are kept. From the fifth round on, a new one is written to memory that another left,
as in the rest of a training; before, the system looks for memory that nobody has used, which costs several times more.
"""
SAMPLE_SECONDS, SAMPLE_SHARE = 0.5, 0.02
"""Seconds between two looks at memory, and the most of a core's time that these take: it is counted page by page."""
MEMORY_RATIO, DEMO_SECONDS, LARGE_SECONDS, SLOPE = 1.5, 0.05, 0.5, 1.0
"""Targets."""
MB = 1e6
START = re.compile(r"(\S+ \S+) INFO \S+: \w+: train$")
END = re.compile(r"(\S+ \S+) INFO \S+: fold \w+, round (\d+): ")
IMAGES = (
    *("dataset.generator.external_fraction=0", "dataset.generator.hospitals.median_cases=5"),
    *("dataset.generator.hospitals.log_cases_std=0", "dataset.generator.hospitals.pixel_spacing=[2.6,3.5]"),
)
"""Five cases each, of 24 to 32 pixels along a side."""
NETWORK = ("model.overrides.UNet_min_batch_size=2", "model.overrides.max_dataset_covered=0.0001")
LARGE = ("model.overrides.UNet_base_num_features=320", "model.overrides.UNet_max_features_2d=640", "fold=all")
"""Images this small get three stages; these many features make them 30 M parameters. No case is held out and scored."""


@dataclass(frozen=True)
class Training:
    """A finished run.

    Attributes:
        folder: its folder.
        seconds: from start to end.
        pss: bytes, most that all its processes held together; memory that they share counts once.
    """

    folder: Path
    seconds: float
    pss: float


@dataclass(frozen=True)
class Round:
    """What a round took, in seconds.

    Attributes:
        wall: from the end of the last one to its own.
        training: of the worker that trained longest, all its nodes one after another.
    """

    wall: float
    training: float

    @property
    def outside(self) -> float:
        """Seconds outside training."""
        return self.wall - self.training


def train(checkout: Path, run: Path, overrides: Sequence[str]) -> Training:
    """Run a checkout's ``train.py`` to its end.

    Raises:
        SystemExit: it failed; shows the end of its output.
    """
    python = sys.executable if checkout == ROOT else str(checkout / ".venv/bin/python")
    command = [python, "train.py", "strategy=ffe", f"hydra.run.dir={run}", *overrides]
    environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "PYTHONNOUSERSITE": "1"}
    environment.pop("PYTHONPATH", None)
    output = run.with_suffix(".out")
    start = time.monotonic()
    with output.open("wb") as out:
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=out, stderr=out)
    most = peak_pss(process, SAMPLE_SECONDS, SAMPLE_SHARE)
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nfailed:\n{output.read_text(errors='replace')[-4000:]}")
    return Training(run, time.monotonic() - start, most)


def peak_pss(process: subprocess.Popen[bytes], sample_seconds: float, share: float = 1.0) -> float:
    """Bytes, most that a process and all that it started held together until its end; ends it where interrupted.

    Args:
        process: the process.
        sample_seconds: least time between two looks.
        share: most of a core's time that these take; then they are further apart.
    """
    most = 0
    try:
        while process.poll() is None:
            before = time.thread_time()
            most = max(most, memory_of_tree(process.pid))
            time.sleep(max(sample_seconds, (time.thread_time() - before) / share))
    finally:
        process.terminate()
        process.wait()
    return most


def rounds_of(run: Path, workers: int) -> list[Round]:
    """What each round of a run took, by its own records."""
    with (run / ROUNDS_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    ends: dict[int, float] = {}
    for line in (run / LOG_FILE).read_text(encoding="utf-8").splitlines():
        if start := START.match(line):
            ends[0] = _seconds(start[1])
        elif end := END.match(line):
            ends.setdefault(int(end[2]), _seconds(end[1]))
    found = []
    for number in sorted(ends.keys() - {0}):
        seconds = [float(row["seconds_train"]) for row in rows if int(row["round"]) == number]
        of_workers = [sum(seconds[worker::workers]) for worker in range(workers)]  # nodes go to workers in turn
        found.append(Round(ends[number] - ends[number - 1], max(of_workers)))
    return found


def _seconds(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()


def parameters_of(run: Path) -> int:
    """Parameters of the network, all of which every node sends in float32."""
    with (run / ROUNDS_FILE).open(newline="") as file:
        return max(int(row["bytes_up"]) for row in csv.DictReader(file)) // 4


def outside_training(rounds: Sequence[Round], warm_up: int = WARM_UP) -> float:
    """Seconds outside training of a usual round; the first ones, so many, are not counted."""
    return statistics.median(one.outside for one in rounds[warm_up:])


class Benchmark:
    """The trainings and their figures.

    Args:
        folder: takes everything.
        nodes: sizes of the federations, ascending.
        against: checkout that four nodes with a worker each train in.
    """

    def __init__(self, folder: Path, nodes: Sequence[int], against: Path) -> None:
        self.folder, self.nodes, self.against = folder, nodes, against
        self.images = folder / "images"
        self.usual: dict[int, Training] = {}

    def train(self, name: str, nodes: int, workers: int = WORKERS, *overrides: str, rounds: int = ROUNDS) -> Training:
        """Train a federation of this checkout; images and what is made of them are those of earlier ones."""
        return self._report(
            name,
            train(
                ROOT,
                self.folder / name,
                [
                    *("dataset=phantom_many", f"dataset.generator.centres={nodes}", *IMAGES),
                    *(f"dataset.raw_folder={self.images}", f"paths.cache={self.folder / 'cache'}", *NETWORK),
                    *("compute.device=cpu", "compute.threads=1", f"federation.workers={workers}"),
                    *(f"trainer.epochs={rounds}", "trainer.iterations=1", "trainer.val_iterations=1", *overrides),
                ],
            ),
        )

    def train_own(self) -> Training:
        """The first nodes, with a worker each; in an older checkout with the same images, network and steps."""
        if self.against == ROOT:
            cache = f"paths.cache={self.folder / 'cache_of_few'}"
            return self.train("few", OWN_NODES, OWN_NODES, cache)
        centres = ", ".join(
            f"{{name: {one['name']}, dataset: {one['dataset']}}}" for one in numbered_centres(OWN_NODES, 0)
        )
        overrides = (
            *("dataset=custom", f"dataset.raw_folder={self.images}", f"dataset.centres=[{centres}]"),
            *("trainer=demo_adam", "model=demo", *NETWORK, f"paths.cache={self.folder / 'cache_of_few'}"),
            *("node.device=cpu", "node.threads=1", f"federation.max_parallel_nodes={OWN_NODES}"),
            *(f"trainer.epochs={ROUNDS}", "trainer.iterations=1", "trainer.val_iterations=1"),
        )
        return self._report("few", train(self.against, self.folder / "few", overrides))

    def _report(self, name: str, done: Training) -> Training:
        print(f"{name}: {done.seconds:.0f} s, {done.pss / MB:.0f} MB at most", file=sys.stderr, flush=True)
        return done

    def of(self, nodes: int) -> Training:
        """The federation of this size with the demo's network; the largest one first, which prepares all images."""
        for size in dict.fromkeys((self.nodes[-1], nodes)):
            if size not in self.usual:
                self.usual[size] = self.train(f"{size}_nodes", size)
        return self.usual[nodes]

    def memory(self) -> Iterator[tuple[str, float, str, float | None]]:
        """Memory of the largest federation."""
        many, few = self.of(self.nodes[-1]).pss, self.train_own().pss
        yield "many_nodes_memory", many / MB, "MB", None
        yield "many_nodes_memory_of_few", few / MB, "MB", None
        yield "many_nodes_memory_ratio", many / few, "ratio", MEMORY_RATIO

    def demo(self) -> Iterator[tuple[str, float, str, float | None]]:
        """Seconds outside training by number of nodes."""
        rounds = {nodes: rounds_of(self.of(nodes).folder, WORKERS) for nodes in self.nodes}
        print_rounds(rounds)
        outside = {nodes: outside_training(found) for nodes, found in rounds.items()}
        smallest, largest = self.nodes[0], self.nodes[-1]
        yield "many_nodes_overhead_demo", outside[largest] / largest, "s per node and round", DEMO_SECONDS
        if smallest < largest:
            slope = math.log(outside[largest] / outside[smallest]) / math.log(largest / smallest)
            yield "many_nodes_overhead_slope", slope, "log/log", SLOPE

    def large(self) -> Iterator[tuple[str, float, str, float | None]]:
        """Seconds outside training with a network of usual size."""
        overrides = (*LARGE, f"federation.cache_gib={LARGE_CACHE_GIB}")
        run = self.train("large", LARGE_NODES, WORKERS, *overrides, rounds=LARGE_ROUNDS).folder
        rounds = rounds_of(run, WORKERS)
        print(f"{LARGE_NODES} nodes, {parameters_of(run) / 1e6:.1f} M parameters")
        print_rounds({LARGE_NODES: rounds})
        seconds = outside_training(rounds, LARGE_WARM_UP) / LARGE_NODES
        yield "many_nodes_overhead_31M", seconds, "s per node and round", LARGE_SECONDS


def print_rounds(rounds: dict[int, list[Round]]) -> None:
    """A table with a line per round."""
    print(f"{'nodes':>5} {'round':>5} {'wall s':>8} {'training s':>11} {'outside s':>10} {'per node s':>11}")
    for nodes, found in rounds.items():
        for number, one in enumerate(found, start=1):
            times = f"{one.wall:8.2f} {one.training:11.2f} {one.outside:10.2f} {one.outside / nodes:11.3f}"
            print(f"{nodes:5d} {number:5d} {times}", flush=True)


def main() -> None:
    """Print tables and figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path, default=ROOT, help="checkout that four nodes, a worker each, train in")
    parser.add_argument("--nodes", default=",".join(map(str, NODES)), help="comma-separated (default: %(default)s)")
    parser.add_argument("--parts", default="memory,demo,large", help="comma-separated (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="new folder that keeps everything; a temporary one if not given")
    options = parser.parse_args()
    against = options.against.resolve()
    if against != ROOT and not (against / ".venv/bin/python").exists():
        parser.error(f"{against}: there is no .venv; run `make setup` there")
    # However this process is asked to end, what it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="fednnunet-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        benchmark = Benchmark(folder, sorted(map(int, options.nodes.split(","))), against)
        for part in options.parts.split(","):
            for metric, value, unit, target in getattr(benchmark, part)():
                line = {"metric": metric, "value": round(value, 3), "unit": unit, "target": target}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

"""Seconds of a round over lines of 20 Mbit/s, by ``exchange.dtype``: two hospitals, each behind a line of its own.

    python benchmarks/thin_line.py                             about ten minutes, most of them waiting for the lines
    python benchmarks/thin_line.py --mbit 100 --dtype int8     another line, one precision
    python benchmarks/thin_line.py --stages 3 --rounds 1       a small network, to see that it works

The deployment of ``deployment_overhead.py``: our server and the connections of our nodes, with TLS, node keys and a
database on disk; between each node and the server is a link that passes on so many bits a second each way
(``tests/support/network.py``). The network has 33.5 M parameters, and what is measured is everything but training.

Nothing is trained. A node's update is its weights, normally distributed, times a small factor, and so has a normal
distribution itself: as whole numbers a value then takes 6.8 bits in ``int8`` and 3.0 in ``int4``, no less than in
updates of training (6.0 and 2.9 in ``bytes_per_round.py``, of networks of this size). With ``int8`` and
``int4`` the first two rounds are not counted: in the first, nodes send layers whole, in the second they get them whole.
With ``float32`` it is the first, in which nodes get nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for the next imports, however this script is started

import deployment_overhead  # noqa: E402
import round_overhead  # noqa: E402

from fednnunet.exchange.messages import ExchangeDtype  # noqa: E402

NODES = 2
MBIT = 20.0
ROUNDS, FLOAT32_ROUNDS = 5, 2
DTYPES: tuple[ExchangeDtype, ...] = ("float32", "int8", "int4")
TARGET_RATIOS = {"int8": 1 / 3, "int4": 1 / 6}
"""Seconds of a round relative to those with float32, of the network and over the line of the defaults."""
BITS_PER_BYTE, MEGA = 8, 1e6


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mbit", type=float, default=MBIT, help="Mbit/s of a line each way (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument(
        "--rounds",
        type=int,
        default=ROUNDS,
        help=f"counted, after one or two that are not (default: %(default)s; of float32 {FLOAT32_ROUNDS} at most)",
    )
    parser.add_argument("--stages", type=int, default=round_overhead.STAGES, help="stages of the network")
    parser.add_argument("--dtype", nargs="+", choices=get_args(ExchangeDtype), default=DTYPES)
    options = parser.parse_args()
    if not options.mbit > 0:
        parser.error("--mbit must be more than 0")
    # However this process is asked to end, what it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    shapes = round_overhead.unet_shapes(options.stages)
    deployment_overhead.print_size(shapes, options.nodes)
    print(f"lines of {options.mbit:g} Mbit/s each way")
    deployment_overhead.print_header()
    seconds = {}
    for dtype in options.dtype:
        rounds = min(options.rounds, FLOAT32_ROUNDS) if dtype == "float32" else options.rounds
        bandwidth = options.mbit * MEGA / BITS_PER_BYTE
        exchange = deployment_overhead.deployment(shapes, options.nodes, rounds, dtype, bandwidth)
        deployment_overhead.print_row(exchange)
        seconds[dtype] = statistics.median(exchange.seconds)
    usual = (options.stages, options.mbit) == (round_overhead.STAGES, MBIT)
    for metric, value, unit, target in figures(seconds):
        target = target if usual else None  # smaller networks and other lines have other proportions
        print(json.dumps({"metric": metric, "value": round(value, 3), "unit": unit, "target": target}))


def figures(seconds: Mapping[str, float]) -> Iterator[tuple[str, float, str, float | None]]:
    """Name, value, unit and target of each figure, from the seconds of a round by precision."""
    for dtype, value in seconds.items():
        yield f"thin_line_seconds_{dtype}", value, "s", None
    for dtype, value in seconds.items():
        if dtype != "float32" and "float32" in seconds:
            target = TARGET_RATIOS.get(dtype)
            yield f"thin_line_{dtype}_over_float32", value / seconds["float32"], "ratio", target and round(target, 4)


if __name__ == "__main__":
    main()

"""Which worker computes for which nodes, and on which GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fednnunet.config.groups import ComputeConfig
from fednnunet.errors import ConfigError
from fednnunet.listing import join_nodes
from fednnunet.node.gpus import Gpu, chosen

TOLERANCE = 1.1
"""A plan may aim at so many times the memory of a GPU: cards hold a little less than they are named for."""


@dataclass(frozen=True)
class Placement:
    """A worker process.

    Attributes:
        nodes: names of the nodes that it computes for, one at a time.
        gpus: GPUs that it sees; none where it computes on the CPU.
        parks: a node that waits for its turn holds no GPU memory: not all nodes of its GPU fit at once.
    """

    nodes: tuple[str, ...]
    gpus: tuple[Gpu, ...] = ()
    parks: bool = False


def place_on_cpu(nodes: Sequence[str], workers: int) -> list[Placement]:
    """Share nodes out among so many workers: each in turn gets the next node."""
    workers = min(workers, len(nodes))
    return [Placement(tuple(nodes[first::workers])) for first in range(workers)]


def place_on_gpus(
    memory_gb: Mapping[str, float | None], gpus: Sequence[Gpu], compute: ComputeConfig, workers: int = 0
) -> list[Placement]:
    """Place nodes on GPUs, each where it has most room, and let as many compute at once on each as fit.

    Nodes are placed in the order of their memory, largest first. A node goes to the GPU whose nodes, with it, would
    take the smallest part of its memory. As many workers share a GPU as any of its nodes fit into its memory at once,
    and each in turn gets the next of its nodes.

    Args:
        memory_gb: node to the GPU memory that its plans aim at, GB; None where that is not known: it is alone on a GPU
            while it computes.
        gpus: visible GPUs.
        compute: which of them, or which of them for which node, and how many share the batches of a node.
        workers: most workers in all; 0 for as many as fit.

    Returns:
        Workers, in the order of their first nodes; each node is in one of them.

    Raises:
        ConfigError: a GPU that is not visible, or named twice; a node that is placed on none, fits on none or does not
            exist; fewer GPUs than one node shares its batches over; more workers than fit.
    """
    if isinstance(compute.gpus, dict) and (unknown := compute.gpus.keys() - memory_gb.keys()):
        raise ConfigError(f"compute.gpus names {min(unknown)}, which is no node; nodes: {join_nodes(list(memory_gb))}")
    devices = _devices(gpus, compute)
    held: dict[int, list[str]] = {number: [] for number in range(len(devices))}
    for node in sorted(memory_gb, key=lambda node: -(memory_gb[node] or 0.0)):
        possible = _possible(node, memory_gb[node], devices, compute)
        held[min(possible, key=lambda number: _load([*held[number], node], memory_gb, devices[number]))].append(node)
    order = list(memory_gb)
    placed = {number: sorted(nodes, key=order.index) for number, nodes in held.items() if nodes}
    at_once = {number: _at_once(nodes, memory_gb, devices[number]) for number, nodes in placed.items()}
    _limit(at_once, workers)
    found = []
    for number, nodes in placed.items():
        parks = _load(nodes, memory_gb, devices[number]) > TOLERANCE
        for first in range(at_once[number]):
            found.append(Placement(tuple(nodes[first :: at_once[number]]), devices[number], parks))
    return sorted(found, key=lambda place: order.index(place.nodes[0]))


def _devices(gpus: Sequence[Gpu], compute: ComputeConfig) -> list[tuple[Gpu, ...]]:
    """The GPUs that are used, in groups that share the batches of a node."""
    size = compute.num_devices
    if isinstance(compute.gpus, dict) and size > 1:
        raise ConfigError(f"compute.num_devices={size}: a node needs several GPUs, and compute.gpus names one for each")
    if compute.gpus != "auto":
        ids = compute.gpus if isinstance(compute.gpus, list) else list(compute.gpus.values())
        named = [chosen(gpus, id_) for id_ in ids]
        gpus = list(dict.fromkeys(named))
        if len(gpus) < len(named) and isinstance(compute.gpus, list):
            raise ConfigError(f"compute.gpus={compute.gpus}: one GPU is there twice, by its number and by its UUID")
    if len(gpus) < size:
        raise ConfigError(f"compute.num_devices={size}, but there are {len(gpus)} GPUs to compute on; lower it")
    return [tuple(gpus[start : start + size]) for start in range(0, len(gpus) - size + 1, size)]


def _possible(
    node: str, memory_gb: float | None, devices: Sequence[Sequence[Gpu]], compute: ComputeConfig
) -> list[int]:
    """Numbers of the groups of GPUs that a node may be placed on."""
    numbers = list(range(len(devices)))
    if isinstance(compute.gpus, dict):
        if node not in compute.gpus:
            raise ConfigError(f"compute.gpus: node {node} is placed on no GPU; name one for it, as for the others")
        wanted = chosen([gpu for device in devices for gpu in device], compute.gpus[node])
        numbers = [number for number in numbers if wanted in devices[number]]
    fitting = [number for number in numbers if (memory_gb or 0.0) <= TOLERANCE * _memory(devices[number])]
    if not fitting:
        largest = max(_memory(devices[number]) for number in numbers)
        raise ConfigError(
            f"node {node} is planned for {memory_gb:g} GB; the largest GPU it can be placed on has {largest:.1f} GB: "
            f"lower gpu_memory.gb or +gpu_memory.per_node.{node}"
        )
    return fitting


def _memory(device: Sequence[Gpu]) -> float:
    return min(gpu.memory_gb for gpu in device)


def _load(nodes: Sequence[str], memory_gb: Mapping[str, float | None], device: Sequence[Gpu]) -> float:
    """Part of the GPU's memory that all ``nodes`` take together; a node of unknown memory takes all."""
    memory = _memory(device)
    return sum((memory_gb[node] or memory) / memory for node in nodes)


def _at_once(nodes: Sequence[str], memory_gb: Mapping[str, float | None], device: Sequence[Gpu]) -> int:
    """How many of ``nodes`` fit at once, whichever they are; at least one does."""
    largest = sorted(nodes, key=lambda node: -(memory_gb[node] or _memory(device)))
    return max(1, sum(_load(largest[: one + 1], memory_gb, device) <= TOLERANCE for one in range(len(largest))))


def _limit(at_once: dict[int, int], workers: int) -> None:
    """Lower the numbers of workers, the largest first, until they are ``workers`` in all.

    Raises:
        ConfigError: that many do not fit; or GPUs would be left without one.
    """
    if workers > sum(at_once.values()):
        raise ConfigError(
            f"federation.workers={workers}: {sum(at_once.values())} fit on the GPUs at once; lower it, or leave it 0"
        )
    if workers and workers < len(at_once):
        raise ConfigError(
            f"federation.workers={workers}: {len(at_once)} GPUs are used, each by a worker of its own; raise it, leave "
            "it 0, or name fewer GPUs in compute.gpus"
        )
    while workers and sum(at_once.values()) > workers:
        at_once[max(at_once, key=lambda number: at_once[number])] -= 1

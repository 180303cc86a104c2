"""Nodes are placed on GPUs as a pure function of their memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednnunet.config.groups import ComputeConfig
from fednnunet.errors import ConfigError
from fednnunet.launch.placement import TOLERANCE, place_on_cpu, place_on_gpus
from fednnunet.node.gpus import Gpu, parse_gpus, visible

MEMORY = st.sampled_from([8.0, 11.0, 16.0, 24.0, 40.0, 80.0])


def gpus_of(*memory_gb: float) -> list[Gpu]:
    return [Gpu(f"GPU-{number:08d}", number, memory) for number, memory in enumerate(memory_gb)]


def layout(places):
    return [(place.nodes, tuple(gpu.number for gpu in place.gpus), place.parks) for place in places]


def test_three_nodes_take_turns_on_one_gpu_that_two_of_them_fill():
    places = place_on_gpus({"A": 8.0, "B": 8.0, "C": 8.0}, gpus_of(16.0), ComputeConfig())
    assert layout(places) == [(("A", "C"), (0,), True), (("B",), (0,), True)]


def test_nothing_is_parked_where_all_nodes_fit_at_once():
    places = place_on_gpus({"A": 8.0, "B": 8.0, "C": 8.0}, gpus_of(24.0), ComputeConfig())
    assert layout(places) == [(("A",), (0,), False), (("B",), (0,), False), (("C",), (0,), False)]


def test_nodes_of_unknown_memory_are_alone_on_a_gpu():
    places = place_on_gpus(dict.fromkeys("ABC"), gpus_of(80.0, 80.0), ComputeConfig())
    assert layout(places) == [(("A", "C"), (0,), True), (("B",), (1,), False)]


def test_a_large_node_gets_the_gpu_that_holds_it():
    places = place_on_gpus({"A": 8.0, "B": 24.0}, gpus_of(8.0, 24.0), ComputeConfig())
    assert layout(places) == [(("A",), (0,), False), (("B",), (1,), False)]


def test_a_node_is_placed_where_the_configuration_says():
    places = place_on_gpus({"A": 8.0, "B": 8.0}, gpus_of(24.0, 24.0), ComputeConfig(gpus={"A": 1, "B": 1}))
    assert layout(places) == [(("A",), (1,), False), (("B",), (1,), False)]


@pytest.mark.parametrize(
    ("compute", "gpus", "message"),
    [
        ({"gpus": [0, 3]}, [24.0], "GPU 3 is not visible"),
        ({"gpus": {"A": 2, "B": 0}}, [24.0], "GPU 2 is not visible"),
        ({"gpus": {"A": 0}}, [24.0], "node B is placed on no GPU"),
        ({"num_devices": 2}, [24.0], "compute.num_devices=2"),
        ({"gpus": [0]}, [], "GPU 0 is not visible"),
        ({}, [6.0], "node A is planned for 8 GB"),
        ({"gpus": [0, "GPU-00000000"]}, [24.0], "one GPU is there twice"),
        ({"gpus": {"A": 0, "B": 0, "Oslp": 0}}, [24.0], "compute.gpus names Oslp, which is no node"),
    ],
)
def test_impossible_placements_stop_in_one_line(compute, gpus, message):
    with pytest.raises(ConfigError, match=message) as stopped:
        place_on_gpus({"A": 8.0, "B": 8.0}, gpus_of(*gpus), ComputeConfig(**compute))
    assert "\n" not in str(stopped.value)


@given(st.lists(MEMORY, min_size=3, max_size=100), st.sampled_from([1, 2, 4, 8]), st.data())
def test_every_node_has_one_worker_and_what_computes_at_once_fits(targets, count, data):
    gpus = gpus_of(*data.draw(st.lists(MEMORY, min_size=count - 1, max_size=count - 1)), 80.0)
    nodes = {f"N{number}": memory for number, memory in enumerate(targets)}
    places = place_on_gpus(nodes, gpus, ComputeConfig())
    assert sorted(name for place in places for name in place.nodes) == sorted(nodes)
    assert places == place_on_gpus(nodes, gpus, ComputeConfig())
    for gpu in gpus:
        here = [place for place in places if place.gpus == (gpu,)]
        at_once = sum(max(nodes[name] for name in place.nodes) for place in here)
        assert at_once <= TOLERANCE * gpu.memory_gb + 1e-6
        held = sum(nodes[name] for place in here for name in place.nodes)
        assert all(place.parks or held <= TOLERANCE * gpu.memory_gb + 1e-6 for place in here)


@given(st.integers(1, 100), st.integers(1, 16))
def test_workers_on_the_cpu_differ_by_one_node_at_most(count, workers):
    sizes = [len(place.nodes) for place in place_on_cpu([str(n) for n in range(count)], workers)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("value", "numbers"),
    [(None, [0, 1, 2]), ("", []), ("-1", []), ("NoDevFiles", []), ("2,0", [2, 0]), ("1,-1,0", [1]),
     ("GPU-00000002", [2])],
)  # fmt: skip
def test_visible_gpus_are_those_that_cuda_would_see(value, numbers):
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert [gpu.number for gpu in visible(gpus_of(8.0, 8.0, 8.0), environment)] == numbers


def test_a_divided_gpu_stands_for_its_parts():
    listing = (
        "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)\n"
        "  MIG 1g.5gb      Device  0: (UUID: MIG-11)\n"
        "  MIG 3g.20gb     Device  1: (UUID: MIG-33)\n"
        "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bb)\n"
    )
    assert parse_gpus("0, GPU-aa, 40960\n1, GPU-bb, 40960\n", listing) == [
        Gpu("MIG-11", None, 5.0),
        Gpu("MIG-33", None, 20.0),
        Gpu("GPU-bb", 1, 40.0),
    ]


def test_numbers_among_unlike_gpus_want_the_order_of_nvidia_smi():
    unlike, environment = gpus_of(8.0, 80.0), {"CUDA_VISIBLE_DEVICES": "1"}
    with pytest.raises(ConfigError, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        visible(unlike, environment)
    assert visible(unlike, environment | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == unlike[1:]

"""How far plans move where nodes share less than the pooled fingerprint needs.

    python benchmarks/plans_of_shared_fingerprints.py [--federations 20] [--planner ExperimentPlanner]

Each federation is planned with nnU-Net's own planner from the pooled images' fingerprint (``histogram``, the default),
and from what is left of it with ``fingerprint.precision=quantised``, ``fingerprint.intensity=weighted_mean``,
``fingerprint.geometry=sums``, and that with noise (``fingerprint.epsilon``; a run refuses it below 1000 cases). These
plans are held against the first: equal are those with the same networks, patch, batch, depth and use of the mask. Cases
that are alone at their node with their spacing and shape are counted, too.

Federations are the phantom's four centres, with real images, and random ones of real size: a planner wants no images.
Geometry is the paper's (Tables 1, 3, 5 and 6), and assumed where the paper is silent: pixels of cardiac MRI, all of CT,
fields of view, cropping and intensities. Every random federation has centres, numbers of cases, scanners and protocols
of its own about these values.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml

from fednnunet.config.groups import ModelConfig
from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.fingerprint import DatasetFingerprint, merge_fingerprints
from fednnunet.fingerprint.bins import IntensityBins, IntensityRange, histogram_bins_over
from fednnunet.fingerprint.extract import case_sizes, extract_contribution, extract_fingerprint, intensity_ranges
from fednnunet.fingerprint.geometry import CaseSizes, count_below, noise_of, share_of
from fednnunet.fingerprint.made_up_cases import Statistics
from fednnunet.fingerprint.merge import PERCENTILES
from fednnunet.fingerprint.order_statistics import GeometrySearch
from fednnunet.fingerprint.quantise import quantise_fingerprint, quantise_range
from fednnunet.fingerprint.schema import ChannelIntensities
from fednnunet.phantoms.breast_small import make_small_phantom
from fednnunet.planning.plans import make_plans
from fednnunet.privacy.secure_sum import SumRules

PHANTOM = Path(__file__).parents[1] / "conf" / "dataset" / "phantom.yaml"
EPSILONS = {f"{masked}epsilon_{epsilon}": float(epsilon) for masked in ("", "masked_") for epsilon in (8, 4, 2)}
"""Every node adds all of the noise; masked, where secure sums show the server no node's counts, its share of it."""
SHARED = ("quantised", "weighted_mean", "sums", *EPSILONS)
OF_IMAGES = ("quantised", "weighted_mean", "sums")
"""What is tried with the phantom, which is too small for noise."""
TARGETS = {"breast MRI": 1.0, "cardiac MRI": 0.85, "fetal US": 0.95, "abdominal CT": 0.67}
"""Part of the federations whose patch a prototype of ``sums`` kept."""
GPU_MEMORY_GB = 8.0
"""The paper's."""
DATASET = "Dataset101_Federation"
REPORTED = ("patch", "batch", "stages", "spacing by, most", "percentile_99_5 by, most", "std by, most")
"""As metrics."""
SAMPLES = 500
"""Foreground voxels of a case without images."""
NO_SPACING = 999.0
"""nnU-Net's spacing of the missing axis of 2D images."""

Ranges = dict[str, IntensityRange]


class Node(Protocol):
    """What a node can tell."""

    @property
    def cases(self) -> int: ...

    def ranges(self) -> Ranges: ...

    def contribution(self, total: int, bins: Mapping[str, IntensityBins]) -> DatasetFingerprint: ...

    def statistics(self) -> DatasetFingerprint: ...

    def sizes(self) -> CaseSizes: ...


@dataclass(frozen=True)
class ImageNode:
    """A node with images."""

    dataset: RawDataset

    @property
    def cases(self) -> int:
        return len(self.dataset.cases)

    def ranges(self) -> Ranges:
        return intensity_ranges(self.dataset)

    def contribution(self, total: int, bins: Mapping[str, IntensityBins]) -> DatasetFingerprint:
        return extract_contribution(self.dataset, total, bins)

    def statistics(self) -> DatasetFingerprint:
        return DatasetFingerprint.parse(extract_fingerprint(self.dataset), "the node")

    def sizes(self) -> CaseSizes:
        return CaseSizes.of(case_sizes(self.dataset))


@dataclass(frozen=True)
class RandomNode:
    """A node without images: geometry (Z, Y, X) a case, mm and voxels, and sampled intensities, a row per case."""

    spacings: np.ndarray
    shapes: np.ndarray
    relative_sizes: np.ndarray
    samples: np.ndarray

    @property
    def cases(self) -> int:
        return len(self.spacings)

    def ranges(self) -> Ranges:
        return {"0": IntensityRange(low=float(self.samples.min()), high=float(self.samples.max()), integer=True)}

    def sizes(self) -> CaseSizes:
        return CaseSizes(self.spacings, self.shapes, self.relative_sizes)

    def contribution(self, total: int, bins: Mapping[str, IntensityBins]) -> DatasetFingerprint:
        values = self.samples.ravel()
        intensities = ChannelIntensities(
            count=values.size,
            mean=float(values.mean()),
            squared_deviations=float(values.var() * values.size),
            low=float(values.min()),
            high=float(values.max()),
            bins=bins["0"],
            histogram=np.bincount(bins["0"].index(values), minlength=bins["0"].number).tolist(),
        )
        return DatasetFingerprint(
            spacings=self.spacings.tolist(),
            shapes_after_crop=self.shapes.tolist(),
            relative_sizes=self.relative_sizes.tolist(),
            intensities={"0": intensities},
        )

    def statistics(self) -> DatasetFingerprint:
        values = self.samples
        told = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
        told |= {name: np.percentile(values, q) for name, q in PERCENTILES.items()}
        fingerprint = {
            "spacings": self.spacings.tolist(),
            "shapes_after_crop": self.shapes.tolist(),
            "foreground_intensity_properties_per_channel": {"0": {name: float(v) for name, v in told.items()}},
            "median_relative_size_after_cropping": float(np.median(self.relative_sizes)),
        }
        return DatasetFingerprint.parse(fingerprint, "the node")


# federations -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Centre:
    """Geometry of a centre; a case's values lie between ``low`` and ``high``, mostly near ``usual``.

    Attributes:
        cases: number.
        thickness: mm between slices: low, usual, high.
        slices: number of slices: low, usual, high.
        pixel: mm: low, usual, high.
        pixels: across an image: low, usual, high; None for the height and width in ``height_width``.
        height_width: usual pixels of 2D images.
    """

    cases: int
    thickness: tuple[float, float, float]
    slices: tuple[float, float, float]
    pixel: tuple[float, float, float]
    pixels: tuple[float, float, float] | None
    height_width: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Kind:
    """A kind of federation: its centres, channel, and whether nnU-Net sees CT."""

    name: str
    centres: Sequence[Centre]
    channel: str = "MRI"


def breast(cases: int, pixel: float, pixels: int, thickness: Sequence[float], slices: Sequence[float]) -> Centre:
    """A centre of MAMA-MIA: thickness and slices are mean, least and most (Table 3), pixels those of Table 1."""
    return Centre(
        cases,
        (thickness[1], thickness[0], thickness[2]),
        (slices[1], slices[0], slices[2]),
        (0.8 * pixel, pixel, 1.25 * pixel),
        (0.8 * pixels, pixels, 1.2 * pixels),
    )


def cardiac(cases: int, thickness: float, slices: int) -> Centre:
    """A centre of the M&Ms (Table 5); pixels are assumed."""
    return Centre(
        cases,
        (0.8 * thickness, thickness, thickness),
        (slices - 3, slices, slices + 4),
        (0.8, 1.2, 1.6),
        (180, 256, 340),
    )


def fetal(cases: int, height: int, width: int) -> Centre:
    """A centre of AIMIX (Table 6)."""
    return Centre(cases, (NO_SPACING,) * 3, (1, 1, 1), (1, 1, 1), None, (height, width))


KINDS = (
    Kind(
        "breast MRI",
        (
            breast(171, 0.78, 256, (2.4, 1.5, 4.0), (64, 44, 256)),
            breast(980, 0.68, 320, (2.0, 0.8, 3.0), (106, 52, 256)),
            breast(291, 0.70, 512, (1.1, 1.0, 2.5), (169, 60, 256)),
            breast(64, 0.70, 256, (2.0, 2.0, 2.4), (60, 46, 64)),
        ),
    ),
    Kind(
        "cardiac MRI",
        (cardiac(239, 9.5, 13), cardiac(98, 10, 13), cardiac(51, 10, 11), cardiac(105, 9.9, 12), cardiac(50, 10, 13)),
    ),
    Kind("fetal US", (fetal(25, 418, 500), fetal(20, 450, 400), fetal(25, 400, 500), fetal(60, 1228, 1276)), "US"),
    Kind(
        "abdominal CT",
        (
            Centre(120, (0.7, 1.0, 1.5), (200, 420, 700), (0.6, 0.75, 0.95), (512, 512, 512)),
            Centre(60, (1.5, 2.5, 3.0), (90, 160, 260), (0.6, 0.8, 0.98), (512, 512, 512)),
            Centre(40, (3.0, 5.0, 5.0), (50, 90, 140), (0.65, 0.8, 0.98), (512, 512, 512)),
        ),
        "CT",
    ),
)


def random_federation(kind: Kind, rng: np.random.Generator) -> list[Node]:
    """Nodes about the centres of ``kind``."""
    return [random_node(centre, kind.channel, rng) for centre in kind.centres]


def random_node(centre: Centre, channel: str, rng: np.random.Generator) -> RandomNode:
    """A centre with a half to one and a half of the cases, protocol, scanner and field of view of its own."""
    cases = max(5, round(centre.cases * rng.uniform(0.5, 1.5)))

    def values(low: float, usual: float, high: float, protocol: float = 1.0) -> np.ndarray:
        if low == high:
            return np.full(cases, low)
        return protocol * rng.triangular(low, np.clip(usual, low, high), high, cases)

    slices = values(*centre.slices)
    if centre.pixels is None:
        pixel = np.ones(cases)
        scale = rng.uniform(0.8, 1.25) * rng.uniform(0.9, 1.1, cases)
        height, width = (size * scale for size in centre.height_width)
        thickness = values(*centre.thickness)
    else:
        pixel = values(*centre.pixel, rng.uniform(0.9, 1.1))
        height = width = values(*centre.pixels)
        thickness = values(*centre.thickness, rng.uniform(0.9, 1.1))
    cropped = np.ones(cases)
    if channel == "MRI":
        cropped = np.clip(rng.uniform(0.6, 1.0) + rng.normal(0, 0.03, cases), 0.3, 1.0)
    side = np.sqrt(cropped)  # what is cropped away lies in plane
    return RandomNode(
        spacings=np.stack([thickness, pixel, pixel], axis=1).round(4),
        shapes=np.maximum(np.rint(np.stack([slices, height * side, width * side], axis=1)), 1).astype(int),
        relative_sizes=cropped,
        samples=sampled(channel, cases, rng),
    )


def sampled(channel: str, cases: int, rng: np.random.Generator) -> np.ndarray:
    """Whole-numbered foreground intensities, a row per case; a scanner (CT: contrast phase) a centre."""
    if channel == "CT":
        usual, spread = rng.uniform(20, 120), rng.uniform(25, 60)
        return np.rint(rng.normal(usual + rng.normal(0, 15, (cases, 1)), spread, (cases, SAMPLES)))
    gain = 300 * rng.lognormal(0, 0.5) * rng.lognormal(0, 0.2, (cases, 1))
    values = np.rint(gain * rng.lognormal(0, rng.uniform(0.2, 0.5), (cases, SAMPLES)))
    return np.minimum(values, 255) if channel == "US" else values


def phantom_federation(folder: Path) -> list[Node]:
    """The training centres of the phantom, with their images."""
    generator = yaml.safe_load(PHANTOM.read_text())["dataset"]["generator"]
    centres = {name: centre for name, centre in generator["centres"].items() if not centre.get("external")}
    folders = make_small_phantom(folder, centres, generator["seed"])
    return [ImageNode(read_dataset(path, name)) for name, path in zip(centres, folders, strict=True)]


# fingerprints and plans --------------------------------------------------------------------------------


def fingerprint_of(nodes: Sequence[Node], shared: str) -> dict[str, Any]:
    """What the server makes of what nodes tell."""
    if shared == "weighted_mean":
        return merge_fingerprints([node.statistics() for node in nodes])
    quantised = shared == "quantised"
    ranges = [{c: quantise_range(r) if quantised else r for c, r in node.ranges().items()} for node in nodes]
    bins = histogram_bins_over(ranges)
    total = sum(node.cases for node in nodes)
    parts = [node.contribution(total, bins) for node in nodes]
    merged = merge_fingerprints([quantise_fingerprint(part) if quantised else part for part in parts])
    if shared == "sums" or shared in EPSILONS:
        noise = noise_of(EPSILONS[shared]) if shared in EPSILONS else 0.0
        noise *= share_of(len(nodes), SumRules().colluding) if shared.startswith("masked") else 1.0
        merged |= search_sizes([node.sizes() for node in nodes], noise, np.random.default_rng(total)).fingerprint()
    return merged


def search_sizes(nodes: Sequence[CaseSizes], noise: float, rng: np.random.Generator) -> Statistics:
    """What the server finds by counts; each node adds noise to its own."""
    search = GeometrySearch(sum(len(node.spacings) for node in nodes), noise * len(nodes) ** 0.5)
    while questions := search.questions():
        counts = [count_below(node, questions) for node in nodes]
        search.add(
            {
                quantity: {
                    number: sum(of_node[quantity][place] + round(rng.normal(0, noise)) for of_node in counts)
                    for place, number in enumerate(numbers)
                }
                for quantity, numbers in questions.items()
            }
        )
    return search.statistics()


def alone(nodes: Sequence[Node], quantised: bool) -> float:
    """Part of the cases with a spacing and shape that no other case of their node has."""
    bins = histogram_bins_over([node.ranges() for node in nodes])
    unique, total = 0, sum(node.cases for node in nodes)
    for node in nodes:
        told = node.contribution(total, bins)
        told = quantise_fingerprint(told) if quantised else told
        cases = np.hstack([told.spacings, told.shapes_after_crop])
        unique += int((np.unique(cases, axis=0, return_counts=True)[1] == 1).sum())
    return unique / total


@contextlib.contextmanager
def planning_folder(channel: str) -> Iterator[None]:
    """nnU-Net's folders, with a dataset that names its images; planning reads none of them."""
    with tempfile.TemporaryDirectory(prefix="fednnunet-") as folder:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = str(Path(folder) / variable)
        raw = Path(folder) / "nnUNet_raw" / DATASET
        raw.mkdir(parents=True)
        description = {
            "channel_names": {"0": channel},
            "labels": {"background": 0, "structure": 1},
            "numTraining": 1,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "SimpleITKIO",
            "dataset": {"case": {"images": ["imagesTr/case_0000.nii.gz"], "label": "labelsTr/case.nii.gz"}},
        }
        (raw / "dataset.json").write_text(json.dumps(description))
        yield


def plan(fingerprint: dict[str, Any], planner: str, cases: int) -> dict[str, Any]:
    """nnU-Net's plans; networks are built without memory for weights, of which planning takes the shapes alone."""
    model = ModelConfig(planner=planner)
    with torch.device("meta"):
        return make_plans(DATASET, fingerprint, model, GPU_MEMORY_GB, cases)


# comparison --------------------------------------------------------------------------------------------

INTENSITIES = "foreground_intensity_properties_per_channel"
CHANGES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "patch": lambda configuration: configuration["patch_size"],
    "batch": lambda configuration: configuration["batch_size"],
    "stages": lambda configuration: configuration["architecture"]["arch_kwargs"]["n_stages"],
    "mask": lambda configuration: configuration["use_mask_for_norm"],
}
"""Of a configuration: what is the same or not."""
SHIFTS = {
    "spacing": lambda configuration: configuration["spacing"],
    "patch size": lambda configuration: [np.prod(configuration["patch_size"])],
    "batch size": lambda configuration: [configuration["batch_size"]],
    "shape": lambda configuration: configuration["median_image_size_in_voxels"],
}
"""Of a configuration: what moves by a part of itself."""


def networks(plans: Mapping[str, Any]) -> dict[str, Any]:
    """Configurations that have a network of their own."""
    return {name: found for name, found in plans["configurations"].items() if "architecture" in found}


def compare(pooled: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float]:
    """What is not the same in ``other`` plans (0 or 1), and how far the rest is from ``pooled``.

    Sizes and spacings by a part of the pooled ones (the axis and configuration that moves most); mean and percentiles
    of intensities in standard deviations of the pooled ones, the standard deviation by a part of itself.
    """
    before, after = networks(pooled), networks(other)
    both = [(before[name], after[name]) for name in before if name in after]
    told: dict[str, float] = {"any": 0.0, "networks": before.keys() != after.keys()}
    for what, value in CHANGES.items():
        told[what] = any(value(ours) != value(theirs) for ours, theirs in both)
    told["any"] = any(told.values())
    for what, sizes in SHIFTS.items():
        told[f"{what} by"] = max(
            float(np.max(np.abs(np.divide(sizes(theirs), sizes(ours)) - 1))) for ours, theirs in both
        )
    ours, theirs = pooled[INTENSITIES]["0"], other[INTENSITIES]["0"]
    for name in ("mean", "percentile_00_5", "percentile_99_5", "std"):
        told[f"{name} by"] = abs(theirs[name] - ours[name]) / ours["std"]
    return told


def measure(nodes: Sequence[Node], planner: str, tried: Sequence[str]) -> dict[str, dict[str, float]]:
    """Plans from what is shared, against those from the pooled fingerprint."""
    cases = sum(node.cases for node in nodes)
    with contextlib.redirect_stdout(io.StringIO()):
        pooled = plan(fingerprint_of(nodes, "histogram"), planner, cases)
        compared = {}
        for shared in tried:
            try:
                compared[shared] = compare(pooled, plan(fingerprint_of(nodes, shared), planner, cases))
            except (OverflowError, ValueError):  # noise that leaves nothing to plan from
                compared[shared] = dict.fromkeys(compare(pooled, pooled), 1.0)
        return compared


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Part of the federations in which something is not the same; median and largest of what moves."""
    told = {}
    for what in rows[0]:
        values = [float(row[what]) for row in rows]
        if what.endswith(" by"):
            told |= {f"{what}, median": float(np.median(values)), f"{what}, most": max(values)}
        else:
            told[what] = float(np.mean(values))
    return told


def print_table(results: Mapping[tuple[str, str], Mapping[str, float]], numbers: Mapping[str, int]) -> None:
    """A row a kind and fingerprint."""
    first = next(iter(results.values()))
    counted = [what for what in first if not what.endswith((", median", ", most"))]
    moved = [what.removesuffix(" by, median") for what in first if what.endswith(", median")]
    print("federations in which a thing is another; then by how much others are off, median / most, in %")
    print(f"{'':<32}" + "".join(f"{what:>9}" for what in counted) + "".join(f"{what:>18}" for what in moved))
    for (kind, shared), told in results.items():
        cells = [f"{told[what] * numbers[kind]:>9.0f}" for what in counted]
        cells += [f"{100 * told[f'{m} by, median']:>10.1f} / {100 * told[f'{m} by, most']:<5.1f}" for m in moved]
        print(f"{f'{kind} ({numbers[kind]}), {shared}':<32}" + "".join(cells))


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description="How far plans move with what nodes share.")
    parser.add_argument("--federations", type=int, default=20, help="random ones of a kind (default: %(default)s)")
    parser.add_argument("--planner", default="ExperimentPlanner", help="nnU-Net's (default: %(default)s)")
    arguments = parser.parse_args()
    results: dict[tuple[str, str], dict[str, float]] = {}
    numbers = {"phantom": 1}
    with planning_folder("MRI"), tempfile.TemporaryDirectory(prefix="fednnunet-") as folder:
        for shared, told in measure(phantom_federation(Path(folder)), arguments.planner, OF_IMAGES).items():
            results["phantom", shared] = summarise([told])
    for kind in KINDS:
        numbers[kind.name] = arguments.federations
        with planning_folder(kind.channel):
            rows = [
                measure(nodes, arguments.planner, SHARED)
                for nodes in (
                    random_federation(kind, np.random.default_rng([seed])) for seed in range(arguments.federations)
                )
            ]
        first = random_federation(kind, np.random.default_rng([0]))
        for quantised, precision in ((False, "full"), (True, "quantised")):
            print_metric(f"cases_alone_{precision}_{kind.name}", alone(first, quantised))
        for shared in SHARED:
            results[kind.name, shared] = summarise([row[shared] for row in rows])
    print_table(results, numbers)
    for (kind, shared), told in results.items():
        if shared == "sums" or shared in EPSILONS:
            print_metric(f"plans_{shared}_{kind}_equal", 1 - told["any"])
            print_metric(
                f"plans_{shared}_{kind}_equal_patch", 1 - told["patch"], TARGETS.get(kind) if shared == "sums" else None
            )
            continue
        for what in REPORTED:
            print_metric(f"plans_{shared}_{kind}_{what}", told[what])


def print_metric(name: str, value: float, target: float | None = None) -> None:
    """A line of JSON."""
    metric = name.lower().replace(",", "").replace(" ", "_")
    print(json.dumps({"metric": metric, "value": round(value, 4), "unit": "ratio", "target": target}), flush=True)


if __name__ == "__main__":
    main()

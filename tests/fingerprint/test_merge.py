"""Merging of node fingerprints, against values of the original implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fednnunet.errors import ProtocolError
from fednnunet.fingerprint import DatasetFingerprint, merge_fingerprints
from fednnunet.fingerprint.bins import IntensityBins
from fednnunet.fingerprint.schema import ChannelIntensities

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "fingerprints.json").read_text())


@pytest.fixture
def parts() -> list[DatasetFingerprint]:
    return [DatasetFingerprint.parse(part, "node") for part in GOLDEN["fingerprints"]]


def test_merge_reproduces_the_original(parts: list[DatasetFingerprint]) -> None:
    merged = merge_fingerprints(parts)
    assert merged["spacings"] == GOLDEN["merged"]["spacings"]
    assert merged["shapes_after_crop"] == GOLDEN["merged"]["shapes_after_crop"]
    name = "median_relative_size_after_cropping"
    assert merged[name] == pytest.approx(GOLDEN["merged"][name], rel=1e-12)
    name = "foreground_intensity_properties_per_channel"
    for channel, expected in GOLDEN["merged"][name].items():
        assert merged[name][channel] == pytest.approx(expected, rel=1e-6)


def test_merge_of_one_is_itself(parts: list[DatasetFingerprint]) -> None:
    assert merge_fingerprints(parts[:1]) == parts[0].to_dict()


def test_merge_weighs_by_cases(parts: list[DatasetFingerprint]) -> None:
    doubled = parts[1].model_copy(
        update={
            "spacings": parts[1].spacings * 2,
            "shapes_after_crop": parts[1].shapes_after_crop * 2,
        }
    )
    once = merge_fingerprints([parts[0], parts[1], parts[1]])
    twice = merge_fingerprints([parts[0], doubled])
    for channel, expected in once["foreground_intensity_properties_per_channel"].items():
        assert twice["foreground_intensity_properties_per_channel"][channel] == pytest.approx(expected)


def contribution(low: float = 0.0, channels: tuple[str, ...] = ("0", "1"), voxels: int = 6) -> DatasetFingerprint:
    """Of one case, with integer intensities from ``low``."""
    bins = IntensityBins(low=low, width=1.0, number=3, integer=True)
    histogram = [voxels - voxels // 2, 0, voxels // 2]
    intensities = ChannelIntensities(
        count=voxels, mean=low + 1, squared_deviations=voxels, low=low, high=low + 2, bins=bins, histogram=histogram
    )
    return DatasetFingerprint(
        spacings=[[3.0, 1.0, 1.0]],
        shapes_after_crop=[[8, 64, 64]],
        relative_sizes=[1.0],
        intensities=dict.fromkeys(channels, intensities),
    )


def own(parts: list[DatasetFingerprint], channels: tuple[str, ...]) -> DatasetFingerprint:
    """nnU-Net's statistics of a node with these of the golden channels."""
    field = "foreground_intensity_properties_per_channel"
    return parts[0].model_copy(update={field: {channel: getattr(parts[0], field)[channel] for channel in channels}})


def healthy(part: DatasetFingerprint) -> DatasetFingerprint:
    """The fingerprint of the same node without any foreground."""
    field = "foreground_intensity_properties_per_channel"
    return DatasetFingerprint.parse({**part.to_dict(), field: {"0": {}, "1": {}}}, "node")


def test_a_node_without_foreground_adds_its_shapes_alone(parts: list[DatasetFingerprint]) -> None:
    field = "foreground_intensity_properties_per_channel"
    merged, others = merge_fingerprints([parts[0], healthy(parts[1])]), merge_fingerprints(parts[:1])
    assert merged[field] == others[field]
    assert merged["spacings"] == merge_fingerprints(parts[:2])["spacings"]


def test_a_channel_that_a_node_lacks_is_that_of_the_others(parts: list[DatasetFingerprint]) -> None:
    field = "foreground_intensity_properties_per_channel"
    for lacking, other in ((own(parts, ("0",)), parts[1]), (contribution(channels=("0",)), contribution(low=1.0))):
        if lacking.adds_up:  # over the bins of both
            other = other.model_copy(
                update={"intensities": {**other.intensities, "0": contribution().intensities["0"]}}
            )
        merged = merge_fingerprints([lacking, other], ["0", "1"])
        assert merged[field]["1"] == merge_fingerprints([other])[field]["1"]
        assert len(merged["spacings"]) == lacking.num_cases + other.num_cases


def test_merge_refuses_parts_that_disagree(parts: list[DatasetFingerprint]) -> None:
    first = contribution()
    for disagreeing, problem in (
        ([own(parts, ("0",)), parts[1]], "different channels: 0 and 0, 1"),
        ([first, contribution(channels=("0",))], "different channels: 0, 1 and 0"),
        ([first, contribution(low=5.0)], "channel 0: histograms have different bins"),
        ([first, parts[0]], "of two kinds: some add up, some are nnU-Net's statistics"),
        ([contribution(voxels=0)] * 2, "channel 0: no node has foreground"),
        ([healthy(parts[0])] * 2, "channel 0: no node has foreground"),
        ([], "no fingerprint to merge"),
    ):
        with pytest.raises(ValueError, match=problem):
            merge_fingerprints(disagreeing)


def test_the_order_of_channels_does_not_matter(parts: list[DatasetFingerprint]) -> None:
    for first, turned in (
        (contribution(), contribution(channels=("1", "0"))),
        (own(parts, ("0", "1")), own(parts, ("1", "0"))),
    ):
        assert merge_fingerprints([first, turned]) == merge_fingerprints([first, first])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "node B sent a fingerprint that is not JSON: .*line 1"),
        ('{"spacings": [[1, 1', "node B sent a fingerprint that is not JSON"),
        (b"\xff\xfe\x00", "node B sent a fingerprint that is not JSON"),
        ("[]", "node B sent a malformed fingerprint: fingerprint: must hold keys with values"),
        ('{"shapes_after_crop": []}', "node B sent a malformed fingerprint: spacings: is missing"),
        ('{"spacings": [[NaN, 1, 1]], "shapes_after_crop": [[1, 1, 1]]}', "malformed fingerprint: spacings.0.0"),
    ],
)
def test_malformed_json_is_refused_with_node_and_place(text: str | bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        DatasetFingerprint.from_json(text, "node B")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"spacings": [[1.0, 1.0]]}, "spacings"),
        ({"spacings": [[1.0, 1.0, float("nan")]] * 3}, "spacings"),
        ({"spacings": [[1.0, 1.0, -1.0]] * 3}, "greater than 0"),
        ({"shapes_after_crop": [[1, 2, 3]]}, "differ in length"),
        ({"median_relative_size_after_cropping": 1.5}, "median_relative_size"),
        ({"case_names": ["patient_001"]}, "case_names"),
    ],
)
def test_malformed_fingerprint_is_refused_with_node_and_field(change: dict, field: str) -> None:
    with pytest.raises(ProtocolError, match=f"(?s)node B.*{field}"):
        DatasetFingerprint.parse(GOLDEN["fingerprints"][0] | change, "node B")

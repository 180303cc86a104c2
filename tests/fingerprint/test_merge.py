"""Merging of node fingerprints, against values of the original implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fednnunet.errors import ProtocolError
from fednnunet.fingerprint import LocalFingerprint, merge_fingerprints

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "fingerprints.json").read_text())


@pytest.fixture
def parts() -> list[LocalFingerprint]:
    return [LocalFingerprint.parse(part, "node") for part in GOLDEN["fingerprints"]]


def test_merge_reproduces_the_original(parts: list[LocalFingerprint]) -> None:
    merged = merge_fingerprints(parts)
    assert merged["spacings"] == GOLDEN["merged"]["spacings"]
    assert merged["shapes_after_crop"] == GOLDEN["merged"]["shapes_after_crop"]
    name = "median_relative_size_after_cropping"
    assert merged[name] == pytest.approx(GOLDEN["merged"][name], rel=1e-12)
    name = "foreground_intensity_properties_per_channel"
    for channel, expected in GOLDEN["merged"][name].items():
        assert merged[name][channel] == pytest.approx(expected, rel=1e-6)


def test_merge_of_one_is_itself(parts: list[LocalFingerprint]) -> None:
    assert merge_fingerprints(parts[:1]) == parts[0].to_dict()


def test_merge_weighs_by_cases(parts: list[LocalFingerprint]) -> None:
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


def test_merge_refuses_differing_channels(parts: list[LocalFingerprint]) -> None:
    one_channel = parts[0].model_copy(
        update={
            "foreground_intensity_properties_per_channel": {
                "0": parts[0].foreground_intensity_properties_per_channel["0"]
            }
        }
    )
    with pytest.raises(ValueError, match="different channels"):
        merge_fingerprints([one_channel, parts[1]])


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
        LocalFingerprint.parse(GOLDEN["fingerprints"][0] | change, "node B")

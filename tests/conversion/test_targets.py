"""The datasets that centres' cases are written to."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from fednnunet.conversion.scan_result import ScanResult, SourceCase, SourceImage
from fednnunet.conversion.targets import TargetCentre, configured_targets, numbered_targets
from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import NodeName


def scan(*centres: str) -> ScanResult:
    image = SourceImage(Path("image.nii.gz"))
    return ScanResult(tuple(SourceCase("case", centre, (image,), image, {1: "tumour"}) for centre in centres), ("MRI",))


def test_centres_are_numbered_in_their_order() -> None:
    assert numbered_targets(scan("Oslo", "Málaga", "Oslo"), "Liver CT", 620, ["Oslo"]) == [
        TargetCentre("Málaga", "Dataset620_LiverCT_Malaga"),
        TargetCentre("Oslo", "Dataset621_LiverCT_Oslo", external=True),
    ]


def test_external_centres_may_have_commas_in_their_names() -> None:
    centres = ["Cardiff University, Wales, UK", "Cardiff University", "Dresden,Germany"]
    done = numbered_targets(
        scan(*centres, "Oslo"), "X", 601, ["Cardiff University", "Wales", "UK", "Dresden", "Germany"]
    )
    assert [centre.name for centre in done if centre.external] == [centres[0], centres[2]]


@pytest.mark.parametrize("name", ["Málaga", "São Paulo (São Luiz)", "東京", "_x", "a" * 99])
def test_every_centre_has_a_name_that_a_node_may_have(name: str) -> None:
    node = TargetCentre(name, "Dataset601_X").node
    assert TypeAdapter(NodeName).validate_python(node) == node


@pytest.mark.parametrize(
    ("centres", "first", "external", "problem"),
    [
        (["A", "B"], 1, ["C"], "--external: C is none of the centres: A, B"),
        (["A", "B"], 1, ["A", "B"], "all centres would only test; at least one must train"),
        (["A", "B"], 999, [], "2 centres do not fit between 999 and 999"),
        (["Malaga", "Málaga"], 1, [], "its node would be named Malaga, like another"),
    ],
)
def test_centres_that_cannot_be_numbered_are_refused(
    centres: list[str], first: int, external: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        numbered_targets(scan(*centres), "Custom", first, external)


def test_external_centres_of_a_configuration_are_apart() -> None:
    training, labels = configured_targets("mnms", external=False)
    external, _ = configured_targets("mnms", external=True)
    assert [centre.name for centre in external] == ["ACDC"]
    assert len(training) == 5
    assert labels == {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
    with pytest.raises(ConfigError, match="names no labels"):
        configured_targets("phantom", external=False)
    with pytest.raises(ConfigError, match=r"there is no dataset mnm in .* there are .*mnms"):
        configured_targets("mnm", external=False)

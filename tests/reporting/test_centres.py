"""Figure and tables of centres show what was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes

from fednnunet.datasets.quality.console import as_json, sentence
from fednnunet.datasets.quality.summary import CaseMeasures, CentreSummary, DataIssue, Percentiles
from fednnunet.reporting.figures import centre_summaries


def centre(name: str, volumes: list[int], **fields: object) -> CentreSummary:
    cases = tuple(
        CaseMeasures(
            name=f"{name}_{number}",
            shape=(8, 100 + number, 120),
            spacing=(3.0, 1.0, 0.5),
            orientation="LPS",
            plane="axial",
            intensities=(Percentiles(1.0, 10.0 + number, 90.0), Percentiles(0.0, 5.0, 9.0)),
            label_voxels={1: voxels} if voxels else {},
            digest=f"{name}{number}",
        )
        for number, voxels in enumerate(volumes)
    )
    summary = CentreSummary(name, "Dataset001_X", False, ("T1", "T2"), {"tumour": (1,)}, None, cases)
    return replace(summary, **fields)  # type: ignore[arg-type]


@pytest.fixture
def centres() -> list[CentreSummary]:
    turned = centre("Porto", [700, 900, 30, 40])
    lying = [replace(turned.cases[0], plane="sagittal", orientation="PSL"), *turned.cases[1:]]
    return [centre("Oslo", [10, 20, 0]), replace(turned, cases=tuple(lying)), centre("Riga", [5], external=True)]


def dots(axes: Axes) -> list[list[float]]:
    return [list(line.get_ydata()) for line in axes.lines if line.get_label() == "case"]


def test_one_row_per_quantity_and_one_dot_per_case(centres: list[CentreSummary]) -> None:
    rows = {axes.get_title(loc="left").split(":")[0]: axes for axes in centre_summaries(centres).axes}
    assert list(rows) == [
        "image size in voxels",
        "spacing in mm",
        "intensity of T1",
        "intensity of T2",
        "volume of tumour in mm³",
        "orientation",
    ]
    assert dots(rows["image size in voxels"])[:3] == [[8, 8, 8], [100, 101, 102], [120, 120, 120]]
    assert dots(rows["spacing in mm"])[-3:] == [[3.0], [1.0], [0.5]]
    assert dots(rows["intensity of T1"])[1] == [10.0, 11.0, 12.0]
    assert dots(rows["volume of tumour in mm³"]) == [[15.0, 30.0], [1050.0, 1350.0, 45.0, 60.0], [7.5]]
    assert [text.get_text() for text in rows["volume of tumour in mm³"].texts] == ["not in 1 of 3"]
    assert [text.get_text() for text in rows["orientation"].texts] == [
        "axial LPS",
        "axial LPS: 3",
        "sagittal PSL: 1",
        "axial LPS",
    ]
    labels = [text.get_text() for text in rows["orientation"].get_xticklabels()]
    assert labels == ["Oslo\n3 cases", "Porto\n4 cases", "Riga\n1 case\n(external)"]


def test_values_far_apart_are_drawn_on_a_logarithmic_axis(centres: list[CentreSummary]) -> None:
    *_, volumes, _ = centre_summaries(centres).axes
    assert volumes.get_yscale() == "log"
    low, high = volumes.get_ylim()
    assert low < 7.5
    assert high > 1350
    assert set(volumes.get_yticks()) <= {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000}
    *_, volumes, _ = centre_summaries([centre("Oslo", [10, 20])]).axes
    assert volumes.get_yscale() == "linear"


def test_images_without_spacing_have_neither_spacing_nor_orientation(centres: list[CentreSummary]) -> None:
    flat = [
        replace(of, cases=tuple(replace(case, spacing=None, plane="", orientation="") for case in of.cases))
        for of in centres
    ]
    titles = [axes.get_title(loc="left") for axes in centre_summaries(flat).axes]
    assert not any(title.startswith(("spacing", "orientation")) for title in titles)
    assert titles[-1] == "volume of tumour in pixels"


def test_a_warning_names_three_cases_at_most() -> None:
    issue = DataIssue("warning", "Oslo", "empty mask", "nothing there", ("a", "b", "c", "d"), 9, "look")
    assert sentence(issue) == "Oslo, empty mask: 4 of 9 cases (a, b, c …); nothing there"
    assert sentence(replace(issue, cases=())) == "Oslo, empty mask: nothing there"


def test_json_holds_numbers_that_json_has(centres: list[CentreSummary]) -> None:
    without_cases = replace(centres[0], cases=())
    content = json.loads(as_json([*centres, without_cases], []))
    assert content["centres"][1]["orientations"] == {"sagittal PSL": 1, "axial LPS": 3}
    assert content["centres"][0]["intensities"]["T1"] == {"low": 1.0, "median": 11.0, "high": 90.0}
    assert content["centres"][0]["labels"]["tumour"] == {
        "cases": 2,
        "volume": {"min": 15.0, "median": 22.5, "max": 30.0},
    }
    assert content["centres"][3]["shape"] is None
    assert np.isfinite(content["centres"][2]["labels"]["tumour"]["volume"]["max"])

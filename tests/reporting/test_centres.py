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


# many centres --------------------------------------------------------------------------------------------


@pytest.fixture
def many() -> list[CentreSummary]:
    """Thirteen centres, of which one has more cases than the others and one is external."""
    volumes = {f"H{number}": [100 * (1 + 5 * number % 12), 10, 2000] for number in range(11)}
    found = [centre(name, of_centre) for name, of_centre in volumes.items()]
    lying = [replace(found[0].cases[0], plane="sagittal", orientation="PSL"), *found[0].cases[1:]]
    found[0] = replace(found[0], cases=tuple(lying))
    return [*found, centre("Large", [50, 0, 60, 70]), centre("Riga", [5], external=True)]


def medians(axes: Axes) -> list[float]:
    return [float(line.get_ydata()[0]) for line in axes.lines if line.get_label() == "median"]


def test_more_centres_than_can_be_told_apart_are_sorted_by_their_medians(many: list[CentreSummary]) -> None:
    assert "number of cases" not in {axes.get_title(loc="left") for axes in centre_summaries(many[:12]).axes}
    panels = centre_summaries(many).axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles[:7] == ["number of cases", "image size in voxels:  Z", "Y", "X", "spacing in mm:  Z", "Y", "X"]
    assert titles[7:10] == ["intensity of T1:  0.5 %", "median", "99.5 %"]
    assert medians(panels[0]) == [3.0] * 11 + [4.0, 1.0]
    volume = next(axes for axes in panels if axes.get_title(loc="left") == "volume of tumour in mm³")
    inside = [float(np.median(of.volumes("tumour")[of.voxels("tumour") > 0])) for of in many[:-1]]
    assert medians(volume) == [*sorted(inside), 7.5]
    assert [label.get_text() for label in volume.get_xticklabels()] == ["Large", many[int(np.argmax(inside[:-1]))].name]
    assert volume.get_title(loc="right") == "not in 1 of 38 cases, of 1 centre"


def test_of_many_centres_external_ones_are_hollow_and_orientations_are_counted(many: list[CentreSummary]) -> None:
    *_, orientations = panels = centre_summaries(many).axes
    faces = [line.get_markerfacecolor() for line in panels[0].lines if line.get_label() == "median"]
    assert [face == "white" for face in faces] == [False] * 12 + [True]
    assert [text.get_text() for text in orientations.texts] == ["axial LPS\n37 at 13 of 13"]
    assert orientations.get_xlabel() == "sagittal PSL: 1 at 1 of 13"


def test_of_many_centres_one_may_have_no_readable_case(many: list[CentreSummary]) -> None:
    panels = centre_summaries([*many, replace(many[0], name="Empty", cases=())]).axes
    assert medians(panels[0])[0] == 0.0
    assert len(medians(panels[1])) == 13


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

"""Who annotates what: the server's table, read for the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fednnunet.errors import DataError
from fednnunet.reporting.annotation import Annotation, annotation_tables, read_annotation
from fednnunet.reporting.report import write_report
from fednnunet.reporting.results import collect_results
from fednnunet.reporting.run_folder import read_runs
from fednnunet.run_files import CHANNEL_COLUMNS
from fednnunet.server.run_recorder import RunRecorder
from tests.support.run_folders import many_nodes

pytestmark = pytest.mark.usefixtures("undrawn")

MakeRun = Callable[..., Path]
VALUES = {"background": 0, "aorta": 1, "liver": 2, 'spleen, "left"': 3, "ignore": 4}
ANNOTATED = {
    "ISPY1": ["background", "aorta", "liver"],
    "label": ["background", "liver"],
    "KAUNO": ["background", "aorta", 'spleen, "left"', "ignore"],
}
"""A node may have the name of a column."""


def table_of(folder: Path) -> Path:
    RunRecorder(folder, "asym").on_labels(VALUES, ANNOTATED)
    return folder / "labels.csv"


def test_what_the_server_writes_is_read(tmp_path: Path) -> None:
    annotation = read_annotation(table_of(tmp_path))
    assert annotation == Annotation(
        {
            "background": ["ISPY1", "label", "KAUNO"],
            "aorta": ["ISPY1", "KAUNO"],
            "liver": ["ISPY1", "label"],
            'spleen, "left"': ["KAUNO"],
            "ignore": ["KAUNO"],
        },
        ["ISPY1", "label", "KAUNO"],
    )
    assert read_annotation(tmp_path / "no such.csv") is None


def test_each_node_has_a_column_and_external_ones_come_last(tmp_path: Path) -> None:
    ((about, table),) = annotation_tables(
        [("local", read_annotation(table_of(tmp_path))), ("asym", read_annotation(table_of(tmp_path))), ("ffe", None)],
        external=["ISPY1"],
    )
    assert about == "local, asym"
    assert table.titles == ["label", "label", "KAUNO", "ISPY1 (external)"]
    assert table.rows == [
        ["aorta", "–", "✓", "✓"],
        ["liver", "✓", "–", "✓"],
        ['spleen, "left"', "–", "✓", "–"],
        ["ignore", "–", "✓", "–"],
    ]
    assert table.alone == 'aorta (KAUNO), liver (label), spleen, "left" (KAUNO)'
    assert table.per_node == []


def test_runs_that_differ_have_a_table_each_and_pooled_images_none() -> None:
    ours, theirs = Annotation({"liver": ["A", "B"]}, ["A", "B"]), Annotation({"liver": ["A"]}, ["A", "B"])
    pooled = Annotation({"liver": ["centralized"]}, ["centralized"])
    tables = annotation_tables([("asym", ours), ("centralized", pooled), ("ffe", theirs), ("asym", ours)], [])
    assert [about for about, _ in tables] == ["asym", "ffe"]
    assert [table.alone for _, table in tables] == ["", "liver (A)"]


def test_of_a_hundred_nodes_labels_are_counted(write_run: MakeRun, tmp_path: Path) -> None:
    nodes, external = many_nodes()
    run = write_run(tmp_path / "asym", "asym", nodes=nodes, external=external, held_out=None, labels=("tumour",))
    annotated = {
        node: ["background", "tumour", *(["vessel"] if number % 3 == 0 else []), *(["cyst"] if node == "H007" else [])]
        for number, node in enumerate([*nodes, *external])
    }
    RunRecorder(run, "asym").on_labels({"background": 0, "cyst": 1, "tumour": 2, "vessel": 3}, annotated)
    page = ElementTree.fromstring(  # well-formed, too
        write_report(tmp_path, collect_results(read_runs([run]))).read_text().removeprefix("<!DOCTYPE html>")
    )
    assert "Who annotates what" in [title.text for title in page.findall(".//section[@id='run']/h3")]
    tables = page.findall(".//section[@id='run']//table")
    by_title = {"".join(table.find("thead/tr").itertext()): table for table in tables}  # type: ignore[union-attr]
    counts = by_title["labelof 90 training nodesof 10 externalsuch as"]
    rows = [["".join(cell.itertext()) for cell in row] for row in counts.findall("tbody/tr")]
    assert rows == [
        ["cyst", "1", "0", "H007"],
        ["tumour", "90", "10", "H000, H001, H002, H003, H004 and 85 more"],
        ["vessel", "30", "4", "H000, H003, H006, H009, H012 and 25 more"],
    ]
    each = {row[0].text: row[1].text for row in by_title["nodelabels"].findall("tbody/tr")}
    assert len(each) == 100
    assert each["H007"] == "cyst, tumour"
    assert each["X00 (external)"] == "tumour, vessel"
    notes = [note.text or "" for note in page.findall(".//section[@id='run']/p[@class='note']")]
    assert any("One training node alone annotates cyst (H007)" in note for note in notes)


def test_the_report_shows_who_has_which_channel(write_run: MakeRun, tmp_path: Path) -> None:
    run = write_run(tmp_path / "asym", "asym", nodes={"Oslo": 5, "Riga": 5}, held_out=None, labels=("tumour",))
    RunRecorder(run, "asym").on_channels(["background", "T1"], {"Oslo": ["background", "T1"], "Riga": ["T1"]})
    channels = read_annotation(run / "channels.csv", CHANNEL_COLUMNS)
    assert channels == Annotation({"background": ["Oslo"], "T1": ["Oslo", "Riga"]}, ["Oslo", "Riga"])
    page = ElementTree.fromstring(
        write_report(tmp_path, collect_results(read_runs([run]))).read_text().removeprefix("<!DOCTYPE html>")
    )
    titles = [title.text for title in page.findall(".//section[@id='run']/h3")]
    assert "Who has which channel" in titles
    assert "Who annotates what" not in titles
    tables = page.findall(".//section[@id='run']//table")
    (table,) = (found for found in tables if "".join(found.find("thead/tr").itertext()) == "channelOsloRiga")  # type: ignore[union-attr]
    rows = [[cell.text for cell in row] for row in table.findall("tbody/tr")]
    assert rows == [["background", "✓", "–"], ["T1", "✓", "✓"]], "a channel may have the name of a label"
    notes = [note.text or "" for note in page.findall(".//section[@id='run']/p[@class='note']")]
    assert any("One training node alone has background (Oslo)" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not a readable table"),
        ("label,name,Oslo\n", "must have the columns label, value, then one per node"),
        ("label,value,Oslo,Oslo\n", "must have the columns label, value, then one per node"),
        ("label,value,Oslo\nliver,1\n", "line 2 must be a label, its value, and yes or nothing per node"),
        ("label,value,Oslo\nliver,1,yes\nspleen,2,no\n", "line 3 must be a label"),
        ('label,value,Oslo\n"liver,1,yes\n', "is not a readable table"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"^{path}:? {problem}"):
        read_annotation(path)

"""The page is whole, needs nothing from outside, and says what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from fednnunet.errors import DataError
from fednnunet.reporting.privacy import statements_of
from fednnunet.reporting.report import format_duration, write_report
from fednnunet.reporting.results import collect_results
from fednnunet.reporting.run_folder import read_runs
from tests.support.run_folders import many_nodes

pytestmark = pytest.mark.usefixtures("undrawn")  # but for pages of module-wide fixtures, made before it

MakeRun = Callable[..., Path]
STRATEGIES = ("local", "asym", "ffe", "centralized")


def parse(report: Path) -> ElementTree.Element:
    """Well-formed or an error: the template is written as XML, too."""
    text = report.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def report_of(folder: Path, runs: list[Path], **options: Any) -> ElementTree.Element:
    return parse(write_report(folder, collect_results(read_runs(runs), **options)))


def texts(page: ElementTree.Element, path: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in page.findall(path)]


@pytest.fixture(scope="module")
def comparison(write_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> ElementTree.Element:
    folder = tmp_path_factory.mktemp("sweep")
    return report_of(folder, [write_run(folder / name, name, overlays=True) for name in STRATEGIES])


def test_nothing_is_loaded_from_outside(comparison: ElementTree.Element) -> None:
    for element in comparison.iter():
        source = element.get("src")
        assert source is None or source.startswith("data:image/")
        assert element.tag not in ("script", "link", "iframe", "object")
        target = element.get("href")
        assert target is None or target.startswith(("https://doi.org/", "#"))
    (style,) = comparison.findall(".//style")
    assert "url(" not in (style.text or "")
    assert "@import" not in (style.text or "")


def test_every_node_and_set_up_has_its_place(comparison: ElementTree.Element) -> None:
    heads = texts(comparison, ".//section[@id='results']//thead//th")
    assert [head.split()[0] for head in heads[1:]] == ["ISPY1", "ISPY2", "DUKE", "NACT", "mean", "KAUNO"]
    assert texts(comparison, ".//section[@id='results']//th[@scope='row']") == [*STRATEGIES, *STRATEGIES]
    plans = texts(comparison, ".//section[@id='plans']//tr[@class='group']/th")
    assert plans[:5] == ["local", "ISPY1", "ISPY2", "DUKE", "NACT"]
    assert plans[-2:] == ["centralized", "all nodes pooled"]
    assert texts(comparison, ".//section[@id='cases']/h3") == ["ISPY1", "ISPY2", "DUKE", "NACT", "KAUNO"]
    pictured = [image.get("alt", "") for image in comparison.findall(".//section[@id='cases']//img")]
    ranks = ("best", "median", "worst")
    expected = [f"NACT, {rank} case, {name}: reference and prediction" for rank in ranks for name in STRATEGIES]
    assert [alt for alt in pictured if alt.startswith("NACT")] == expected
    assert len(comparison.findall(".//section[@id='config']/details")) == 4


def test_what_nodes_said_of_their_images_is_listed_once(write_run: MakeRun, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name) for name in ("local", "asym")]
    for run in runs:
        (run / "data_notes.csv").write_text("node,kind,cases,voxels\nISPY1,label_reoriented,6,0\n")
    page = report_of(tmp_path / "report", runs)
    assert "Data notes" in texts(page, ".//section[@id='run']/h3")
    (note,) = [text for text in texts(page, ".//section[@id='run']//li") if text.startswith("ISPY1")]
    assert note == "ISPY1: labels of 6 cases were brought onto their image's grid by their headers"


def test_what_left_the_nodes_is_told_of_each_run(write_run: MakeRun, tmp_path: Path) -> None:
    runs = {name: write_run(tmp_path / name, name) for name in ("local", "asym", "ffe")}
    sums = {"colluding": 1, "min_group": 3, "limit": 64.0}
    said = "noise hides each case: noise multiplier 2, …"
    told: dict[str, dict[str, Any]] = {
        "local": {"privacy": {"secure_sums": None, "scores": "cases"}},
        "asym": {"privacy": {"secure_sums": None, "scores": "cases"}, "shared_fraction": {"ISPY1": 0.9}},
        "ffe": {
            "privacy": {"secure_sums": sums, "scores": "mean"},
            "shared_fraction": {"ISPY1": 1.0},
            "noise": {"Oslo": {"epsilon": 8.0, "meaning": said}},
            "rounds": 3,
        },
    }
    for name, run in runs.items():
        info = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**info, **told[name]}))
    columns = "strategy,round,nodes,train_loss,val_loss,pseudo_dice,update_norm\n"
    (runs["ffe"] / "round_means.csv").write_text(f"{columns}ffe,1,5,-0.5,,0.5,0.1\nffe,3,4,-0.5,,0.5,0.1\n")
    section = texts(report_of(tmp_path / "report", list(runs.values())), ".//section[@id='privacy']//li")
    by_start = {text.split(":")[0]: text for text in section}
    assert len(section) == 6
    assert "the server saw the layers of every node after each round" in by_start["asym"]
    assert any(text.startswith("local, asym: a row of scores per held-out case left the nodes") for text in section)
    assert any(text.startswith("local, asym: no noise") for text in section)
    assert f"ffe: node Oslo: {said}" in section
    assert any("ffe: the server saw sums of layers over at least 3 nodes" in text for text in section)
    assert any(text.endswith("; 1 of 3 rounds could not be opened, and were not used") for text in section)
    assert any(text.startswith("ffe: means of scores over five cases or more left the nodes") for text in section)


@pytest.mark.parametrize(
    ("sums", "noise", "seen"),
    [
        (False, {}, "the layers of every node after each round, with its losses and pseudo-Dice; layers tell"),
        (False, {"Oslo": {"meaning": "…"}}, "the layers of every node after each round, with noise; losses"),
        (True, {}, "sums of layers, losses and pseudo-Dice over at least 3 nodes"),
        (True, {"Oslo": {"meaning": "…"}}, "sums of layers over at least 3 nodes"),
    ],
)
def test_what_the_server_saw_depends_on_sums_and_noise(sums: bool, noise: dict[str, Any], seen: str) -> None:
    rules = {"colluding": 1, "min_group": 3} if sums else None
    info = {"privacy": {"secure_sums": rules, "scores": "mean"}, "shared_fraction": {"Oslo": 1.0}, "noise": noise}
    run: Any = SimpleNamespace(strategy="asym", info=info, round_means=[], folds=[0])
    told = [text for _, text in statements_of([run])]
    assert any(text.startswith(f"the server saw {seen}") for text in told)
    assert any(text.startswith("no noise") for text in told) == (not noise)


def test_set_ups_are_tested_against_local(comparison: ElementTree.Element) -> None:
    section = ".//section[@id='tests']"
    assert texts(comparison, f"{section}/h2") == ["Against local"]
    sentences = texts(comparison, f"{section}//li")
    assert [sentence.split(":")[0] for sentence in sentences] == [f"{name} over local" for name in STRATEGIES[1:]]
    centres = ["ISPY1", "ISPY2", "DUKE", "NACT", "all centres", "KAUNO"]
    assert texts(comparison, f"{section}//th[@scope='row']") == centres * 3
    marked = [
        len(row.findall("td")) for row in comparison.findall(f"{section}//tbody/tr") if "*" in "".join(row.itertext())
    ]
    stars = [text for text in texts(comparison, ".//section[@id='results']//tbody[1]//td") if "*" in text]
    assert len(marked) == len(stars) > 0, "the same tests are marked in both tables"


def test_a_mean_has_its_interval_below_it(comparison: ElementTree.Element) -> None:
    (row,) = [
        row for row in comparison.findall(".//section[@id='results']//tbody[1]/tr") if row.findtext("th") == "local"
    ]
    for cell in row.findall("td"):
        low, high = map(float, (cell.findtext("small") or "").split("–"))
        assert low < float((cell.text or cell.findtext("strong") or "").strip(" *\n")) < high


def test_plans_stand_side_by_side_with_the_share_that_is_averaged(comparison: ElementTree.Element) -> None:
    rows = [
        [cell.strip() for cell in row.itertext() if cell.strip()]
        for row in comparison.findall(".//section[@id='plans']//tr")
    ]
    assert ["patch (pixels)", "56 × 56", "56 × 56", "112 × 112", "56 × 56"] in rows
    assert ["parameters averaged", "61%", "61%", "23%", "61%"] in rows


def test_metadata_count_cases_and_add_up_durations(comparison: ElementTree.Element) -> None:
    names, values = texts(comparison, ".//dl/dt"), texts(comparison, ".//dl/dd")
    facts = dict(zip(names, values, strict=True))
    assert facts["Training nodes"] == "ISPY1 (12 cases), ISPY2 (36 cases), DUKE (14 cases), NACT (5 cases)"
    assert facts["Duration"] == "5 min 25 s"
    assert facts["Rounds × iterations"] == "12 × 10"
    assert facts["Started"] == "2026-01-02 03:04 UTC"


def test_what_users_typed_is_escaped(comparison: ElementTree.Element) -> None:
    assert texts(comparison, ".//section[@id='run']/pre") == ["python train.py -m strategy=local,asym <&>"]


def test_an_unfinished_run_is_reported(make_run: MakeRun, tmp_path: Path) -> None:
    whole, broken = make_run("asym"), make_run("ffe")
    (broken / "cases.csv").unlink()
    (broken / "run.json").unlink()
    page = report_of(tmp_path / "sweep", [whole, broken])
    (warning,) = texts(page, ".//p[@class='warning']")
    assert "strategy=ffe,seed=0 did not finish: it trained 12 rounds and has no scores" in warning
    assert not any("†" in note for note in texts(page, ".//p[@class='note']")), "it is not in the table"
    assert texts(page, ".//section[@id='results']//th[@scope='row']") == ["asym", "asym"]


def test_the_page_of_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    page = report_of(tmp_path, [tmp_path / "run"])
    notes = " ".join(texts(page, ".//p[@class='note']"))
    for said in (
        "No run has scores yet.",
        "No round was finished.",
        "No node has made plans yet.",
        "No pictures",
    ):
        assert said in notes


def test_no_pictures_where_images_stayed_at_their_nodes(make_run: MakeRun, tmp_path: Path) -> None:
    page = report_of(tmp_path, [make_run("asym")])
    assert page.findall(".//section[@id='cases']//img") == []
    assert "images stay at their nodes" in texts(page, ".//section[@id='cases']")[0]


def test_plans_of_another_configuration_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("asym")
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"configuration": "3d_fullres"}))
    with pytest.raises(DataError, match="no configuration 3d_fullres"):
        report_of(tmp_path, [folder])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (41.6, "42 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.fixture(scope="module")
def hundred(write_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two strategies and a hundred nodes, ten of them external."""
    folder = tmp_path_factory.mktemp("many")
    nodes, external = many_nodes()
    runs = [
        write_run(folder / name, name, nodes=nodes, external=external, held_out=None, labels=("tumour",))
        for name in ("local", "asym")
    ]
    notes = "".join(f"{node},label_reoriented,6,0\n" for node in nodes)
    (runs[0] / "data_notes.csv").write_text(f"node,kind,cases,voxels\n{notes}")
    write_report(folder, collect_results(read_runs(runs)))
    return folder


def test_many_nodes_are_summed_up_and_each_can_be_looked_up(hundred: Path) -> None:
    page = parse(hundred / "report.html")
    facts = dict(zip(texts(page, ".//dl/dt"), texts(page, ".//dl/dd"), strict=True))
    assert facts["Training nodes"] == "90, 5 to 40 cases each, 2,082 together"
    assert facts["External nodes"] == "10"
    heads = texts(page, ".//section[@id='results']//table[@class='fixed']//thead//th")
    assert heads[1:7] == ["worst", "worst tenth", "median", "best tenth", "best", "mean"]
    for element in page.iter():
        if element.tag == "details":
            element.clear()  # what is folded
    left = " ".join(page.itertext())
    assert sum(f"H{number:03}" in left for number in range(90)) < 12, "few nodes have a name at first sight"
    page = parse(hundred / "report.html")
    rows = page.findall(".//section[@id='results']//details//tbody/tr")
    assert len(rows) == 100
    (row,) = [row for row in rows if row.findtext("th") == "H037"]
    own = read_runs([hundred / "local"])[0].cases.query("node == 'H037'")["dsc"].mean()
    assert [cell.text for cell in row.findall("td")][:2] == ["15", f"{own:.3f}"]
    assert len(page.findall(".//section[@id='tests']//details//tbody/tr")) == 101, "all nodes, and all centres"
    assert len(page.findall(".//section[@id='run']//details//tbody/tr")) == 90, "what they said of their images"


def test_plans_of_many_nodes_are_grouped_by_network(hundred: Path) -> None:
    nodes, _ = many_nodes()
    fine = [node for node, cases in nodes.items() if cases > 30]
    page = parse(hundred / "report.html")
    titles = texts(page, ".//section[@id='plans']/h3")
    assert titles == ["local: 90 nodes, 2 networks", "asym: 90 nodes, 2 networks"]
    first, second = page.findall(".//section[@id='plans']//table")[1].findall("tbody/tr")
    assert [cell.text for cell in first.findall("td")][:3] == [str(90 - len(fine)), "8", "56 × 56"]
    assert [cell.text for cell in second.findall("td")][:3] == [str(len(fine)), "8", "112 × 112"]
    assert second.findtext("th/details/summary") == f"{', '.join(fine[:3])} and {len(fine) - 3} more"
    assert ", ".join(fine) in "".join(second.itertext())


def test_a_page_of_many_nodes_stays_small_offline_and_readable_without_its_script(hundred: Path) -> None:
    page = parse(hundred / "report.html")
    (script,) = page.findall(".//script")
    assert script.get("src") is None
    assert "fetch" not in (script.text or "")
    assert not page.findall(".//input"), "a search that does nothing without the script"
    assert (hundred / "report.html").stat().st_size < 2e6
    drawn = {path.stem for path in (hundred / "figures").glob("*.svg")}
    assert drawn == {"learning_curves", "round_costs", "score_distributions", "comparison", "gains"}

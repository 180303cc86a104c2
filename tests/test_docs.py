"""What the documents say is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fednnunet.reporting.paper_comparison import paper_tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted(ROOT.glob("experiments/**/README.md")),
]
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`|\[[^\]]+\]\([./]*tests/([\w/]+\.py) \"(\w+)\"\)")
"""A test: its name as text, or a link to its file with the test's name as the link's title."""
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)[^)]*\)")


def named_tests(text: str) -> list[tuple[str, str]]:
    """File below ``tests/`` and name of every test that a document names."""
    return [(file or linked_file, test or linked_test) for file, test, linked_file, linked_test in TEST.findall(text)]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_tests_that_are_named_exist(document: Path) -> None:
    for file, test in named_tests(document.read_text()):
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize(
    ("experiment", "dataset"), [("table7_mamamia", "mamamia"), ("table8_mnms", "mnms"), ("table9_aimix", "aimix")]
)
def test_experiments_quote_the_papers_numbers_and_the_folders(experiment: str, dataset: str) -> None:
    text = (ROOT / "experiments" / experiment / "README.md").read_text()
    values = paper_tables()[dataset].values
    for strategy, dsc in values["dsc"].iterrows():
        pairs = zip(dsc, values["hd95"].loc[strategy], strict=True)
        assert f"| {strategy} | {' | '.join(f'{d:.3f}, {h:.2f}' for d, h in pairs)} |" in text
    folders = re.findall(r"dataset: (\w+)", (ROOT / "conf" / "dataset" / f"{dataset}.yaml").read_text())
    assert re.findall(r"`(Dataset\w+)`", text) == folders


def test_features_name_their_tests() -> None:
    assert len(named_tests((ROOT / "docs" / "reference" / "nnunet_features.md").read_text())) > 20

"""What the documents say is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from click import Command, Context, Group

from fednnunet import run_files
from fednnunet.cli.main import app
from fednnunet.exchange.messages import Kind
from fednnunet.reporting.comparison import COMPARISON_COLUMNS
from fednnunet.reporting.paper_comparison import paper_tables
from fednnunet.reporting.tables.results_table import SUMMARY_COLUMNS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
    *sorted(ROOT.glob("experiments/**/README.md")),
    *sorted(ROOT.glob("benchmarks/*.md")),
    *sorted(ROOT.glob("findings/*.md")),
]
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`|^\[\w+\]: [./]*tests/([\w/]+\.py) \"(\w+)\"$", re.MULTILINE)
"""A test: its name as text, or ``[t1]: ../../tests/file.py "name of the test"``, which ``[test][t1]`` refers to."""
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)[^)]*\)")

HEADING_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)")


def named_tests(text: str) -> list[tuple[str, str]]:
    """File below ``tests/`` and name of every test that a document names."""
    return [(file or linked_file, test or linked_test) for file, test, linked_file, linked_test in TEST.findall(text)]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target in [*LINK.findall(text), *re.findall(r"(?m)^\[\w+\]: (?!https?:)(\S+)", text)]:
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_references_are_defined_and_used(document: Path) -> None:
    text = re.sub(r"`[^`\n]+`", "", document.read_text())
    used, defined = re.findall(r"\[\w+\]\[(\w+)\]", text), re.findall(r"(?m)^\[(\w+)\]: ", text)
    assert set(used) == set(defined)
    assert len(defined) == len(set(defined))


def anchors(document: Path) -> set[str]:
    """What a link to a heading of a document may name, as GitHub makes it."""
    text = re.sub(r"(?ms)^```.*?^```$", "", document.read_text())
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_to_headings_lead_somewhere(document: Path) -> None:
    for target, anchor in HEADING_LINK.findall(document.read_text()):
        assert anchor in anchors(document.parent / target if target else document), f"{target}#{anchor}"


def test_the_index_reaches_every_document() -> None:
    seen, open_documents = set(), [ROOT / "README.md"]
    while open_documents:
        document = open_documents.pop()
        seen.add(document)
        targets = ((document.parent / target).resolve() for target in LINK.findall(document.read_text()))
        open_documents += [path for path in targets if path.suffix == ".md" and path not in seen]
    assert not set(DOCUMENTS) - seen


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 800


def section(document: Path, title: str) -> str:
    """Text of a document below a heading, to the next one."""
    return re.split(r"(?m)^#", document.read_text().split(f" {title}\n", 1)[1])[0]


OUTPUTS = ROOT / "docs" / "reference" / "outputs.md"


@pytest.mark.parametrize(
    ("document", "title", "columns"),
    [
        (OUTPUTS, "`rounds.csv`", run_files.ROUND_COLUMNS),
        (OUTPUTS, "`round_means.csv`", run_files.ROUND_MEAN_COLUMNS),
        (OUTPUTS, "`cases.csv`", run_files.CASE_COLUMNS),
        (OUTPUTS, "`summary.csv`", SUMMARY_COLUMNS),
    ],
)
def test_columns_of_tables_are_described(document: Path, title: str, columns: list[str]) -> None:
    first_cells = re.findall(r"(?m)^\| (`.*?) \|", section(document, title))
    described = [column for cell in first_cells for column in re.findall(r"`(\w+)`", cell)]
    assert set(columns) <= set(described)
    where_needed = {"fold", run_files.NUM_CASES_COLUMN}
    assert set(described) - set(columns) <= where_needed


def test_columns_of_comparisons_are_described() -> None:
    text = section(ROOT / "docs" / "explanation" / "evaluation.md", "Statistics")
    assert set(COMPARISON_COLUMNS) - {"strategy", "reference", "node"} <= set(re.findall(r"`(\w+)`", text))


def test_files_of_a_run_are_described() -> None:
    text = OUTPUTS.read_text()
    files = [value for key, value in vars(run_files).items() if key.endswith("_FILE")]
    assert len(files) > 8
    for file in files:
        assert f"`{Path(file).name}`" in text, file


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


REFERENCE = ROOT / "docs" / "reference" / "configuration.md"
OPEN_MAPS = ("strategy.aggregation.", "gpu_memory.per_node.", "logger.", "dataset.generator.", "model.overrides.")
GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir() and path.name != "hydra")
OF_THE_READER = {"mine", "NAME", "fedadagrad"}
"""Options that documents tell readers to write."""


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if one != REFERENCE], ids=name)
def test_keys_and_options_that_are_named_exist(document: Path) -> None:
    text, group = document.read_text(), "|".join(GROUPS)
    known = set(re.findall(r"(?m)^\| `([\w.]+)` \|", REFERENCE.read_text()))
    key = rf"(?:{group})(?:\.\w+)+"
    for named in re.findall(rf"(?<![\w/.])\+?({key})(?==)|`\+?({key})`", text):
        found = named[0] or named[1]
        assert found in known or found.startswith(OPEN_MAPS) or re.search(r"\.(md|jsonl?|py|yaml|csv)$", found), found
    for chosen, options in re.findall(rf"(?<![\w/.])({group}|hydra/\w+)=([\w/,]+)", text):
        for option in set(options.split(",")) - OF_THE_READER:
            assert (ROOT / "conf" / chosen / f"{option}.yaml").is_file() or chosen == "hydra/launcher", option


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_paths_that_are_named_exist(document: Path) -> None:
    top = "conf|fednnunet|benchmarks|tests|deploy|experiments"
    for path in re.findall(rf"`((?:{top})/[\w./-]+)`", document.read_text()):
        if "NAME" not in path and not path.endswith(("/mine.yaml", "/local/default.yaml")):
            assert (ROOT / path).exists(), path


def commands(command: Command, path: str) -> list[str]:
    """A command, or those that a group of commands has."""
    if not isinstance(command, Group):
        return [path]
    context = Context(command)
    inner = {name: command.get_command(context, name) for name in command.list_commands(context)}
    return [one for name, found in inner.items() if found for one in commands(found, f"{path} {name}")]


def test_every_command_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    for command in commands(typer.main.get_command(app), "fednnunet"):
        if command.startswith("fednnunet convert "):
            assert f"`{command.split()[-1]}`" in text
        else:
            assert f"`{command}" in text, command


def test_every_message_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "messages.md").read_text()
    assert all(f"| `{kind.value}` |" in text for kind in Kind)

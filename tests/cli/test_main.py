"""``fednnunet report``: what it is asked for, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import typer
from rich.text import Text
from typer.main import get_command

from fednnunet.cli.main import app
from tests.support.command_line import CommandLine

MakeRun = Callable[..., Path]


@pytest.fixture
def report(fednnunet: CommandLine) -> CommandLine:
    return partial(fednnunet, "report")


@pytest.mark.usefixtures("undrawn")
def test_reference_and_external_models_are_chosen(
    report: CommandLine, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("local", "ffe"):
        make_run(name)
    code = report(tmp_path / "sweep", "--out", tmp_path / "out", "--reference", "ffe", "--external", "ensemble")
    assert code == 0
    comparisons = pd.read_csv(tmp_path / "out" / "comparisons.csv")
    assert set(zip(comparisons["strategy"], comparisons["reference"], strict=True)) == {("local", "ffe")}
    cases = pd.read_csv(tmp_path / "out" / "cases.csv")
    chosen = cases.query("strategy == 'ffe' and node == 'KAUNO' and model == 'ensemble'")
    printed = capsys.readouterr().out
    assert "External nodes: the ensemble of the models of all nodes." in printed
    assert f"{chosen['dsc'].mean():.3f}" in printed
    assert "External nodes: the ensemble of the models of all nodes." in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("second", "arguments", "problem"),
    [
        ({"dataset": "other"}, (), "a report compares runs with the same dataset"),
        ({"labels": ("tumour",)}, (), "a report compares runs with the same labels"),
        (
            {},
            ("--reference", "krum"),
            "reference krum: no strategy with scores has this name; choose one of: local, ffe",
        ),
    ],
)
def test_what_can_not_be_compared_is_one_line_and_nothing_is_written(
    second: dict[str, object],
    arguments: tuple[str, ...],
    problem: str,
    report: CommandLine,
    make_run: MakeRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = make_run("local"), make_run("ffe", **second)
    assert report(*runs, "--out", tmp_path / "out", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert problem in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("external", "kept", "problem"),
    [
        ("ensemble", "model != 'ensemble'", "no run has scores of an ensemble; choose mean or best"),
        ("best", "node == 'KAUNO'", "no node scored held-out cases of its own; choose mean or ensemble"),
    ],
)
def test_external_models_that_nobody_scored_are_refused(
    external: str,
    kept: str,
    problem: str,
    report: CommandLine,
    make_run: MakeRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run("ffe")
    pd.read_csv(run / "cases.csv").query(kept).to_csv(run / "cases.csv", index=False)
    assert report(run, "--external", external, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err == f"error: external {external}: {problem}\n"


def test_a_folder_without_runs_is_refused(
    report: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(tmp_path) == 2
    assert f"{tmp_path} holds no run" in capsys.readouterr().err


def test_no_help_text_loses_words_to_markup() -> None:
    """Rich takes ``[dicom]`` for a style and shows nothing of it; ``\\[dicom]`` is shown."""
    commands = [(get_command(app), "fednnunet")]
    seen = 0
    while commands:
        command, name = commands.pop()
        if isinstance(command, typer.core.TyperGroup):
            context = typer.Context(command)
            names = command.list_commands(context)
            commands += [(command.get_command(context, called), f"{name} {called}") for called in names]
        for text in [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]:
            seen += bool(text)
            for word in re.findall(r"(?<!\\)\[[a-z][\w .]*\]", text or ""):
                assert word in Text.from_markup(text).plain, f"{name}: {word}"
    assert seen > 100

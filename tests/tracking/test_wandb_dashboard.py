"""The dashboard shows what the tracker logs, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fednnunet.cli.main import main
from fednnunet.tracking.wandb_dashboard import as_sent, build_report, metrics_of
from fednnunet.tracking.wandb_tracker import WandbTracker
from tests.support.run_folders import many_nodes, track
from tests.support.wandb_files import Logged, read_wandb

MakeRun = Callable[..., Path]


def panels(part: Any) -> Iterator[dict[str, Any]]:
    """All panels below a part of a dashboard."""
    if isinstance(part, dict):
        if "viewType" in part:
            yield part
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from panels(inner)


@pytest.fixture
def sent(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What the command writes for a finished run."""

    def send(*options: str) -> dict[str, Any]:
        out = tmp_path / "dashboard.json"
        run = make_run("asym", folder=tmp_path / "asym", overlays=True)
        monkeypatch.setattr("sys.argv", ["fednnunet", "wandb-dashboard", str(run), "--out", str(out), *options])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        content: dict[str, Any] = json.loads(out.read_text())
        return content

    return send


def test_every_metric_of_a_panel_is_one_that_the_tracker_logs(
    sent: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard = sent("--offline")
    assert "not sent" in capsys.readouterr().out
    track(WandbTracker("fednnunet", mode="offline", folder=tmp_path / "asym"), tmp_path / "asym")
    logged = list(read_wandb(tmp_path / "asym").values())
    server: Logged = next(run for run in logged if run.job_type == "server")
    nodes = [run for run in logged if run.job_type == "node"]
    shown: dict[str, set[str]] = {}
    for part in ("workspace", "report"):
        for panel in panels(dashboard[part]):
            config = panel["config"]
            keys = config.get("metrics") or config.get("mediaKeys") or []
            shown.setdefault(panel["viewType"], set()).update(keys)
            assert config.get("xAxis", "round") == "round"
            assert config.get("groupBy", "strategy.value") == "strategy.value"
    assert shown["Bar Chart"] == {
        f"{metric}/{node}" for metric in ("dsc", "hd95") for node in ("mean", "ISPY1", "ISPY2", "DUKE", "NACT", "KAUNO")
    }
    assert shown["Bar Chart"] <= set(server.summary)
    assert {"pseudo_dice/mean", "seconds_train/slowest", "bytes_up/total"} <= shown["Run History Line Plot"]
    assert shown["Run History Line Plot"] <= set(server.history)
    assert "round" in server.history
    assert all(shown["Media Browser"] <= run.media for run in nodes)
    assert "strategy" in server.config


def test_the_report_has_what_the_workspace_has(sent: Callable[..., dict[str, Any]]) -> None:
    dashboard = sent("--offline", "--project", "mine", "--entity", "us")
    workspace, report = dashboard["workspace"], dashboard["report"]
    assert (workspace["project"], workspace["entity"]) == ("mine", "us")
    assert report["project"] == {"name": "mine", "entityName": "us"}
    titles = [{panel["config"].get("chartTitle") for panel in panels(part)} for part in (workspace, report)]
    assert titles[0] <= titles[1]


@pytest.mark.parametrize(("options", "there"), [(("--sweep", "folds"), True), ((), False)])
def test_one_sweep_only_if_it_is_named(
    sent: Callable[..., dict[str, Any]], options: tuple[str, ...], there: bool
) -> None:
    assert ('"folds"' in json.dumps(sent("--offline", *options)["workspace"])) is there


def test_without_an_account_it_says_so_and_writes_the_file(
    sent: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert sent()["workspace"]["project"] == "fednnunet"
    assert "knows no W&B account" in capsys.readouterr().out


def test_runs_that_are_not_there_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fednnunet", "wandb-dashboard", str(tmp_path)])
    assert main() == 2
    assert "holds no run of train.py" in capsys.readouterr().err


def test_many_nodes_have_panels_of_their_spread(make_run: MakeRun) -> None:
    nodes, external = many_nodes()
    folder = make_run("asym", nodes=nodes, external=external, held_out=None)
    track(WandbTracker("fednnunet", mode="offline", folder=folder), folder)
    (server,) = read_wandb(folder).values()
    content = as_sent(build_report(metrics_of([folder]), "us", "mine"))
    bars = [panel["config"]["metrics"] for panel in panels(content) if panel["viewType"] == "Bar Chart"]
    names = ("mean", "lowest", "median", "highest", "external/lowest", "external/median", "external/highest")
    assert bars == [[f"{metric}/{name}"] for metric in ("dsc", "hd95") for name in names]
    assert {key for (key,) in bars} <= set(server.summary)

"""W&B without an account, for real: what was logged is read back from the files it wrote."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb
from rich.console import Console

from fednnunet.errors import ConfigError
from fednnunet.reporting.finish import compare_runs
from fednnunet.reporting.run_folder import read_run
from fednnunet.reporting.tables.results_table import SUMMARY_COLUMNS, summarise
from fednnunet.tracking.wandb_account import connection_problem
from fednnunet.tracking.wandb_tracker import WandbTracker
from tests.support.run_folders import many_nodes, track
from tests.support.wandb_files import Logged, read_wandb

MakeRun = Callable[..., Path]


Offline = tuple[Path, dict[str, Logged]]


def by_node(logged: dict[str, Logged]) -> dict[str, Logged]:
    """The run of each node, and the server's."""
    return {str(run.config.get("node", run.job_type)): run for run in logged.values()}


@pytest.fixture(scope="module")
def offline(write_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Offline:
    folder = write_run(tmp_path_factory.mktemp("run") / "asym", "asym", overrides=("gpu_memory=mixed",), overlays=True)
    track(WandbTracker("fednnunet", mode="offline", tags=["test"], folder=folder), folder)
    return folder, by_node(read_wandb(folder))


def test_one_group_with_a_run_for_the_server_and_each_node(offline: Offline) -> None:
    _, logged = offline
    assert {name: run.job_type for name, run in logged.items()} == {
        "server": "server",
        **dict.fromkeys(("ISPY1", "ISPY2", "DUKE", "NACT", "KAUNO"), "node"),
    }
    (group,) = {run.group for run in logged.values()}
    assert group.startswith("asym-phantom-seed0-fold0-")
    assert {tuple(run.tags) for run in logged.values()} == {("asym", "phantom", "2d", "test")}
    assert {run.exit_code for run in logged.values()} == {0}


def test_curves_scores_and_plans_are_those_of_the_run_folder(offline: Offline) -> None:
    folder, logged = offline
    run = read_run(folder)
    for node in ("ISPY1", "NACT"):
        rows = run.rounds[run.rounds["node"] == node]
        assert logged[node].history["train_loss"] == pytest.approx(list(rows["train_loss"]))
        assert logged[node].history["pseudo_dice"] == pytest.approx(list(rows["pseudo_dice"].dropna()))
        assert logged[node].config["plan"]["patch_size"] == [56, 56]
    summary = summarise(run.cases).set_index("node")
    for node in ("ISPY1", "KAUNO"):
        assert logged[node].summary["dsc"] == pytest.approx(summary.loc[node, "dsc"])
        assert logged["server"].summary[f"hd95/{node}"] == pytest.approx(summary.loc[node, "hd95"])
    training = summary.drop(index="KAUNO")
    assert logged["server"].summary["dsc/mean"] == pytest.approx(training["dsc"].mean())
    assert logged["server"].history["bytes_up/total"] == [4 * 3_100_000] * 12


def test_what_was_changed_is_there_to_filter_and_group_by(offline: Offline) -> None:
    _, logged = offline
    config = logged["server"].config
    assert config["overrides"] == {"strategy": "asym", "seed": "0", "gpu_memory": "mixed"}
    assert [config[key] for key in ("strategy", "dataset", "configuration", "seed")] == ["asym", "phantom", "2d", 0]


def test_final_table_and_pictures_are_there(offline: Offline) -> None:
    _folder, logged = offline
    tables = [path for path in logged["server"].files if "results" in path.name]
    content = json.loads(tables[0].read_text())
    assert content["columns"] == SUMMARY_COLUMNS
    assert [row[1] for row in content["data"]] == ["ISPY1", "ISPY2", "DUKE", "NACT", "KAUNO"]
    for node in ("ISPY1", "KAUNO"):
        assert [path.suffix for path in logged[node].files] == [".png"]


def test_quietly_without_pictures_when_told_so_and_marked_when_failed(
    make_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_run("centralized")
    track(WandbTracker("fednnunet", "mine", mode="offline", folder=folder, pictures=False), folder, ok=False)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    logged = by_node(read_wandb(folder))
    assert {"server", "centralized"} <= set(logged)
    assert not any(path.suffix == ".png" for run in logged.values() for path in run.files)
    assert {(run.group, run.exit_code) for run in logged.values()} == {("mine", 1)}


def test_no_account_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    tracker = WandbTracker("fednnunet", "g", mode="online", folder=tmp_path)
    with pytest.raises(ConfigError, match="WANDB_MODE=offline"):
        tracker.on_run_start({})
    tracker.on_run_end(KeyboardInterrupt())


def test_curves_of_several_folds_are_told_apart(tmp_path: Path) -> None:
    tracker = WandbTracker("fednnunet", mode="offline", folder=tmp_path)
    tracker.on_run_start({"strategy": "asym", "dataset": "x", "seed": 0, "fold": [0, "all"]})
    for fold in (0, "all"):
        tracker.on_fold_start(fold, 2, 0)
        for server_round in (1, 2):
            tracker.on_round_end(server_round, [{"node": "Oslo", "train_loss": float(server_round), "fold": fold}])
    tracker.on_run_end()
    history = by_node(read_wandb(tmp_path))["Oslo"].history
    assert history["fold_0/train_loss"] == history["fold_all/train_loss"] == [1.0, 2.0]
    assert history["round"] == [1, 2, 1, 2]


def test_an_interrupted_run_goes_on_under_its_ids(tmp_path: Path) -> None:
    for server_round in (1, 2):
        tracker = WandbTracker("fednnunet", mode="offline", folder=tmp_path)
        tracker.on_run_start(
            {"strategy": "asym", "dataset": "x", "seed": 0, "fold": 0, "started": f"at {server_round}"}
        )
        tracker.on_fold_start(0, 2, 0)
        tracker.on_round_end(server_round, [{"node": "Oslo", "train_loss": 0.5}])
        tracker.on_run_end(None if server_round == 2 else KeyboardInterrupt())
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 2, "one id for the server, one for the node"
    assert {run.group for run in read_wandb(tmp_path).values()} == {"asym-x-seed0-fold0-at 1"}


def test_jobs_of_a_sweep_are_found_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "3_ffe_seed1"
    tracker = WandbTracker("fednnunet", mode="offline", folder=folder)
    tracker.on_run_start({"strategy": "ffe", "dataset": "x", "seed": 1, "fold": 0, "sweep": "all_strategies"})
    tracker.on_run_end()
    ((name, run),) = read_wandb(folder).items()
    assert (name, run.group, run.config["sweep"]) == ("3_ffe_seed1", "all_strategies/3_ffe_seed1", "all_strategies")
    assert "all_strategies" in run.tags


@pytest.fixture(scope="module")
def compared(write_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sweep, with its comparison."""
    sweep = tmp_path_factory.mktemp("compared") / "all"
    runs = [write_run(sweep.parent / strategy, strategy, overlays=True) for strategy in ("local", "asym")]
    compare_runs(sweep, runs, Console(quiet=True))
    return sweep


@pytest.mark.parametrize("pictures", [True, False])
def test_a_sweeps_comparison_is_a_run_of_its_own(compared: Path, tmp_path: Path, pictures: bool) -> None:
    sweep = shutil.copytree(compared, tmp_path / "all")
    tracker = WandbTracker("fednnunet", mode="offline", folder=sweep, pictures=pictures)
    tracker.log_comparison(sweep)
    tracker.on_run_end()
    ((name, run),) = read_wandb(sweep).items()
    assert (name, run.job_type, run.group) == ("comparison all", "comparison", "all")
    assert {"results", "learning_curves", "case_scores"} <= run.media
    (table,) = [path for path in run.files if "results" in path.name]
    assert {row[0] for row in json.loads(table.read_text())["data"]} == {"local", "asym"}
    # Without pictures no image leaves, nor the report, which holds some.
    assert ("report" in run.media) == ("overlay_ISPY1" in run.media) == pictures
    pages = [path.read_text() for path in run.files if path.suffix == ".html"]
    assert pages == ([(sweep / "report.html").read_text()] if pictures else [])


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have an account at an address."""

    def at(address: str) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "local-" + "a" * 40)
        wandb.teardown()  # it keeps the settings that it began with

    return at


def test_without_a_network_a_run_goes_on_offline_within_seconds(
    make_run: MakeRun, account: Callable[[str], None]
) -> None:
    account("http://127.0.0.1:9")
    folder, messages = make_run("asym"), list[str]()
    tracker = WandbTracker("fednnunet", mode="online", folder=folder)
    tracker.notify = messages.append
    track(tracker, folder)
    (line,) = messages
    assert "W&B cannot be reached at http://127.0.0.1:9" in line
    assert f"wandb sync {folder}/wandb/offline-run-*" in line
    server = by_node(read_wandb(folder))["server"]
    assert server.exit_code == 0
    assert "dsc/mean" in server.summary


def test_a_certificate_file_of_the_environment_that_is_not_there_is_named(
    account: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    account("https://127.0.0.1:9")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file.pem")
    problem = connection_problem()
    assert "invalid path: /no/such/file.pem (REQUESTS_CA_BUNDLE" in problem


def test_behind_a_page_that_is_not_wandb_a_run_goes_on_offline(
    make_run: MakeRun, account: Callable[[str], None]
) -> None:
    folder, messages = make_run("asym"), list[str]()
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        account(f"http://127.0.0.1:{page.server_port}")
        tracker = WandbTracker("fednnunet", mode="online", folder=folder)
        tracker.notify = messages.append
        track(tracker, folder)
        page.shutdown()
    (line,) = messages
    assert line.startswith("W&B does not answer")
    assert "dsc/mean" in by_node(read_wandb(folder))["server"].summary


def test_many_nodes_are_summarised_in_one_run_and_kept_out_of_its_charts(make_run: MakeRun) -> None:
    nodes, external = many_nodes()
    folder = make_run("asym", nodes=nodes, external=external, held_out=None, overlays=True)
    track(WandbTracker("fednnunet", mode="offline", folder=folder), folder)
    (server,) = read_wandb(folder).values()
    run = read_run(folder)
    assert server.job_type == "server"
    drawn = {key for key in server.history if not key.startswith("nodes/")}
    assert not any(node in key for key in [*drawn, *server.config] for node in [*nodes, *external])
    assert not any(isinstance(value, dict) and "H037" in value for value in server.config.values())
    by_round = run.rounds.groupby("round")["train_loss"]
    assert server.history["train_loss/median"] == pytest.approx(list(by_round.median()))
    assert server.history["train_loss/highest"] == pytest.approx(list(by_round.max()))
    rows = run.rounds[run.rounds["node"] == "H037"]
    assert server.history["nodes/H037/train_loss"] == pytest.approx(list(rows["train_loss"]))
    assert server.hidden == {"nodes/*"}
    summary = summarise(run.cases).set_index("node")["dsc"]
    assert server.summary["nodes/H037/dsc"] == pytest.approx(summary["H037"])
    assert server.summary["dsc/lowest"] == pytest.approx(summary[list(nodes)].min())
    assert server.summary["dsc/external/median"] == pytest.approx(summary[external].median())
    pictures = [path for path in server.files if path.suffix == ".png"]
    assert len(pictures) == 6, "best, median and worst node of those that train, and of the external ones"

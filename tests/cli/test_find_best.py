"""``fednnunet find-best``: what it takes, prints, writes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fednnunet.models.model_folder import find_folders
from fednnunet.models.postprocessing import Postprocessing
from tests.best_configuration.conftest import WriteRuns, random_node, write_runs
from tests.support.command_line import CommandLine

__all__ = ["write_runs"]  # a fixture

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def find_best(
    fednnunet: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """Call the command in an empty folder; exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = fednnunet("find-best", *arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def runs(write_runs: WriteRuns) -> list[Path]:
    return write_runs({"Oslo": random_node(1, cases=5), "Porto": random_node(2, cases=3)})


def test_hospitals_come_to_the_decision_of_one_machine(find_best: Call, runs: list[Path], tmp_path: Path) -> None:
    code, out, _ = find_best(*runs, "--workers", 1)
    assert code == 0
    assert "8 held-out cases of Oslo, Porto; folds 0, 1" in out
    assert "2d + 3d_fullres" in out
    assert "\ndecision: outputs/best_configuration/best_configuration.json\n" in out
    together = tmp_path / "outputs" / "best_configuration"
    names = ["best_configuration.json", "inference_information.json", "postprocessing.json", "postprocessing.pkl"]
    assert sorted(path.name for path in together.iterdir()) == names

    # A hospital's folders are named by runs.
    for number, (run, node) in enumerate((run, node) for node in ("Oslo", "Porto") for run in runs):
        (run / "nodes" / node).rename(tmp_path / f"{node}_{number}")
    for node in ("Porto", "Oslo"):
        own = sorted(tmp_path.glob(f"{node}_?"), reverse=True)
        code, out, err = find_best(*own, "--node-sums", f"{node}.json", "--node", node, "--workers", 1)
        assert code == 0
        assert out == f"sums over {5 if node == 'Oslo' else 3} held-out cases: {node}.json\n"
        assert err.startswith("note: fewer than 5 cases have a Dice of ")
        for secret in ("case_", str(tmp_path), "Dataset2"):
            assert secret not in Path(f"{node}.json").read_text()
    assert find_best("--from-sums", "Oslo.json", "Porto.json", "--out", "apart")[0] == 0
    for name in names[:1] + names[2:3]:
        assert (tmp_path / "apart" / name).read_text() == (together / name).read_text()


def test_decision_says_all_that_others_need(find_best: Call, runs: list[Path], tmp_path: Path) -> None:
    assert find_best(*runs, "--workers", 1)[0] == 0
    folder = tmp_path / "outputs" / "best_configuration"
    best = json.loads((folder / "best_configuration.json").read_text())
    assert best["nodes"] == ["Oslo", "Porto"]
    assert [len(candidate["models"]) for candidate in best["candidates"]] == [1, 1, 2]
    assert best["best"]["dice"] == max(candidate["dice"] for candidate in best["candidates"])
    stored = Postprocessing.read(folder / "postprocessing.json")
    assert stored == Postprocessing.from_json(best["postprocessing"])
    assert [list(step.labels) for step in stored.largest_component] == [
        step["labels"] for step in best["postprocessing_steps"] if step["kept"]
    ]


def test_post_processing_is_put_beside_the_best_models(find_best: Call, runs: list[Path], tmp_path: Path) -> None:
    code, out, _ = find_best(*runs, "--workers", 1)
    assert out.endswith("find-best RUN... --use outputs/best_configuration\n")
    assert find_best(*runs, "--use", "outputs/best_configuration")[0] == 0
    decided = Postprocessing.read(tmp_path / "outputs" / "best_configuration" / "postprocessing.json")
    for folder in find_folders(runs[1]):
        assert Postprocessing.read(folder.path / "postprocessing.json") == decided, folder.node
    assert not [*runs[0].rglob("postprocessing.*")]

    code, _, err = find_best(runs[0], "--use", "outputs/best_configuration")
    assert code == 2
    assert "node Oslo has no nnUNetTrainer__nnUNetPlans__3d_fullres, which is best; name its run" in err
    path = tmp_path / "outputs" / "best_configuration" / "best_configuration.json"
    best = json.loads(path.read_text())
    best["best"]["models"] += best["candidates"][0]["models"]
    path.write_text(json.dumps(best))
    code, _, err = find_best(*runs, "--use", "outputs/best_configuration")
    assert code == 2
    assert "postprocessing.json is of an earlier decision, and would be applied before the mean of the ensemble" in err
    for folder in find_folders(runs[1]):
        (folder.path / "postprocessing.json").unlink()
    code, out, _ = find_best(*runs, "--use", "outputs/best_configuration")
    assert (code, out.count("best is the ensemble of 3d_fullres and 2d")) == (0, 1)
    path.write_text(json.dumps({"format": 1}))
    code, _, err = find_best(*runs, "--use", "outputs/best_configuration")
    assert (code, err) == (2, "error: outputs/best_configuration/best_configuration.json: best: is missing\n")


def test_models_of_the_nodes_own_are_decided_for_apart(find_best: Call, runs: list[Path], tmp_path: Path) -> None:
    assert find_best(*runs, "--workers", 1, "--out", "shared")[0] == 0
    code, _, err = find_best(*runs, "--personal")
    assert (code, err.count("\n")) == (2, 1)
    assert "run_2d holds no finished model of a node's own" in err
    for run in runs:
        for node in (run / "nodes").iterdir():
            (node / "personal").mkdir()
            (node / "nnUNet_results").rename(node / "personal" / "nnUNet_results")
    assert find_best(*runs, "--workers", 1, "--out", "own", "--personal")[0] == 0
    shared, own = (json.loads((tmp_path / name / "best_configuration.json").read_text()) for name in ("shared", "own"))
    assert own == {**shared, "personal": True}
    assert find_best(*runs, "--use", "own")[0] == 0
    beside = [path.relative_to(runs[1]).parts[2] for path in runs[1].rglob("postprocessing.json")]
    assert beside == ["personal", "personal"]

    for node, options in (("Oslo", ["--personal"]), ("Porto", ["--personal"])):
        assert find_best(*runs, "--node-sums", f"{node}.json", "--node", node, "--workers", 1, *options)[0] == 0
    told = json.loads(Path("Porto.json").read_text())
    Path("Porto.json").write_text(json.dumps({**told, "personal": False}))
    code, _, err = find_best("--from-sums", "Oslo.json", "Porto.json")
    assert code == 2
    assert (
        "models of node Porto (Porto.json) are the federation's, those of node Oslo (Oslo.json) the nodes' own" in err
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--node", "Oslo"), "--node goes with --node-sums"),
        (("--use", "x", "--no-ensembles"), "--use takes a decision as it is"),
        (("--use", "x"), "x/best_configuration.json cannot be read: No such file"),
        (("--from-sums", "--no-ensembles"), "--from-sums takes files as nodes wrote them"),
        (("--node-sums", "x.json"), "say with --node whose sums to write: Oslo, Porto"),
        (("--node-sums", "x.json", "--node", "Riga"), "the runs have no node Riga; choose one of: Oslo, Porto"),
        (("--fold", "4"), "fold 4 of 2d of node Oslo in run_2d is not finished"),
        (
            ("--out", "run_2d/nodes/Oslo/nnUNet_preprocessed/Dataset201_Oslo/splits_final.json"),
            "it is a file; name a folder",
        ),
        (("--node-sums", "run_2d", "--node", "Oslo"), "run_2d cannot be written: it is a folder; name a file"),
        (("--from-sums",), "run_2d cannot be read: Is a directory"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_written(
    find_best: Call, runs: list[Path], tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    before = set(tmp_path.iterdir())
    code, out, err = find_best(*(run.name for run in runs), *arguments)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert problem in line
    assert set(tmp_path.iterdir()) == before


def test_a_hospitals_own_folders_need_its_name(find_best: Call, runs: list[Path]) -> None:
    own = [run / "nodes" / "Oslo" for run in runs]
    for given, problem in (((), "say with --node whose sums these are"), (("--node", "a/b"), "at most 64 letters")):
        code, _, err = find_best(*own, "--node-sums", "x.json", *given)
        assert code == 2
        assert problem in err

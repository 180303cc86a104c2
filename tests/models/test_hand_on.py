"""What is handed over a second time says no more than the first card, and no less of its limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from fednnunet.errors import DataError
from fednnunet.models.card_text import as_markdown
from fednnunet.models.model_card import ModelCard
from fednnunet.models.open_archive import read_card
from fednnunet.models.open_model import open_model
from tests.support.command_line import CommandLine
from tests.support.model_zips import members
from tests.support.run_folders import MakeRun
from tests.support.trained_models import TrainedFolders

NODES = {"Oslo": 12, "Porto": 36}


@pytest.fixture
def named(trained_folders: TrainedFolders, write_run: MakeRun, tmp_path: Path, fednnunet: CommandLine) -> Path:
    """A zip with the names of the centres, a licence and a limit of its own, of two folds."""
    folder = write_run(tmp_path / "run", "ffe", fold=[0, 1], nodes=NODES, external=("Bergen",), labels=("tumour",))
    trained_folders.make_run(folder, tuple(NODES))
    options = ("--names", "--license", "CC-BY-4.0", "--limits", "Not for children.")
    assert fednnunet("export", folder, "-o", tmp_path / "named.zip", *options) == 0
    return tmp_path / "named.zip"


def card_of(path: Path) -> ModelCard:
    card = read_card(path)
    assert card is not None
    return card


def test_licence_and_limits_stay(named: Path, tmp_path: Path, fednnunet: CommandLine) -> None:
    assert fednnunet("export", named, "-o", tmp_path / "on.zip", "--names") == 0
    assert (tmp_path / "on.zip").read_bytes() == named.read_bytes()
    assert fednnunet("export", named, "-o", tmp_path / "on.zip", "--limits", "Of 1.5 T alone.") == 0
    card = card_of(tmp_path / "on.zip")
    assert card.licence == "CC-BY-4.0"
    limits = card_of(named).limits
    assert card.limits == [*limits[:2], "Of 1.5 T alone.", *limits[2:]]
    assert limits[1] == "Not for children."


def test_centres_stay_named_only_if_asked(named: Path, tmp_path: Path, fednnunet: CommandLine) -> None:
    assert fednnunet("export", named, "-o", tmp_path / "on.zip") == 0
    card, before = card_of(tmp_path / "on.zip"), card_of(named)
    assert {score.centre for score in before.run.scores} == {"Oslo", "Porto", "Bergen"}
    assert card.run.names is None
    assert [score.centre for score in card.run.scores] == ["centre 1", "centre 2", "external centre 1"]
    assert card.run.cases_of_centres == {"centre 1": 12, "centre 2": 36}
    assert [score.dsc for score in card.run.scores] == [score.dsc for score in before.run.scores]
    for name, content in members((tmp_path / "on.zip").read_bytes()).items():
        for centre in ("Oslo", "Porto", "Bergen"):
            assert centre.encode() not in content, f"{centre} in {name}"


def test_some_folds_of_a_zip_have_no_scores(named: Path, tmp_path: Path, fednnunet: CommandLine) -> None:
    assert fednnunet("export", named, "-o", tmp_path / "one.zip", "--fold", "1") == 0
    card = card_of(tmp_path / "one.zip")
    assert card.networks[0].folds == ["1"]
    assert card.run.scores == []
    assert any("No scores are known" in limit for limit in card.limits)


def test_a_card_says_that_scores_are_from_before_post_processing(named: Path) -> None:
    card = card_of(named)
    with_steps = card.model_copy(
        update={"networks": [one.model_copy(update={"postprocessing": [[1]]}) for one in card.networks]}
    )
    assert "before post-processing" not in as_markdown(card)
    assert "They are of segmentations before post-processing." in as_markdown(with_steps)


@pytest.mark.parametrize("option", [["--node", "Oslo"], ["--personal"], ["--run", "run"]])
def test_what_chooses_within_a_run_chooses_nothing_in_a_zip(
    named: Path, tmp_path: Path, fednnunet: CommandLine, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert fednnunet("export", named, "-o", tmp_path / "on.zip", *option) == 2
    assert f"is a zip, which holds one model and its card; leave out {option[0]}" in capsys.readouterr().err
    assert not (tmp_path / "on.zip").exists()
    with pytest.raises(DataError, match=r"holds one model, .*leave"):
        open_model(named, node="Oslo" if option[0] == "--node" else None, personal=option[0] != "--node")

"""What nodes say of unusual images reaches the operator and the run's folder: counts, and nothing else."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fednnunet.errors import ProtocolError
from fednnunet.exchange.channel import Request
from fednnunet.exchange.messages import FingerprintReply, parse_body
from fednnunet.reporting.run_folder import read_run
from tests.server.phases import test_register
from tests.server.phases.test_register import Describe
from tests.support.recording_observer import RecordingObserver

asked, describe, observer = test_register.asked, test_register.describe, test_register.observer  # fixtures

ROUNDED = {"kind": "label_rounded", "cases": 1, "voxels": 0}
NOT_FINITE = {"kind": "not_finite", "cases": 3, "voxels": 12345}


class Telling:
    """Introduces itself, with these notes."""

    def __init__(self, name: str, *notes: dict[str, Any]) -> None:
        self.name = name
        self.notes = list(notes)

    def __call__(self, request: Request) -> None:
        request.reply(json.dumps(test_register.introduction(self.name).model_dump() | {"data_notes": self.notes}))


def test_notes_are_told_once_per_node_and_kind_and_kept_for_the_report(
    describe: Describe, observer: RecordingObserver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [Telling("Oslo", NOT_FINITE, ROUNDED), Telling("Porto"), Telling("Lund", ROUNDED)]
    describe([0] * 3, {node.name: node for node in nodes})
    told = [
        ("Lund", "labels of 1 case hold values a hair off integers; they were rounded"),
        ("Oslo", "images of 3 cases hold NaN or infinity (12,345 voxels), which are read as 0"),
        ("Oslo", "labels of 1 case hold values a hair off integers; they were rounded"),
    ]
    assert observer.messages == [f"node {node}: {note}" for node, note in told]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == observer.messages  # train.log
    assert (tmp_path / "data_notes.csv").read_text().splitlines() == [
        "node,kind,cases,voxels",
        "Lund,label_rounded,1,0",
        "Oslo,not_finite,3,12345",
        "Oslo,label_rounded,1,0",
    ]
    assert read_run(tmp_path).data_notes == told


def test_without_notes_nothing_is_said_and_no_file_stays(
    describe: Describe, observer: RecordingObserver, tmp_path: Path
) -> None:
    (tmp_path / "data_notes.csv").write_text("of the run before it was continued")
    describe([0], {"Oslo": Telling("Oslo")})
    assert observer.messages == []
    assert not (tmp_path / "data_notes.csv").exists()


@pytest.mark.parametrize(
    ("notes", "problem"),
    [
        ([ROUNDED | {"kind": "case_003 of Smith, Anna"}], r"data_notes\.0\.kind: "),
        ([ROUNDED | {"text": "/data/patient"}], r"unknown key data_notes\.0\.text"),
        ([ROUNDED, ROUNDED], "data_notes: one kind is there twice"),
        ([ROUNDED | {"cases": 6}], "data_notes: label_rounded in 6 of 5 cases"),
        ([ROUNDED | {"cases": 0}], r"data_notes\.0\.cases: "),
        ([NOT_FINITE | {"voxels": -1}], r"data_notes\.0\.voxels: "),
        ([NOT_FINITE | {"voxels": 1e300}], r"data_notes\.0\.voxels: "),
        ({"label_rounded": 1}, "data_notes: "),
    ],
)
def test_what_are_no_notes_is_refused_by_name(notes: Any, problem: str) -> None:
    text = json.dumps(test_register.introduction("Porto").model_dump() | {"data_notes": notes})
    with pytest.raises(ProtocolError, match=f"^node Porto sent a malformed FingerprintReply: .*{problem}"):
        parse_body(FingerprintReply, text, "node Porto")

"""A real worker tells digests of its images only where its own configuration allows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fednnunet.audit.reader import read_trail, summarise
from fednnunet.datasets.quality.measure import image_digests
from fednnunet.datasets.raw import read_dataset
from fednnunet.exchange.digests import make_salt, salted
from fednnunet.exchange.messages import FingerprintReply, FingerprintRequest, Kind
from fednnunet.node.settings import NodeSettings
from tests.conftest import write_boxes
from tests.node import test_worker
from tests.node.test_worker import Server, serving

pytestmark = pytest.mark.integration
settings = test_worker.settings  # a fixture


def ask(server: Server, salt: str | None) -> FingerprintReply:
    body = FingerprintRequest(salt=salt).model_dump_json()
    return FingerprintReply.model_validate_json(server.ask(Kind.FINGERPRINT, body)[0])


def test_digests_leave_only_where_the_node_allows_it(settings: NodeSettings, tmp_path: Path) -> None:
    folder = write_boxes(tmp_path / "raw")
    salts = [make_salt(), make_salt()]
    with serving(settings) as server:
        assert ask(server, salts[0]).image_digests is None
    assert not (settings.folder / "image_digests.json").exists()

    copy = folder / "imagesTr" / "case_004_0000.nii.gz"
    copy.write_bytes((folder / "imagesTr" / "case_001_0000.nii.gz").read_bytes())
    allowed = settings.config.fingerprint.model_copy(update={"find_duplicates": True})
    config = settings.config.model_copy(update={"fingerprint": allowed})
    with serving(replace(settings, config=config)) as server:
        assert ask(server, None).image_digests is None
        first, second = (ask(server, salt).image_digests for salt in salts)
    own = image_digests(read_dataset(folder, "Oslo"), "Oslo")
    assert own["case_001"] == own["case_004"]
    assert first == sorted({salted(digest, salts[0]) for digest in own.values()})
    assert second == sorted({salted(digest, salts[1]) for digest in own.values()})
    assert len(second) == 5
    assert not set(first) & (set(second) | set(own.values()))

    looked_up = json.loads((settings.folder / "image_digests.json").read_text())
    assert looked_up[salted(own["case_001"], salts[1])] == ["case_001", "case_004"]
    assert sorted(looked_up) == second

    trail = read_trail(settings.folder / "audit.jsonl")
    refused, unasked, told, again = trail.entries
    assert refused.asked["image_digests"] is told.asked["image_digests"] is True
    assert "image_digests" not in unasked.asked
    assert [entry.digests for entry in trail.entries] == [None, None, 5, 5]
    assert told.fields["image_digests"].bytes == len(json.dumps(first, separators=(",", ":")))
    assert again.previous is not None
    summary = summarise(trail.entries)
    assert (summary.digests, summary.unexpected, trail.breaks) == (10, [], [])
    assert not any(digest in trail.path.read_text() for digest in first)

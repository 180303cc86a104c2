"""A whole federation that finds an image at two of its nodes."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from tests.integration.conftest import Train

pytestmark = pytest.mark.nightly


def test_an_image_at_two_hospitals_is_found_and_nothing_else_is_told_of_it(
    raw: Path, train: Train, tmp_path: Path
) -> None:
    copied = tmp_path / "raw"
    shutil.copytree(raw, copied)
    source = copied / "Dataset201_Oslo" / "imagesTr" / "case_002_0000.nii.gz"
    for folder, case in (("Dataset203_Lund", "case_001"), ("Dataset204_Riga", "case_000")):
        target = copied / folder / "imagesTr" / f"{case}_0000.nii.gz"
        target.write_bytes(gzip.compress(gzip.decompress(source.read_bytes()), 1))
        assert target.read_bytes() != source.read_bytes()
    run = tmp_path / "run"
    result = train(run, "strategy=local", "trainer.epochs=1", "fingerprint.find_duplicates=true", raw=copied)
    assert result.returncode == 0, result.stdout + result.stderr

    ((digest, holders),) = json.loads((run / "duplicates.json").read_text()).items()
    assert holders == ["Lund", "Oslo", "Riga"]
    log = (run / "train.log").read_text()
    for pair in ("Lund and Oslo", "Lund and Riga", "Oslo and Riga"):
        assert f"nodes {pair} both hold 1 image; " in log
    assert "Porto both" not in log
    assert "and Porto" not in log
    of_nodes = {path.parent.name: json.loads(path.read_text()) for path in run.glob("nodes/*/image_digests.json")}
    assert {node: cases.get(digest) for node, cases in of_nodes.items()} == {
        "Oslo": ["case_002"],
        "Porto": None,
        "Lund": ["case_001"],
        "Riga": ["case_000"],
    }
    served = "".join(path.read_text() for path in run.glob("*.json")) + log
    assert "case_0" not in served

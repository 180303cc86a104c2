"""What of its fingerprint a node sends: counts, in the same noise when asked again, and never more than it allows."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fednnunet.config.privacy import SecureSumsConfig
from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.messages import FingerprintRequest, SignedKey
from fednnunet.exchange.quantities import Quantity
from fednnunet.fingerprint.bins import IntensityBins, IntensityRange
from fednnunet.fingerprint.geometry import DELTA, GRIDS, noise_of
from fednnunet.node import case_counts
from fednnunet.node.describe import NodeDataset
from fednnunet.node.settings import NodeSettings
from fednnunet.node.stages import NodeStages
from fednnunet.privacy.accounting import epsilon_of
from fednnunet.privacy.ledger import Ledger
from tests.conftest import write_boxes
from tests.node import test_describe, test_worker
from tests.support.secure_nodes import RUN, Authority, SecureNode

settings = test_worker.settings  # a fixture
_nnunet_folders = test_describe._nnunet_folders  # a fixture

LENGTHS = [Quantity.of(name, axis) for name in ("spacing", "extent") for axis in range(3)]
ONE_MM, THREE_MM = (int(np.searchsorted(GRIDS[Quantity.SPACING_Z].points, mm)) for mm in (1, 3))


def dataset_of(settings: NodeSettings, **fingerprint: Any) -> NodeDataset:
    """The dataset of a node whose group ``fingerprint`` has these values."""
    group = settings.config.fingerprint.model_copy(update=fingerprint)
    return NodeDataset(replace(settings, config=settings.config.model_copy(update={"fingerprint": group})))


def ask(*numbers: int, quantity: Quantity = Quantity.SPACING_Z) -> FingerprintRequest:
    return FingerprintRequest(content="counts", below={quantity: list(numbers)})


def noise_on_counts(dataset: NodeDataset, keys: Iterable[SignedKey] = ()) -> np.ndarray:
    """The noise on 1632 counts: no case lies below these points."""
    noise: list[int] = []
    for start in range(0, 272, 8):
        below = {quantity: list(range(start, start + 8)) for quantity in LENGTHS}
        counts = dataset.describe(FingerprintRequest(content="counts", below=below, keys=list(keys))).counts
        assert counts is not None
        noise += [count for quantity in LENGTHS for count in counts[quantity]]
    return np.array(noise)


def name_channel(tmp_path: Path, name: str) -> None:
    path = write_boxes(tmp_path / "raw") / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "channel_names": {"0": name}}))


def test_cases_are_counted_and_not_listed(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")  # six cases of 3 x 1 x 1 mm
    reply = dataset_of(settings, geometry="sums").describe(ask(ONE_MM, THREE_MM - 1, THREE_MM))
    assert reply.counts == {Quantity.SPACING_Z: [0, 0, 6]}
    assert reply.fingerprint is None
    assert json.loads((settings.folder / "counted.json").read_text()) == {"spacing_z": [ONE_MM, THREE_MM - 1, THREE_MM]}


@pytest.mark.parametrize(
    ("own", "request_", "what"),
    [
        ({"geometry": "sums"}, FingerprintRequest(content="contribution"), "the sizes of every case"),
        ({"geometry": "sums"}, FingerprintRequest(content="statistics"), "the sizes of every case"),
        ({"intensities": "needed"}, FingerprintRequest(content="ranges"), "the intensities of all channels"),
        ({"intensities": "needed"}, FingerprintRequest(content="intensities"), "the intensities of all channels"),
        ({"precision": "quantised"}, FingerprintRequest(content="statistics"), "exact statistics"),
    ],
)
def test_a_node_tells_no_more_than_its_own_configuration_allows(
    settings: NodeSettings, tmp_path: Path, own: dict[str, str], request_: FingerprintRequest, what: str
) -> None:
    write_boxes(tmp_path / "raw")
    (key, value), *_ = own.items()
    with pytest.raises(ConfigError, match=f"^fingerprint.{key}={value} here, but the server asks for {what}"):
        dataset_of(settings, **own).describe(request_)


def test_of_mri_no_intensity_leaves(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    dataset = dataset_of(settings, geometry="sums", intensities="needed")
    assert dataset.describe(FingerprintRequest(content="ranges", needed=True)).intensity_ranges == {}
    request = FingerprintRequest(content="intensities", needed=True, total_cases=6, bins={})
    assert dataset.describe(request).fingerprint == {"intensities": {}}


def test_of_ct_the_window_leaves_instead_of_the_range(settings: NodeSettings, tmp_path: Path) -> None:
    name_channel(tmp_path, "CT")
    dataset = dataset_of(settings, geometry="sums", intensities="needed")
    ranges = dataset.describe(FingerprintRequest(content="ranges", needed=True)).intensity_ranges
    assert ranges is not None
    window = IntensityRange.model_validate(ranges["0"])
    assert (window.low, window.high, window.integer) == (-1024, 3071, False)
    bins = {"0": IntensityBins.over([window]).model_dump()}
    told = dataset.describe(FingerprintRequest(content="intensities", needed=True, total_cases=6, bins=bins))
    assert told.fingerprint is not None
    intensities = told.fingerprint["intensities"]["0"]
    assert (intensities["low"], intensities["high"]) == (-1024, 3071)
    assert set(told.fingerprint) == {"intensities"}


def test_the_same_question_gets_the_same_noise(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    told = []
    for run in ("first", "second"):
        settings = replace(settings, folder=tmp_path / run, privacy_ledger=tmp_path / "privacy.jsonl")
        dataset = dataset_of(settings, geometry="sums", epsilon=2.0)
        told.append(dataset.describe(ask(ONE_MM, THREE_MM)).counts)
    assert told[0] == told[1] != {Quantity.SPACING_Z: [0, 6]}
    (secret,) = (tmp_path / "privacy_counts").rglob("noise.key")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_with_secure_sums_a_node_adds_its_share_of_the_noise(
    settings: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six nodes one may collude: the noise of five is all of it."""
    write_boxes(tmp_path / "raw")
    monkeypatch.setattr(case_counts, "NOISY_QUESTIONS", 2000)
    privacy = settings.config.privacy.model_copy(update={"secure_sums": SecureSumsConfig()})
    secure = replace(settings, config=settings.config.model_copy(update={"privacy": privacy}))
    key = SignedKey(node="Oslo", public="0" * 64, signature="00", certificate="")
    noise = noise_on_counts(dataset_of(secure, geometry="sums", epsilon=8.0), [key] * 6)
    assert noise.std() == pytest.approx(noise_of(8.0) / 5**0.5, rel=0.1)


def test_noise_in_the_sum_over_other_nodes_is_unrelated(settings: NodeSettings, tmp_path: Path) -> None:
    """The difference of two sums would hold the noise of those alone that are in one of them; it is paid for, too."""
    write_boxes(tmp_path / "raw")
    privacy = settings.config.privacy.model_copy(update={"secure_sums": SecureSumsConfig()})
    secure = replace(settings, config=settings.config.model_copy(update={"privacy": privacy}))
    dataset, told = dataset_of(secure, geometry="sums", epsilon=8.0), []
    for names in (("Oslo", "Porto", "Riga"), ("Oslo", "Porto", "Riga"), ("Oslo", "Porto", "Turku")):
        keys = [SignedKey(node=name, public="0" * 64, signature="00", certificate="") for name in names]
        told.append(dataset.describe(ask(*range(8)).model_copy(update={"keys": keys})).counts)
    assert told[0] == told[1] != told[2]
    assert [entry.releases for entry in Ledger(secure.ledger).read()] == [8, 8]


def test_with_secure_sums_no_counts_leave_in_clear(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    authority = Authority(tmp_path / "keys")
    privacy = settings.config.privacy.model_copy(update={"secure_sums": SecureSumsConfig()})
    config = settings.config.model_copy(update={"privacy": privacy})
    stages = NodeStages(replace(settings, config=config, identity=authority.identity("Oslo")))
    with pytest.raises(ProtocolError, match=r"^the server asks for counts in clear, which are summed securely here"):
        stages.describe(ask(ONE_MM, THREE_MM))
    others = [SecureNode(name, authority) for name in ("Bergen", "Porto")]
    own = stages.describe(FingerprintRequest(secure_run=RUN)).key
    keys = [own, *(node.secure.signed_key(RUN) for node in others)]
    told = stages.describe(ask(ONE_MM, THREE_MM).model_copy(update={"secure_run": RUN, "keys": keys})).counts
    assert told is not None
    assert all(abs(count) > 6 for count in told[Quantity.SPACING_Z])


def test_counts_are_paid_for_once_in_the_ledger_of_all_runs(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    settings = replace(settings, privacy_ledger=tmp_path / "privacy.jsonl")
    dataset = dataset_of(settings, geometry="sums", epsilon=8.0)
    dataset.describe(ask(1, 2, 3))
    dataset.describe(ask(2, 3, 4))
    dataset.describe(ask(1, 4))
    first, second = Ledger(settings.ledger).read()
    assert [(entry.unit, entry.releases, entry.rate) for entry in (first, second)] == [("case", 3, 1), ("case", 1, 1)]
    assert second.epsilon == pytest.approx(epsilon_of(noise_of(8.0), 1, 4, DELTA))


def test_counts_that_cost_more_than_the_node_allows_do_not_leave(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    privacy = settings.config.privacy.model_copy(update={"max_epsilon": 7.0})
    strict = replace(settings, config=settings.config.model_copy(update={"privacy": privacy}))
    with pytest.raises(ConfigError, match=r"^counting cases .* would bring epsilon to 8.00; at most 7 is allowed here"):
        dataset_of(strict, geometry="sums", epsilon=8.0).describe(ask(1))
    assert Ledger(strict.ledger).read() == []


def test_noise_has_the_deviation_of_its_epsilon_and_another_one_is_unrelated(
    settings: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise that only differed in scale would tell the count."""
    write_boxes(tmp_path / "raw")
    monkeypatch.setattr(case_counts, "NOISY_QUESTIONS", 2000)
    noise = []
    for epsilon in (2.0, 8.0):
        counts = noise_on_counts(dataset_of(settings, geometry="sums", epsilon=epsilon))
        assert counts.std() == pytest.approx(noise_of(epsilon), rel=0.1)
        assert abs(counts.mean()) < 0.15 * noise_of(epsilon)
        noise.append(counts)
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.15


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_more_questions_than_a_search_needs_are_not_answered(
    settings: NodeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epsilon: float | None
) -> None:
    write_boxes(tmp_path / "raw")
    monkeypatch.setattr(case_counts, "EXACT_QUESTIONS", 5)
    monkeypatch.setattr(case_counts, "NOISY_QUESTIONS", 5)
    dataset = dataset_of(settings, geometry="sums", epsilon=epsilon)
    dataset.describe(ask(1, 2, 3))
    dataset.describe(ask(2, 3, 4, 5))
    dataset.describe(ask(1, 5))
    with pytest.raises(ProtocolError, match=r"^the server asks for counts below more than 5 points in one run"):
        dataset.describe(ask(6))
    dataset.describe(ask(1, 5))


def test_a_point_that_no_grid_has_is_refused(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    with pytest.raises(ProtocolError, match=r"^the server asks for what cannot be counted: relative_size"):
        dataset_of(settings).describe(ask(1, quantity=Quantity.RELATIVE_SIZE))

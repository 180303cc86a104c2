"""The log of what leaves a node: behind the real channel, with a real worker, on a disk that is full."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from fednnunet.audit.chain import BLOCK
from fednnunet.audit.log import AuditLog
from fednnunet.audit.reader import read_trail
from fednnunet.exchange.arrays import ALIGNMENT, SharedArrays
from fednnunet.exchange.channel import Request, WorkerChannel, WorkerFailure, call_worker
from fednnunet.exchange.messages import (
    CaseScore,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    FingerprintReply,
    Kind,
    MeanScore,
    Model,
    PlanReply,
    ScoreModelsRequest,
    SendModelRequest,
    TrainReply,
    TrainRequest,
    UnmaskReply,
    UnmaskRequest,
)
from fednnunet.fingerprint.bins import IntensityRange, histogram_bins_over
from fednnunet.node.settings import NodeSettings
from tests.conftest import write_boxes
from tests.node.test_worker import Server, run_config, serving

KEY = b"k" * 32
Answer = Callable[[Request], object]
Ask = Callable[[Answer], dict[str, np.ndarray]]
Node = Callable[[AuditLog], contextlib.AbstractContextManager[Ask]]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A channel with this log; what it gives asks it one question, and answers it in a thread as told."""
    monkeypatch.chdir(tmp_path)  # AF_UNIX paths are short

    @contextlib.contextmanager
    def channel(log: AuditLog) -> Iterator[Ask]:
        channel = WorkerChannel("s", KEY, log.record)

        def ask(answer: Answer) -> dict[str, np.ndarray]:
            def work() -> None:
                request = channel.receive(timeout=10)
                assert request is not None
                answer(request)

            thread = threading.Thread(target=work)
            thread.start()
            try:
                body = TrainRequest(server_round=3, layers=["w"]).model_dump_json()
                _, shared = call_worker("s", KEY, Kind.TRAIN, body)
            finally:
                thread.join()
            return {} if shared is None else {name: array.copy() for name, array in shared.views().items()}

        try:
            yield ask
        finally:
            channel.close()

    return channel


def trained(request: Request) -> None:
    """Answer with a layer and a scalar."""
    arrays = SharedArrays.allocate({"w": ((5, 3), np.dtype("float32")), "n": ((), np.dtype("int64"))})
    for number, view in enumerate(arrays.views().values()):
        view[...] = number + 0.5
    request.reply(TrainReply(server_round=3, num_examples=9).model_dump_json(), arrays)


def fail(request: Request) -> None:
    request.fail(Failure(reason="node Oslo: no disk", error="data"))


def test_replies_and_failures_are_logged_in_a_file_of_the_owners_alone(tmp_path: Path, node: Node) -> None:
    path = tmp_path / "work" / "audit.jsonl"
    with node(AuditLog(path, "Oslo", "17")) as ask:
        ask(trained)
        with pytest.raises(WorkerFailure, match="no disk"):
            ask(fail)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    sent, failed = read_trail(path).entries
    assert (sent.node, sent.run, sent.kind, sent.ok) == ("Oslo", "17", Kind.TRAIN, True)
    assert sent.asked == {"fold": 0, "server_round": 3, "layers": 1, "dtype": "float32"}
    assert {name: (t.dtype, t.shape, t.bytes) for name, t in sent.tensors.items()} == {
        "w": ("float32", [5, 3], 60),
        "n": ("int64", [], 8),
    }
    assert (failed.ok, failed.reason, failed.tensors) == (False, "node Oslo: no disk", {})
    assert failed.previous == hashlib.sha256(path.read_bytes().splitlines()[0]).hexdigest()


def test_means_are_told_apart_from_scores_of_cases(tmp_path: Path, node: Node) -> None:
    case = CaseScore(centre="Oslo", case=3, label="tumour", dsc=0.5, hd95=None)
    means = [MeanScore(centre="Oslo", num_cases=6, label=label, dsc=0.5) for label in (None, "tumour")]
    reply = EvaluateReply(cases=[case, *means], personal=[case, case, *means], seconds=1)
    with node(AuditLog(tmp_path / "audit.jsonl", "Oslo")) as ask:
        ask(lambda request: request.reply(reply.model_dump_json()))
    (entry,) = read_trail(tmp_path / "audit.jsonl").entries
    assert (entry.scores, entry.means) == (3, 4), "of the federation's model and of the node's own"


def test_a_sum_is_over_those_that_arrived(tmp_path: Path) -> None:
    """A class of four may be opened without one of them."""
    asked: Any = SimpleNamespace(
        kind=Kind.UNMASK,
        body=UnmaskRequest(
            fold=0, server_round=1, arrived=[[*"abcd"], [*"abc"], []], shares=[{}, {}, {}]
        ).model_dump_json(),
    )
    replied: Any = SimpleNamespace(ok=True, body=UnmaskReply(shares=[]).model_dump_json(), arrays=None)
    AuditLog(tmp_path / "audit.jsonl", "Oslo").record(asked, replied)
    (entry,) = read_trail(tmp_path / "audit.jsonl").entries
    assert entry.masked == 3


def test_digests_are_those_of_what_the_relay_got(tmp_path: Path, node: Node) -> None:
    with node(AuditLog(tmp_path / "audit.jsonl", "Oslo")) as ask:
        received = ask(trained)
    (entry,) = read_trail(tmp_path / "audit.jsonl").entries
    memory = b"".join(array.tobytes().ljust(ALIGNMENT, b"\0") for array in received.values())
    assert entry.arrays_sha256 == hashlib.sha256(memory).hexdigest()
    assert entry.bytes == 68 + len(TrainReply(server_round=3, num_examples=9).model_dump_json())


@pytest.mark.parametrize("torn", ["{", "half", "all but its end of line"])
@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_line_torn_by_a_crash_is_fixed_and_the_chain_holds(tmp_path: Path, node: Node, torn: str, lines: int) -> None:
    path = tmp_path / "audit.jsonl"
    with node(AuditLog(path, "Oslo")) as ask:
        for _ in range(lines + 1):
            ask(trained)
    content = path.read_bytes().splitlines(keepends=True)
    last = content[-1]
    left = {"{": last[:1], "half": last[: len(last) // 2], "all but its end of line": last[:-1]}[torn]
    path.write_bytes(b"".join(content[:-1]) + left)
    assert read_trail(path).torn == len(left)
    with node(AuditLog(path, "Oslo")) as ask:
        ask(trained)
    trail = read_trail(path)
    assert (trail.breaks, trail.torn, len(trail.entries)) == ([], 0, lines + 1)
    assert trail.entries[-1].repaired == len(left)
    assert path.read_bytes().splitlines(keepends=True)[:-1] == content[:-1]


@pytest.mark.parametrize("layers", [1, 1500])
def test_a_worker_that_starts_again_goes_on_with_the_chain(tmp_path: Path, node: Node, layers: int) -> None:
    def answer(request: Request) -> None:
        arrays = SharedArrays.allocate({f"layer.{number}": ((2, 2), np.dtype("float32")) for number in range(layers)})
        request.reply(TrainReply(server_round=3, num_examples=9).model_dump_json(), arrays)

    path = tmp_path / "audit.jsonl"
    for _ in range(3):
        with node(AuditLog(path, "Oslo")) as ask:
            ask(answer)
    assert (path.stat().st_size > 3 * BLOCK) == (layers > 1), "a line may be longer than what is read at a time"
    trail = read_trail(path)
    assert (trail.breaks, len(trail.entries)) == ([], 3)


@pytest.mark.parametrize("damage", ["last line removed", "file removed"])
def test_lines_that_are_removed_while_the_worker_runs_show_at_its_next_one(
    tmp_path: Path, node: Node, damage: str
) -> None:
    path = tmp_path / "audit.jsonl"
    with node(AuditLog(path, "Oslo")) as ask:
        ask(trained)
        ask(trained)
        if damage == "file removed":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
        ask(trained)
    (broken,) = read_trail(path).breaks
    assert "gone" in broken


def test_nothing_leaves_a_node_that_cannot_log_it(node: Node) -> None:
    with node(AuditLog(Path("/dev/full"), "Oslo")) as ask:
        for answer in (trained, fail):
            with pytest.raises(WorkerFailure, match="node Oslo: the log of what leaves it cannot be written") as caught:
                ask(answer)
            assert "No space left on device" in str(caught.value)
            assert "no disk" not in str(caught.value)


def test_a_full_disk_keeps_the_reply_back_until_there_is_room(tmp_path: Path, node: Node) -> None:
    path = tmp_path / "audit.jsonl"
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with node(AuditLog(path, "Oslo")) as ask:
        ask(trained)
        before = path.read_bytes()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))  # room for a part of a line
            for _ in range(2):
                with pytest.raises(WorkerFailure, match="nothing does until it can"):
                    ask(trained)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert path.read_bytes() == before
        assert set(ask(trained)) == {"w", "n"}
    trail = read_trail(path)
    assert (trail.breaks, len(trail.entries)) == ([], 2)
    assert trail.entries[-1].withheld == 2


# a real worker ----------------------------------------------------------------------------------------


@pytest.mark.integration
def test_every_reply_of_a_worker_is_logged_and_no_value_case_or_path_with_it(tmp_path: Path) -> None:
    raw = write_boxes(tmp_path / "raw")
    settings = NodeSettings("Oslo", tmp_path / "Oslo", {"Oslo": raw}, False, run_config(tmp_path), 1, True)
    sent: list[tuple[Kind, bytes]] = []
    final_layers: dict[str, np.ndarray] = {}

    with serving(settings) as server:

        def ask(kind: Kind, body: str = "{}", arrays: dict[str, np.ndarray] | None = None) -> bytes:
            reply, received = Server.ask(server, kind, body, arrays)
            sent.append((kind, reply))
            final_layers.update(received if kind is Kind.SEND_MODEL else {})
            return reply

        with pytest.raises(WorkerFailure) as failed:
            ask(Kind.PREPROCESS)
        with pytest.raises(WorkerFailure, match="malformed"):
            ask(Kind.PLAN, '{"fingerprint": null, "send": "case_000"}')
        ranges = FingerprintReply.model_validate_json(ask(Kind.FINGERPRINT, '{"content": "ranges"}')).intensity_ranges
        assert ranges is not None
        own = {channel: IntensityRange(**bounds) for channel, bounds in ranges.items()}
        bins = {channel: bins.model_dump() for channel, bins in histogram_bins_over([own]).items()}
        told = FingerprintReply.model_validate_json(
            ask(Kind.FINGERPRINT, json.dumps({"content": "contribution", "total_cases": 6, "bins": bins}))
        ).fingerprint
        assert told is not None
        planned = PlanReply.model_validate_json(ask(Kind.PLAN, '{"fingerprint": null}'))
        ask(Kind.PREPROCESS)
        layers = list(planned.layers)
        for server_round in range(4):
            ask(Kind.TRAIN, TrainRequest(server_round=server_round, layers=layers).model_dump_json())
        scores = EvaluateReply.model_validate_json(
            ask(Kind.EVALUATE, EvaluateRequest(server_round=3).model_dump_json())
        ).cases
        ask(Kind.SEND_MODEL, SendModelRequest(fold=0, layers=layers).model_dump_json())
        model = Model(node="Porto", fold=0, plans=planned.plans, mirror_axes=None)
        ask(Kind.KEEP_MODEL, model.model_dump_json(), final_layers)
        ask(Kind.SCORE_MODELS, ScoreModelsRequest(fold=0, models={"Porto": [0]}).model_dump_json())

    path = tmp_path / "Oslo" / "audit.jsonl"
    trail = read_trail(path)
    assert (trail.breaks, trail.torn) == ([], 0)
    refused, malformed, *entries = trail.entries
    assert (refused.kind, refused.reason) == (Kind.PREPROCESS, str(failed.value))
    assert malformed.asked == {"malformed": True}
    assert [(entry.kind, entry.body_sha256) for entry in entries] == [
        (kind, hashlib.sha256(reply).hexdigest()) for kind, reply in sent
    ]
    assert {entry.kind for entry in entries} == set(Kind) - {Kind.UNMASK}, "no layer was masked"
    contribution, plan, own, final, kept, elsewhere = entries[1], entries[2], *entries[-4:]
    numbers = {name: field.numbers for name, field in contribution.fields.items()}
    assert numbers["fingerprint.spacings"] == numbers["fingerprint.shapes_after_crop"] == 3 * 6
    assert numbers["fingerprint.intensities.0.histogram"] == bins["0"]["number"]
    assert plan.layers == planned.layers
    assert own.scores == elsewhere.scores == len(scores) == 2
    assert (kept.asked, elsewhere.asked) == ({"fold": 0, "model": "Porto"}, {"fold": 0, "models": "Porto"})
    assert {name: tensor.shape for name, tensor in final.tensors.items()} == planned.layers
    assert_tells_no_value(path.read_text(), raw, told["intensities"]["0"])


def assert_tells_no_value(text: str, raw: Path, intensities: dict[str, float]) -> None:
    for case in range(6):
        assert f"case_{case:03d}" not in text
    assert str(raw) not in text
    assert "/" not in text
    for statistic in ("mean", "squared_deviations", "low", "high"):  # left, and are not told of again
        assert str(intensities[statistic]) not in text
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / "case_000_0000.nii.gz")))
    for voxel in image.ravel()[::997]:
        assert f"{voxel:.4f}" not in text

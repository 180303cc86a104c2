"""``fednnunet node audit``: what it adds up, what it finds, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednnunet.audit.chain import digest_of
from fednnunet.audit.log import Entry, FieldSize, Tensor
from fednnunet.audit.reader import read_trail, summarise
from fednnunet.exchange.messages import Kind
from fednnunet.privacy.accounting import Releases
from fednnunet.privacy.ledger import Ledger
from tests.support.command_line import CommandLine

LAYERS = {"encoder.weight": [8, 1, 3, 3], "encoder.bias": [8]}
Audit = Callable[..., tuple[int, str]]


@pytest.fixture
def audit(fednnunet: CommandLine, capsys: pytest.CaptureFixture[str]) -> Audit:
    """Call the command with arguments; its exit code, and what it printed."""

    def call(*arguments: object) -> tuple[int, str]:
        code = fednnunet("node", "audit", *arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def entry(kind: Kind, second: int, **fields: Any) -> Entry:
    parts = {
        "time": f"2026-07-02T08:00:{second:02d}.000+00:00",
        "node": "Oslo",
        "ok": True,
        "bytes": 100,
        "body_sha256": "0" * 64,
        "fields": {},
    }
    return Entry.model_validate(parts | {"kind": kind} | fields)


def tensors(**shapes: list[int]) -> dict[str, Tensor]:
    return {name.replace("_", "."): Tensor(dtype="float32", shape=shape, bytes=4) for name, shape in shapes.items()}


ENTRIES = [
    entry(
        Kind.FINGERPRINT,
        0,
        run="1",
        digests=5,
        fields={
            "num_training": FieldSize(bytes=1, numbers=1),
            "fingerprint.spacings": FieldSize(bytes=90, numbers=18),
            "fingerprint.intensities.0.mean": FieldSize(bytes=9, numbers=1),
        },
    ),
    entry(Kind.PLAN, 1, run="1", fields={"plans": FieldSize(bytes=3000, numbers=99)}, layers=LAYERS),
    entry(Kind.TRAIN, 2, run="1", tensors=tensors(encoder_weight=[8, 1, 3, 3], encoder_bias=[8])),
    entry(Kind.TRAIN, 3, run="1", ok=False, reason="no disk", fields={"reason": FieldSize(bytes=9, numbers=0)}),
    entry(Kind.TRAIN, 4, run="1", tensors=tensors(encoder_bias=[8]), withheld=2, asked={"fold": 0, "server_round": 7}),
    entry(Kind.EVALUATE, 5, run="1", scores=12, means=3, fields={"cases": FieldSize(bytes=700, numbers=60)}),
]


def write_log(path: Path, entries: list[Entry] = ENTRIES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    previous, lines = None, []
    for one in entries:
        line = one.model_copy(update={"previous": previous}).model_dump_json(exclude_defaults=True).encode()
        lines.append(line + b"\n")
        previous = digest_of(line)
    path.write_bytes(b"".join(lines))
    return path


def test_what_left_adds_up(tmp_path: Path) -> None:
    told = summarise(read_trail(write_log(tmp_path / "audit.jsonl")).entries)
    counted = {group.kind: (group.replies, group.failures, group.tensors, group.bytes) for group in told.groups}
    assert counted == {
        Kind.FINGERPRINT: (1, 0, 0, 100),
        Kind.PLAN: (1, 0, 0, 100),
        Kind.TRAIN: (3, 1, 3, 300),
        Kind.EVALUATE: (1, 0, 0, 100),
    }
    training = told.groups[2]
    assert (training.first[17:19], training.last[17:19]) == ("02", "04")
    assert (told.reasons, told.scores, told.means, told.withheld) == (["no disk"], 12, 3, 2)
    assert (told.largest, told.largest_bytes) == ("plans of query.plan", 3000)
    assert (told.tensors, told.uncompared, told.unexpected) == (3, 0, [])


def test_what_noise_has_cost_is_told_where_the_ledger_is(audit: Audit, tmp_path: Path) -> None:
    log, ledger = write_log(tmp_path / "audit.jsonl"), Ledger(tmp_path / "privacy.jsonl")
    for run, number in (("a", 1), ("a", 2), ("b", 1)):
        epsilon = ledger.spend("case", ["x"], 1e-3, Releases(2.0, 0.25, 50), run, 0, number)
    code, printed = audit(log)
    assert code == 0
    assert (
        f"Noise that hides each case, in 3 rounds of 2 runs: epsilon is {epsilon:.2f} so far, at delta 0.001."
        in printed
    )
    _, printed = audit(log, "--json")
    (told,) = json.loads(printed)[0]["noise"]
    assert told == {"hides": "case", "rounds": 3, "runs": 2, "epsilon": epsilon, "delta": 1e-3}
    ledger.path.write_text("{}\n" + ledger.path.read_text())
    code, printed = audit(log)
    assert code == 2
    assert "privacy.jsonl, line 1: " in printed


def test_people_read_what_left_and_that_the_log_is_whole(audit: Audit, tmp_path: Path) -> None:
    code, printed = audit(write_log(tmp_path / "audit.jsonl"))
    assert code == 0
    for part in (
        "What left node Oslo",
        "run 1",
        "fingerprint.spacings (18 numbers), fingerprint.intensities.0.mean (1 number)",
        "Salted digests of images: 5; the server can test with them whether the node holds an image",
        "Rows of scores: 12; cases are numbers in them, not names.",
        "Means of scores: 3, each over at least 5 cases.",
        "Text of an error: no disk",
        "Tensors: 3. Each has the name and the shape of a layer of the network that the node planned.",
        "The largest single thing beside tensors: plans of query.plan, 3,000 bytes.",
        "Replies kept back because this log could not be written: 2.",
        "unbroken, 6 entries",
    ):
        assert part in printed
    assert "server_round" not in printed
    code, printed = audit(tmp_path / "audit.jsonl", "--entries")
    assert "2026-07-02T08:00:04  train  (fold 0, server_round 7)  1 tensors, 100 bytes" in printed
    assert "2026-07-02T08:00:03  train  ()  failed: no disk" in printed


def test_what_was_masked_is_told_from_what_left_in_clear(audit: Audit, tmp_path: Path) -> None:
    layers = {
        "encoder.weight": Tensor(dtype="int32", shape=[8, 1, 3, 3], bytes=4),
        "figures": Tensor(dtype="int32", shape=[6], bytes=4),
    }
    masked = [entry(Kind.TRAIN, second, run="1", masked=fewest, tensors=layers) for second, fewest in ((2, 5), (3, 4))]
    opened = entry(Kind.UNMASK, 4, run="1", masked=3, asked={"arrived": "Linz, Oslo, Riga"})  # a fourth was missing
    initial = entry(Kind.TRAIN, 2, run="1", asked={"server_round": 0}, tensors=tensors(encoder_bias=[8]))
    code, printed = audit(write_log(tmp_path / "audit.jsonl", [ENTRIES[1], initial, *masked, opened]))
    assert code == 0
    assert "Tensors as they were before the first round, initialised or from init.weights: 1." in printed
    assert "Masked tensors: 4. The server learns sums of them" in printed
    assert "this node has helped to open over at least 3 nodes" in printed
    assert "in clear" not in printed
    code, printed = audit(write_log(tmp_path / "audit.jsonl", [ENTRIES[1], *masked, ENTRIES[2]]))
    assert "Tensors in clear, each of which the server sees as it is: 2." in printed


def test_a_layer_that_left_as_a_step_is_that_layer_if_it_is_no_larger(audit: Audit, tmp_path: Path) -> None:
    """In 4 bits, 72 values take 36 bytes at most, and 8 scales 32; 64 more bytes are Zstandard's."""

    def step(size: int, asked: str) -> Entry:
        wire = {"encoder.weight": Tensor(dtype="uint8", shape=[size], bytes=size)}
        return entry(Kind.TRAIN, 2, run="1", asked={"server_round": 2, "dtype": asked}, tensors=wire)

    _, printed = audit(write_log(tmp_path / "audit.jsonl", [ENTRIES[1], step(120, "int4")]))
    assert "Tensors that are steps: 1. Each has the name of a layer of that network" in printed
    assert "how far the layer's values are from those that the server had sent, in 8 or 4 bits" in printed
    assert "and the shape of a layer" not in printed, "its shape is that of a few bytes"
    _, printed = audit(write_log(tmp_path / "audit.jsonl", [ENTRIES[1], ENTRIES[4], step(120, "int4")]))
    assert "Tensors: 2. 1 of them have the name and the shape of a layer" in printed
    assert "Tensors that are steps: 1." in printed
    for size, asked in ((140, "int4"), (120, "float32")):
        _, printed = audit(write_log(tmp_path / "audit.jsonl", [ENTRIES[1], step(size, asked)]))
        assert f"tensor encoder.weight of shape ({size},)" in printed


def test_programs_read_the_same(audit: Audit, tmp_path: Path) -> None:
    code, printed = audit(write_log(tmp_path / "audit.jsonl"), "--json", "--entries")
    assert code == 0
    (log,) = json.loads(printed)
    assert (log["nodes"], log["entries"], log["unbroken"], log["scores"]) == (["Oslo"], 6, True, 12)
    assert [line["kind"] for line in log["lines"]] == [one.kind for one in ENTRIES]


def change(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"shape":[8]', b'"shape":[9]'), *lines[3:]]


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (change, "line 4 does not follow line 3"),
        (lambda lines: lines[:2] + lines[3:], "line 3 does not follow line 2"),
        (lambda lines: lines[1:], "line 1 is not the log's first"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1 is not the log's first"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4 does not follow line 3"),
        (lambda lines: [*lines[:3], b"{}\n", *lines[3:]], "line 4 is not an entry"),
    ],
    ids=["changed", "removed", "first removed", "swapped", "doubled", "no entry"],
)
def test_tampering_is_found_and_its_line_named(
    audit: Audit, tmp_path: Path, tamper: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    path = write_log(tmp_path / "audit.jsonl")
    path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))
    code, printed = audit(path)
    assert code == 2
    assert f"chain broken: {said}" in printed
    assert "unbroken" not in printed


@given(st.data())
def test_any_changed_bit_before_the_last_line_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write_log(tmp_path_factory.getbasetemp() / "bits.jsonl")
    content = bytearray(path.read_bytes())
    last = len(content) - len(content.splitlines()[-1]) - 1
    content[data.draw(st.integers(0, last - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    assert read_trail(path).breaks


@pytest.mark.parametrize(
    ("unexpected", "said"),
    [
        ({"tensors": tensors(scan=[512, 512, 30])}, "tensor scan of shape (512, 512, 30)"),
        ({"tensors": tensors(encoder_weight=[512, 512, 30])}, "tensor encoder.weight of shape (512, 512, 30)"),
        ({"fields": {"scan": FieldSize(bytes=10**6, numbers=10**5)}}, "field scan of train"),
    ],
)
def test_what_is_no_layer_of_the_plan_is_pointed_out(
    audit: Audit, tmp_path: Path, unexpected: dict[str, Any], said: str
) -> None:
    path = write_log(tmp_path / "audit.jsonl", [*ENTRIES, entry(Kind.TRAIN, 6, run="1", **unexpected)])
    code, printed = audit(path)
    assert code == 2
    assert f"unexpected: {said}" in printed
    assert "Each has" not in printed


def test_tensors_without_a_plan_before_them_are_not_said_to_be_layers(audit: Audit, tmp_path: Path) -> None:
    other_run = entry(Kind.TRAIN, 9, run="2", tensors=tensors(encoder_bias=[8]))
    code, printed = audit(write_log(tmp_path / "audit.jsonl", [*ENTRIES, other_run]))
    assert code == 0
    assert "Tensors: 4. 3 of them have the name and the shape" in printed
    assert "cannot be compared, as the log has no plan before them: 1." in printed


def test_a_torn_last_line_is_no_break(audit: Audit, tmp_path: Path) -> None:
    path = write_log(tmp_path / "audit.jsonl")
    with path.open("ab") as file:
        file.write(b'{"time": "20')
    code, printed = audit(path)
    assert code == 0
    assert "The last line is torn (12 bytes): what it tells of has not left." in printed


def test_a_folder_a_run_and_a_yaml_lead_to_the_logs(audit: Audit, tmp_path: Path) -> None:
    for name in ("Oslo", "Porto"):
        write_log(tmp_path / "run" / "nodes" / name / "audit.jsonl")
    node_file = tmp_path / "run" / "node.yaml"
    node_file.write_text("{name: Oslo, data: 101, server: '127.0.0.1:9092', folder: nodes/Oslo, insecure: true}")
    for path, logs in (
        (tmp_path / "run", 2),
        (tmp_path / "run" / "nodes", 2),
        (node_file, 1),
        (tmp_path / "run/nodes/Porto", 1),
    ):
        code, printed = audit(path)
        assert (code, printed.count("What left node")) == (0, logs), path
    code, printed = audit(tmp_path)
    assert code == 2
    assert f"error: {tmp_path} holds no audit.jsonl; name the file" in printed

"""Read a node's log of what left it: whether it is complete, and what it adds up to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from fednnunet.audit.chain import digest_of
from fednnunet.audit.log import AUDIT_LOG, Entry, Tensor
from fednnunet.config.node_file import read_node_file
from fednnunet.errors import DataError, first_problem
from fednnunet.exchange.messages import REPLIES, ExchangeDtype, Failure, Kind
from fednnunet.exchange.quantisation import BITS, most_bytes
from fednnunet.privacy.figures import FIGURES

MASKED_DTYPE = "int32"


@dataclass(frozen=True)
class Trail:
    """A log that was read.

    Attributes:
        path: file of the log.
        entries: lines of the log, as far as they can be read.
        breaks: descriptions of where lines were changed or removed.
        torn: number of bytes of an incomplete last line; the reply that it describes has not left.
        head: digest of the last line; None for an empty log.
    """

    path: Path
    entries: list[Entry]
    breaks: list[str]
    torn: int
    head: str | None


@dataclass(frozen=True)
class Group:
    """All replies of one kind in one run."""

    run: str | None
    kind: Kind
    replies: int
    failures: int
    tensors: int
    bytes: int
    first: str
    last: str


@dataclass(frozen=True)
class Summary:
    """What left, according to a log.

    Attributes:
        groups: replies by run and kind, in order of their first reply.
        fields: kind to the fields that left in bodies, each with the largest count of numbers that it held.
        reasons: distinct error messages that left.
        scores: number of rows of scores of single cases.
        means: number of means of scores over cases.
        digests: number of salted digests of images.
        largest: largest single field, tensors aside; None where nothing left.
        largest_bytes: size of that field.
        tensors: number of tensors that left.
        unexpected: distinct tensors whose name and shape match no layer of the node's plan, and fields that the
            protocol does not know.
        uncompared: number of tensors before which the log has no plan.
        withheld: number of replies that were kept back because the log could not be written.
        masked: number of tensors that were masked: parts of sums over several nodes.
        fewest: fewest nodes of such a sum; None where nothing was masked.
        initial: number of layers that left before the first round, as they were initialised.
        clear: number of all others that were not masked.
        steps: number of tensors that were steps of layers: scales and differences in 8 or 4 bits.
    """

    groups: list[Group]
    fields: dict[str, dict[str, int]]
    reasons: list[str]
    scores: int
    means: int
    digests: int
    largest: str | None
    largest_bytes: int
    tensors: int
    unexpected: list[str]
    uncompared: int
    withheld: int
    masked: int
    fewest: int | None
    initial: int
    clear: int
    steps: int


def find_logs(path: Path) -> list[Path]:
    """Find the logs that ``path`` stands for: the file itself, the log of a node's YAML or folder, or those of a run.

    Raises:
        DataError: no log is there.
        ConfigError: the YAML is not that of a node.
    """
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        path = read_node_file(path).folder
    if path.is_file():
        return [path]
    own = path / AUDIT_LOG
    found = [own] if own.is_file() else sorted([*path.glob(f"*/{AUDIT_LOG}"), *path.glob(f"nodes/*/{AUDIT_LOG}")])
    if not found:
        raise DataError(
            f"{path} holds no {AUDIT_LOG}; name the file, the folder or the YAML of a node, or the folder of a run"
        )
    return found


def read_trail(path: Path) -> Trail:
    """Read a log and follow its chain.

    Raises:
        DataError: the file cannot be read.
    """
    entries, breaks, head, torn = [], [], None, 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    torn = len(line)
                    break
                line = line[:-1]
                try:
                    entry = Entry.model_validate_json(line)
                except ValidationError as error:
                    breaks.append(f"line {number} is not an entry ({first_problem(error, 'line')})")
                else:
                    entries.append(entry)
                    if entry.previous != head:
                        breaks.append(_break(number))
                head = digest_of(line)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return Trail(path, entries, breaks, torn, head)


def _break(number: int) -> str:
    if number == 1:
        return "line 1 is not the log's first: lines before it are gone"
    return f"line {number} does not follow line {number - 1}: that one was changed, or lines between them are gone"


def summarise(entries: Iterable[Entry]) -> Summary:
    """What left, from all lines of a log."""
    groups: dict[tuple[str | None, Kind], Group] = {}
    fields: dict[str, dict[str, int]] = {}
    planned: dict[str | None, dict[str, list[int]]] = {}
    reasons: dict[str, None] = {}
    unexpected: dict[str, None] = {}
    scores = means = digests = tensors = uncompared = withheld = largest_bytes = masked = initial = clear = steps = 0
    largest = None
    sums: list[int] = []
    for entry in entries:
        key = entry.run, entry.kind
        groups[key] = _add(groups.get(key), entry)
        scores += entry.scores or 0
        means += entry.means or 0
        digests += entry.digests or 0
        tensors += len(entry.tensors)
        withheld += entry.withheld
        if entry.masked is not None:
            sums.append(entry.masked)
        hidden = [name for name, tensor in entry.tensors.items() if entry.masked and tensor.dtype == MASKED_DTYPE]
        masked += len(hidden)
        untrained = entry.kind is Kind.TRAIN and entry.asked.get("server_round") == 0
        initial += len(entry.tensors) if untrained else 0
        clear += 0 if untrained else len(entry.tensors) - len(hidden)
        if entry.reason is not None:
            reasons[entry.reason] = None
        if entry.layers is not None:
            planned[entry.run] = entry.layers
        known = (REPLIES[entry.kind] if entry.ok else Failure).model_fields
        numbers = fields.setdefault(entry.kind if entry.ok else "error", {})
        for name, field in entry.fields.items():
            numbers[name] = max(numbers.get(name, 0), field.numbers)
            if name.partition(".")[0] not in known:
                unexpected[f"field {name} of {entry.kind}"] = None
            if field.bytes > largest_bytes:
                largest, largest_bytes = f"{name} of {entry.kind}", field.bytes
        layers = planned.get(entry.run)
        if layers is None:
            uncompared += len(entry.tensors)
            continue
        for name, tensor in entry.tensors.items():
            is_figures = name == FIGURES and name in hidden
            is_step = _is_step(entry, tensor, layers.get(name))
            steps += is_step
            if layers.get(name) != tensor.shape and not is_figures and not is_step:
                unexpected[f"tensor {name} of shape {tuple(tensor.shape)}"] = None
    return Summary(
        list(groups.values()),
        fields,
        list(reasons),
        scores,
        means,
        digests,
        largest,
        largest_bytes,
        tensors,
        list(unexpected),
        uncompared,
        withheld,
        masked,
        min(sums, default=None),
        initial,
        clear,
        steps,
    )


def _is_step(entry: Entry, tensor: Tensor, shape: list[int] | None) -> bool:
    """Whether a tensor is a layer of this shape as it was asked for, in fewer bytes than it has: its step."""
    dtype = entry.asked.get("dtype")
    if shape is None or dtype not in BITS or tensor.dtype != "uint8" or len(tensor.shape) != 1:
        return False
    return tensor.bytes <= most_bytes(shape, cast(ExchangeDtype, dtype))


def _add(group: Group | None, entry: Entry) -> Group:
    before = group or Group(entry.run, entry.kind, 0, 0, 0, 0, entry.time, entry.time)
    return dataclasses.replace(
        before,
        replies=before.replies + 1,
        failures=before.failures + (not entry.ok),
        tensors=before.tensors + len(entry.tensors),
        bytes=before.bytes + entry.bytes,
        last=entry.time,
    )

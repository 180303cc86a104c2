"""Labels of a federation whose nodes have annotated different structures (``task.labels=union``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fednnunet.listing import MOST_NODES, join_first
from fednnunet.run_files import LABELS_FILE
from fednnunet.server.label_names import NAMED, similar_names
from fednnunet.server.label_union import foreground, plain_labels, unite, without_company
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import Session


def unite_labels(session: Session) -> None:
    """Give every label of the training nodes a value, write who annotates it, and say what may be a mistake.

    A run that was interrupted keeps the labels that its networks were made for. Nothing is done where all nodes must
    have the same labels.

    Raises:
        DataError: labels that cannot be united; names node and field.
    """
    federation, recorder = session.federation, session.recorder
    if session.settings.labels != "union":
        return
    labels = {node: plain_labels(federation.described[node]) for node in federation.nodes}
    training = {federation.name(node): labels[node] for node in federation.training}
    external = {federation.name(node): labels[node] for node in federation.external}
    federation.labels = union = unite(training, external, recorder.labels_begun_with())
    recorder.on_labels(union.values, union.annotated)
    names = {federation.name(node): foreground(labels[node]) for node in federation.nodes}
    report_similar_names(recorder, names, "labels", "one structure: task.rename_labels", LABELS_FILE)
    lines = {
        node: [
            f"node {node} has no label in common with another node ({join_first(names[node], NAMED)}); if others call "
            f"it otherwise: task.rename_labels.{node}"
        ]
        for node in without_company(training)
    }
    recorder.on_node_messages(lines, f"{len(lines)} nodes have no label in common with another one")
    unknown = {node: [name for name in names[node] if name not in union.values] for node in external}
    lines = {
        node: [f"external node {node}: no training node has {join_first(found, NAMED)}; it is not scored"]
        for node, found in unknown.items()
        if found
    }
    recorder.on_node_messages(lines, f"{len(lines)} external nodes have labels that no training node has")


def report_similar_names(
    recorder: RunRecorder, names: Mapping[str, Sequence[str]], what: str, meaning: str, file: str
) -> None:
    """Say which labels or channels may mean one thing, and which nodes have them.

    Args:
        recorder: tells the operator.
        names: node to its labels or channels.
        what: which of them these are.
        meaning: what they may mean, and what to do.
        file: of the run, that has all of them.
    """

    def holders(name: str) -> str:
        return join_first([node for node, found in names.items() if name in found], NAMED)

    pairs = similar_names(names)
    for one, other in pairs[:MOST_NODES]:
        recorder.on_message(f"{what} {one} ({holders(one)}) and {other} ({holders(other)}) may be {meaning}")
    if len(pairs) > MOST_NODES:
        recorder.on_message(f"{len(pairs) - MOST_NODES} more pairs of {what} may be one: see {file}")


def report_lost_labels(session: Session) -> None:
    """Say which labels none of the training nodes annotates any more: the network does not learn these."""
    federation = session.federation
    if federation.labels is None:
        return
    annotated = set().union(*(federation.labels.annotated[federation.name(node)] for node in federation.training))
    lost = [name for name in foreground(federation.labels.values) if name not in annotated]
    if lost:
        session.recorder.on_message(
            f"no training node of this run annotates {join_first(lost, NAMED)}: the network does not learn it"
        )

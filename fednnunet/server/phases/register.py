"""Registration: nodes describe themselves, and must agree before anything is merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fednnunet.errors import ConfigError, DataError, NodeError
from fednnunet.exchange.digests import make_salt
from fednnunet.exchange.messages import FingerprintReply, FingerprintRequest, Kind
from fednnunet.listing import join_nodes
from fednnunet.server.node_requests import Reply, request_all, request_as_nodes_join
from fednnunet.server.phases.duplicates import find_duplicates
from fednnunet.server.session import Federation, Session, task_fields


def register_nodes(session: Session) -> None:
    """Ask every node for its labels and number of cases, and for the part of its fingerprint that merging starts with.

    Raises:
        NodeError: a node failed that cannot be missed.
        ConfigError: too few nodes came, or two have one name.
    """
    session.recorder.on_stage("fingerprint")
    settings, client, federation = session.settings, session.client, session.federation
    contents: dict[str | None, Literal["nothing", "ranges", "statistics"]] = {
        None: "nothing",
        "histogram": "ranges",
        "weighted_mean": "statistics",
    }
    salt = make_salt() if settings.find_duplicates else None
    request = settings.fingerprint_request(
        content=contents[settings.fingerprint],
        needed=settings.needed_intensities,
        salt=salt,
        secure_run=settings.secure_run,
    )
    if settings.expected_nodes is None:
        replies = _request_connected_nodes(session, request)
    else:
        replies = request_as_nodes_join(session, request, settings.expected_nodes)
    federation.described = {reply.node: reply.body for reply in replies}
    for node, description in federation.described.items():
        _check_centre(description, client.names.get(node), settings.centres)
        client.names[node] = description.node
    names = [description.node for description in federation.described.values()]
    shared = sorted({name for name in names if names.count(name) > 1})
    if shared:
        raise ConfigError(f"two nodes are named {shared[0]}; give each its own name")
    if settings.secure_run is not None:
        _check_keys(federation)
    session.recorder.num_training = {
        federation.name(node): federation.described[node].num_training for node in federation.training
    }
    session.recorder.on_data_notes(
        {federation.name(node): federation.described[node].data_notes for node in federation.nodes}
    )
    if settings.find_duplicates:
        find_duplicates(federation, session.recorder)


def _request_connected_nodes(session: Session, request: FingerprintRequest) -> list[Reply]:
    """Replies of the nodes that are connected now.

    Raises:
        ConfigError: none is.
    """
    connected = sorted(session.client.grid.get_node_ids())
    if not connected:
        raise ConfigError(
            "no node is connected; start the nodes first, or set how many to wait for: federation.expected_nodes"
        )
    replies = request_all(session, Kind.FINGERPRINT, dict.fromkeys(connected, request))
    if len(replies) < len(connected):
        names = sorted(reply.body.node for reply in replies)
        session.recorder.on_message(f"nodes of the run: {join_nodes(names)}")
    return replies


def _check_keys(federation: Federation) -> None:
    """Check that every training node has sent a key for secure sums, in its own name.

    Raises:
        NodeError: one has not.
    """
    for node in federation.training:
        key, name = federation.described[node].key, federation.name(node)
        if key is None or key.node != name:
            raise NodeError(name, f"sent {'no key' if key is None else f'the key of {key.node}'} for secure sums")


def _check_centre(reply: FingerprintReply, registered: str | None, centres: Mapping[str, bool] | None) -> None:
    """Check that the node has the name that its key stands for, and is one of the run's.

    Raises:
        NodeError: it has not, or is none; names both.
    """
    if registered not in (None, reply.node):
        raise NodeError(registered or reply.node, f"calls itself {reply.node}; its key was registered as {registered}")
    if centres is None:
        return
    if reply.node not in centres:
        raise NodeError(reply.node, f"is not one of dataset.centres ({join_nodes(list(centres))})")
    if reply.external != centres[reply.node]:
        kinds = {True: "external", False: "a training node"}
        raise NodeError(
            reply.node,
            f"is {kinds[reply.external]} by its own configuration, and {kinds[not reply.external]} by dataset.centres",
        )


def check_folds(session: Session) -> None:
    """Say where a centre holds no case out in a fold: it trains on all of its cases there, and is not scored.

    Raises:
        NodeError: a node describes cases of another one.
        DataError: a fold in which no centre would be scored.
    """
    federation, recorder = session.federation, session.recorder
    names = {federation.name(node) for node in federation.nodes}
    for node in federation.training:
        held_out = federation.described[node].held_out
        foreign = sorted(set(held_out) & (names - {federation.name(node)}))
        if foreign:
            raise NodeError(federation.name(node), f"describes cases of node {foreign[0]}")
        for centre, folds in held_out.items():
            recorder.unscored_folds[centre] = [fold for fold in session.settings.folds if folds.get(fold) == 0]
    lines = {
        centre: [
            f"centre {centre} holds no case out in fold {', '.join(map(str, unscored))}: it trains on all of its cases "
            "there, and is not scored"
        ]
        for centre, unscored in recorder.unscored_folds.items()
        if unscored
    }
    recorder.on_node_messages(lines, f"{len(lines)} centres hold no case out in a fold, and are not scored in it")
    for fold in session.settings.folds:
        nowhere = all(fold in unscored for unscored in recorder.unscored_folds.values())
        if recorder.unscored_folds and nowhere and not federation.external:
            raise DataError(
                f"no centre holds a case out in fold {fold}: nothing would be scored; set other folds, or fold=all"
            )


def check_agreement(session: Session) -> None:
    """Check that all nodes have the same channels, labels, regions, file ending and configuration, in the same order.

    With heterogeneous tasks, training nodes may differ in all but the configuration; an external one must have the
    task of one of them. Labels or channels of which a union is made may differ (:mod:`~fednnunet.server.phases.labels`,
    :mod:`~fednnunet.server.phases.channels`).

    Raises:
        DataError: names the two nodes, the field and both values.
        ConfigError: nodes that train different configurations.
    """
    federation, heterogeneous_tasks = session.federation, session.settings.heterogeneous_tasks
    united = {"labels": session.settings.labels == "union", "channels": session.settings.channels == "union"}
    fields = task_fields(united["labels"], united["channels"])
    remedy = "before training together (different tasks: strategy=asym strategy.heterogeneous_tasks=true)"
    if any(united.values()):
        one, rest = ("labels", "channels") if united["labels"] else ("channels", "labels")
        remedy = f"before training together (task.{one}=union does not merge {rest}: see task.{rest})"
    first, *others = federation.nodes
    for external in federation.external if heterogeneous_tasks else []:
        if not federation.of_same_task(external):
            raise DataError(
                f"external node {federation.name(external)} has the channels and labels of no training node"
            )
    for other in others:
        nodes = f"nodes {federation.name(first)} and {federation.name(other)}"
        trained = [federation.described[node].configuration for node in (first, other)]
        if trained[0] != trained[1]:
            raise ConfigError(f"{nodes} train {trained[0]} and {trained[1]}; set the same configuration")
        for field in () if heterogeneous_tasks else (*fields, "file_ending"):
            if not federation.agree(first, other, field):
                ours, theirs = (getattr(federation.described[node], field) for node in (first, other))
                raise DataError(
                    f"{nodes} disagree on {field} in dataset.json: {ours} and {theirs}; make them the same, and in the "
                    f"same order, {remedy}"
                )

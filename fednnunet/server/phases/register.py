"""Who is in: nodes describe themselves, and must be of one mind before anything is merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fednnunet import __version__
from fednnunet.errors import ConfigError, DataError, NodeError
from fednnunet.exchange import messages
from fednnunet.exchange.digests import make_salt
from fednnunet.exchange.messages import Kind
from fednnunet.server.node_client import NodeClient
from fednnunet.server.node_requests import ask, request_as_nodes_join
from fednnunet.server.phases.duplicates import find_duplicates
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import TASK, Federation, ServerSettings


def describe_nodes(contact: NodeClient, settings: ServerSettings, journal: RunRecorder) -> Federation:
    """Ask every node for its labels and number of cases, and of its fingerprint what merging it begins with.

    Raises:
        NodeError: a node failed that cannot be missing, or runs another version.
        ConfigError: too few nodes came, or two have one name.
    """
    journal.stage("fingerprint")
    tell: dict[str | None, Literal["nothing", "ranges", "statistics"]] = {
        None: "nothing",
        "histogram": "ranges",
        "weighted_mean": "statistics",
    }
    salt = make_salt() if settings.find_duplicates else None
    request = settings.fingerprint_request(tell=tell[settings.fingerprint], salt=salt)
    federation = Federation({})
    if settings.nodes is None:
        asked = dict.fromkeys(sorted(contact.grid.get_node_ids()), request)
        if not asked:
            raise ConfigError(
                "no node is connected; start the nodes first, or set how many to wait for: federation.nodes"
            )
        replies = ask(contact, Kind.FINGERPRINT, asked, federation, settings, journal, min_replies=settings.min_nodes)
        if len(replies) < len(asked):
            journal.message(f"in are {', '.join(sorted(reply.node for _, reply, _ in replies))}")
    else:
        replies = request_as_nodes_join(contact, request, settings.nodes, federation, settings, journal)
    federation.described = {node: reply for node, reply, _ in replies}
    for node, reply in federation.described.items():
        _check_centre(reply, contact.names.get(node), settings.centres)
        contact.names[node] = reply.node
        if reply.version != __version__:
            raise NodeError(
                reply.node,
                f"runs fednnunet {reply.version}, the server {__version__}; install the same version",
            )
    names = [reply.node for reply in federation.described.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two nodes call themselves {twice[0]}; give each its own name")
    if settings.find_duplicates:
        find_duplicates(federation, journal)
    return federation


def _check_centre(reply: messages.FingerprintReply, registered: str | None, centres: Mapping[str, bool] | None) -> None:
    """Whether the node is who its key says, and one of the run's.

    Raises:
        NodeError: it is not; names both.
    """
    if registered not in (None, reply.node):
        raise NodeError(registered or reply.node, f"calls itself {reply.node}; its key was registered as {registered}")
    if centres is None:
        return
    if reply.node not in centres:
        raise NodeError(reply.node, f"is none of dataset.centres ({', '.join(centres)})")
    if reply.external != centres[reply.node]:
        kinds = {True: "external", False: "a training node"}
        raise NodeError(
            reply.node,
            f"is {kinds[reply.external]} by its own configuration, and {kinds[not reply.external]} by dataset.centres",
        )


def check_agreement(federation: Federation, heterogeneous_tasks: bool = False) -> None:
    """Channels, labels, regions, file ending and configuration must be the same before anything is merged.

    Args:
        federation: its nodes have told of themselves.
        heterogeneous_tasks: training nodes may differ in all but the configuration; an external one must have the task
            of one of them.

    Raises:
        DataError: names the two nodes, the field and both values.
        ConfigError: nodes that train different configurations.
    """
    nodes = federation.by_name()
    first = federation.described[nodes[0]]
    for external in federation.external if heterogeneous_tasks else []:
        if not federation.of_same_task(external):
            raise DataError(
                f"external node {federation.name(external)} has the channels and labels of no training node"
            )
    for node in nodes[1:]:
        other = federation.described[node]
        if first.configuration != other.configuration:
            raise ConfigError(
                f"nodes {first.node} and {other.node} train {first.configuration} and {other.configuration}; "
                "set the same dataset.configuration"
            )
        for what in () if heterogeneous_tasks else (*TASK, "file_ending"):
            ours, theirs = getattr(first, what), getattr(other, what)
            if ours != theirs:
                raise DataError(
                    f"nodes {first.node} and {other.node} disagree on {what} in dataset.json: {ours} and {theirs}; "
                    "make them the same before training together (different tasks: strategy=asym "
                    "strategy.heterogeneous_tasks=true)"
                )

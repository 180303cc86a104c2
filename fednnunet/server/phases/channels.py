"""Channels of a federation whose nodes have acquired different images (``task.channels=union``)."""

from __future__ import annotations

from fednnunet.listing import join_first
from fednnunet.run_files import CHANNELS_FILE
from fednnunet.server.channel_union import channels_of, unite_channels
from fednnunet.server.label_names import NAMED
from fednnunet.server.phases.labels import report_similar_names
from fednnunet.server.session import Session


def unite_node_channels(session: Session) -> None:
    """Give every channel of the training nodes a place, write who has it, and say what may be a mistake.

    A run that was interrupted keeps the channels that its networks were made for. Nothing is done where all nodes must
    have the same channels.

    Raises:
        DataError: channels that cannot be united; names node and field.
    """
    federation, recorder = session.federation, session.recorder
    if session.settings.channels != "union":
        return
    channels = {node: channels_of(federation.described[node]) for node in federation.nodes}
    training = {federation.name(node): channels[node] for node in federation.training}
    external = {federation.name(node): channels[node] for node in federation.external}
    federation.channels = union = unite_channels(training, external, recorder.channels_begun_with())
    recorder.on_channels(union.names, union.acquired)
    report_similar_names(
        recorder, union.acquired, "channels", "of one kind: give them one name in dataset.json", CHANNELS_FILE
    )
    lacking = {
        federation.name(node): [name for name in union.names if name not in channels[node]] for node in federation.nodes
    }
    lines = {
        node: [f"node {node} lacks {join_first(missing, NAMED)}: zeros in all of its cases"]
        for node, missing in lacking.items()
        if missing
    }
    recorder.on_node_messages(lines, f"{len(lines)} nodes lack channels, which are zeros in their cases")


def report_lost_channels(session: Session) -> None:
    """Say which channels none of the training nodes has any more: the network sees them as zeros alone."""
    federation = session.federation
    if federation.channels is None:
        return
    held = {name for node in federation.training for name in federation.channels.acquired[federation.name(node)]}
    lost = [name for name in federation.channels.names if name not in held]
    if lost:
        session.recorder.on_message(
            f"no training node of this run has {join_first(lost, NAMED)}: the network learns nothing from it"
        )

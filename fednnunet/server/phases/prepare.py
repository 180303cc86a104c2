"""Preparation: every node plans its network and preprocesses its images."""

from __future__ import annotations

import json
import math
from typing import Any

from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.layer_names import has_part
from fednnunet.exchange.messages import Body, Kind, PlanRequest, PreprocessRequest
from fednnunet.files import write_atomically
from fednnunet.listing import join_first
from fednnunet.server.node_requests import request_all
from fednnunet.server.phases.channels import report_lost_channels
from fednnunet.server.phases.fingerprint import INTENSITIES, federated_fingerprint, name_without_foreground
from fednnunet.server.phases.labels import report_lost_labels
from fednnunet.server.phases.unshared import group_of_first_layer, report_few_labellings, report_unshared
from fednnunet.server.session import Federation, Session
from fednnunet.server.strategy.row_average import Annotated

HEADS = "seg_layers"
"""Part of the names of nnU-Net's segmentation heads (``dynamic_network_architectures``)."""
HEAD_FIELDS = ("labels", "regions_class_order")
MOST_NAMES = 8


def plan_networks(session: Session) -> None:
    """Every node plans: from the federated fingerprint (FFE) or its own."""
    federation, recorder = session.federation, session.recorder
    recorder.on_stage("plan")
    labels = None if federation.labels is None else federation.labels.for_training
    channels = None if federation.channels is None else federation.channels.for_training
    request = PlanRequest(fingerprint=None, labels=labels, channels=channels)
    if session.settings.fingerprint is not None:
        merged = federated_fingerprint(session)
        write_atomically(recorder.folder / "federated_fingerprint.json", json.dumps(merged, indent=1))
        request = PlanRequest(
            fingerprint=merged, num_training=federation.num_training, labels=labels, channels=channels
        )
    federation.planned = _request_training_nodes(session, Kind.PLAN, request)
    if session.settings.fingerprint is not None:
        _check_same_network(federation)
    else:
        plans = {node: planned.plans.get(INTENSITIES) for node, planned in federation.planned.items()}
        name_without_foreground(session, [node for node, found in plans.items() if _are_empty(found)])
    recorder.on_plans({federation.name(node): federation.planned[node].plans for node in federation.training})


def _are_empty(intensities: Any) -> bool:
    """Whether plans hold no foreground intensities of any channel."""
    return isinstance(intensities, dict) and bool(intensities) and not any(intensities.values())


def _request_training_nodes(session: Session, kind: Kind, request: Body) -> dict[int, Any]:
    """Replies of the training nodes; one that fails is left out from here on, where the run may miss nodes."""
    nodes = session.federation.training
    replies = request_all(session, kind, dict.fromkeys(nodes, request), wait_for_all=True)
    bodies = {reply.node: reply.body for reply in replies}
    session.federation.remove(set(nodes) - set(bodies))
    return bodies


def _check_same_network(federation: Federation) -> None:
    """Raise ConfigError where nodes plan different networks from one fingerprint."""
    first, *others = federation.training
    for other in others:
        ours, theirs = federation.planned[first].layers, federation.planned[other].layers
        differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if differing:
            raise ConfigError(
                f"nodes {federation.name(first)} and {federation.name(other)} plan different networks from the "
                f"federated fingerprint ({len(differing)} layers, such as {differing[0]}); give them the same "
                "gpu_memory and model, or use strategy=asym"
            )


def preprocess_images(session: Session) -> None:
    """Every node preprocesses its images for its plans and builds its trainer; all must train equally many epochs.

    Raises:
        ConfigError: names two nodes that do not.
    """
    federation, settings = session.federation, session.settings
    session.recorder.on_stage("preprocess")
    request = PreprocessRequest(
        fold=settings.folds[0],
        local_epochs=settings.local_epochs,
        personal=settings.personal,
        secure_run=settings.secure_run,
        keys=federation.keys,
    )
    federation.preprocessed = _request_training_nodes(session, Kind.PREPROCESS, request)
    first, *others = federation.training
    for other in others:
        ours, theirs = federation.preprocessed[first].epochs, federation.preprocessed[other].epochs
        if ours != theirs:
            raise ConfigError(
                f"nodes {federation.name(first)} and {federation.name(other)} train {ours} and {theirs} epochs; "
                "give them the same trainer.class, or set trainer.epochs"
            )
    reply = federation.preprocessed[first]
    federation.rounds = math.ceil(reply.epochs / settings.local_epochs)
    session.recorder.training = {
        "rounds": federation.rounds,
        "iterations": reply.iterations * settings.local_epochs,
    }


def _annotated_rows(federation: Federation) -> Annotated | None:
    """For each head of the nodes, the classes that its node annotates; None where all annotate all of their own.

    Raises:
        ProtocolError: a network without heads for the labels that its node was told, or of other classes.
    """
    if federation.labels is None or not federation.labels.differs:
        return None
    annotated = {}
    for node in federation.training:
        name, planned = federation.name(node), federation.planned[node]
        rows = federation.labels.rows_of(name)
        if not planned.heads:
            raise ProtocolError(f"node {name} names no heads of its network for the {len(rows)} classes of all nodes")
        for head in planned.heads:
            if planned.layers[head][:1] != [len(rows)]:
                raise ProtocolError(
                    f"node {name}: head {head} has shape {planned.layers[head]}; it must be for {len(rows)} classes"
                )
        annotated[node] = dict.fromkeys(planned.heads, rows)
    return annotated


def match_networks(session: Session) -> None:
    """The strategy matches the layers of the nodes' networks that are trained.

    Raises:
        ConfigError: heads of unlike labels would be averaged; names two nodes and their labels.
    """
    report_lost_labels(session)
    report_lost_channels(session)
    federation, parts = session.federation, session.settings.train_layers
    session.strategy.prepare(
        {
            node: {
                layer: shape
                for layer, shape in federation.planned[node].layers.items()
                if not parts or has_part(layer, parts)
            }
            for node in federation.training
        },
        {node: federation.name(node) for node in federation.training},
        session.settings.dtype,
        {node: federation.planned[node].buffers for node in federation.training},
        _annotated_rows(federation),
    )
    if session.settings.heterogeneous_tasks:
        _check_heads_mean_the_same(session)
        _report_channels_of_one_number(session)
    report_unshared(session)
    report_few_labellings(session)
    session.strategy.num_cases = {node: federation.described[node].num_training for node in federation.training}


def _check_heads_mean_the_same(session: Session) -> None:
    """Raise ConfigError where heads of unlike labels match: by name and shape, as there are equally many of them."""
    federation, first = session.federation, dict[str, int]()
    for node in federation.training:
        for layer, group in session.strategy.groups.of_node(node).items():
            other = first.setdefault(group, node)
            if not has_part(layer, [HEADS]) or all(federation.agree(other, node, field) for field in HEAD_FIELDS):
                continue
            ours, theirs = (join_first(list(federation.described[one].labels), MOST_NAMES) for one in (other, node))
            raise ConfigError(
                f"nodes {federation.name(other)} and {federation.name(node)} have unlike labels ({ours}; {theirs}) and "
                f"heads of one shape, which would be averaged; set strategy.aggregation.keep_local=[{HEADS}], or train "
                "one network for all labels: task.labels=union strategy.heterogeneous_tasks=false"
            )


def _report_channels_of_one_number(session: Session) -> None:
    """Say where first layers of unlike channels match, as there are equally many of them."""
    federation, first = session.federation, dict[str, int]()
    for node in federation.training:
        group = group_of_first_layer(session, node, len(federation.described[node].channel_names))
        other = node if group is None else first.setdefault(group, node)
        if not federation.agree(other, node, "channel_names"):
            ours, theirs = (
                join_first(list(federation.described[one].channel_names.values()), MOST_NAMES) for one in (other, node)
            )
            session.recorder.on_message(
                f"nodes {federation.name(other)} and {federation.name(node)} have unlike channels ({ours}; {theirs}) "
                "and first layers of one shape, which are averaged; task.channels=union keeps channels apart"
            )
            return

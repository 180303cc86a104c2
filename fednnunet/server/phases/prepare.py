"""From fingerprints to trainers: every node plans, and preprocesses its images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from fednnunet.errors import ConfigError, DataError, ProtocolError, first_problem, one_line
from fednnunet.exchange import messages
from fednnunet.exchange.messages import Kind
from fednnunet.files import write_atomically
from fednnunet.fingerprint.merge import merge_fingerprints
from fednnunet.fingerprint.schema import IntensityRange, LocalFingerprint, common_ranges
from fednnunet.server.node_client import NodeClient
from fednnunet.server.node_requests import ask, check_enough
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import Federation, ServerSettings

T = TypeVar("T")


def plan_networks(contact: NodeClient, federation: Federation, settings: ServerSettings, journal: RunRecorder) -> None:
    """Every node plans: from the federated fingerprint (FFE) or its own."""
    journal.stage("plan")
    request = messages.PlanRequest(fingerprint=None)
    if settings.fingerprint is not None:
        merged = federated_fingerprint(contact, federation, settings, journal)
        write_atomically(journal.folder / "federated_fingerprint.json", json.dumps(merged, indent=1))
        request = messages.PlanRequest(fingerprint=merged, num_training=federation.num_training)
    federation.planned = _ask_training_nodes(contact, Kind.PLAN, request, federation, settings, journal)
    if settings.fingerprint is not None:
        _check_same_network(federation)
    journal.write_plans({federation.name(node): federation.planned[node].plans for node in federation.training})


def _ask_training_nodes(
    contact: NodeClient,
    kind: Kind,
    request: messages.Body,
    federation: Federation,
    settings: ServerSettings,
    journal: RunRecorder,
) -> dict[int, Any]:
    """Replies of the training nodes; one that fails is left out from here on, where nodes may be missing."""
    asked = federation.training
    replies = ask(
        contact,
        kind,
        dict.fromkeys(asked, request),
        federation,
        settings,
        journal,
        min_replies=settings.min_nodes,
        wait=True,
    )
    answered = {node: reply for node, reply, _ in replies}
    federation.leave_out(set(asked) - set(answered))
    return answered


def federated_fingerprint(
    contact: NodeClient, federation: Federation, settings: ServerSettings, journal: RunRecorder
) -> dict[str, Any]:
    """nnU-Net's fingerprint of all nodes' cases, from what each tells of its own.

    Where nodes may be missing, one whose contribution cannot be used is left out, and the others are asked anew: what
    they tell depends on how many cases there are in all, and on the range of their intensities.

    Raises:
        NodeError: a node failed that cannot be missing.
        ProtocolError: a malformed contribution, or not the one asked for; names the node.
        DataError: no node has foreground in a channel.
    """
    while True:
        parts = _contributions(contact, federation, settings, journal)
        unusable = set(federation.training) - set(parts)
        if not unusable:
            return merge_fingerprints(list(parts.values()))
        federation.leave_out(unusable)


def _contributions(
    contact: NodeClient, federation: Federation, settings: ServerSettings, journal: RunRecorder
) -> dict[int, LocalFingerprint]:
    """Of the training nodes; of fewer, where some cannot be used and may be missing.

    Those whose ranges cannot be used are left out before the others are asked.
    """
    described = {node: federation.described[node] for node in federation.training}
    bins: dict[str, Any] = {}
    if settings.fingerprint == "histogram":
        ranges = _usable(described, _ranges_of, settings, journal)
        federation.leave_out(set(described) - set(ranges))
        bins = {channel: b.model_dump() for channel, b in common_ranges(list(ranges.values())).items()}
        unlabelled = sorted(set(federation.described[federation.training[0]].channel_names) - set(bins))
        if unlabelled:
            raise DataError(f"no node has foreground in channel {unlabelled[0]}: every label map is empty")
        request = settings.fingerprint_request(tell="contribution", total_cases=federation.num_training, bins=bins)
        asked = dict.fromkeys(federation.training, request)
        replies = ask(contact, Kind.FINGERPRINT, asked, federation, settings, min_replies=settings.min_nodes, wait=True)
        described = {node: reply for node, reply, _ in replies}
    return _usable(described, lambda reply: _fingerprint_of(reply, bins), settings, journal)


def _usable(
    replies: Mapping[int, messages.FingerprintReply],
    read: Callable[[messages.FingerprintReply], T],
    settings: ServerSettings,
    journal: RunRecorder,
) -> dict[int, T]:
    """What ``read`` makes of every reply; without those that it refuses, where nodes may be missing."""
    usable: dict[int, T] = {}
    refused: list[ProtocolError] = []
    for node, reply in replies.items():
        try:
            usable[node] = read(reply)
        except ProtocolError as error:
            refused.append(error)
    check_enough(refused, len(usable), settings.min_nodes, journal)
    return usable


def _fingerprint_of(reply: messages.FingerprintReply, bins: Mapping[str, Any]) -> LocalFingerprint:
    """What a node told of its fingerprint; over ``bins``, where a contribution was asked for."""
    told = LocalFingerprint.parse(reply.fingerprint, f"node {reply.node}")
    over = {channel: intensities.bins.model_dump() for channel, intensities in (told.intensities or {}).items()}
    for what, ours, theirs in (
        ("channels", sorted(reply.channel_names), sorted(told.channels)),
        ("bins", bins, over),
        ("cases", reply.num_training, told.num_cases),
    ):
        if ours != theirs:
            raise ProtocolError(
                f"node {reply.node} sent a fingerprint of other {what} than were asked for: "
                f"{one_line(str(theirs))} instead of {ours}"
            )
    return told


def _ranges_of(reply: messages.FingerprintReply) -> dict[str, IntensityRange]:
    unknown = sorted(set(reply.intensity_ranges or {}) - set(reply.channel_names))
    if unknown:
        raise ProtocolError(f"node {reply.node} sent ranges of a channel that it does not have: {one_line(unknown[0])}")
    try:
        return {channel: IntensityRange.model_validate(r) for channel, r in (reply.intensity_ranges or {}).items()}
    except ValidationError as error:
        raise ProtocolError(f"node {reply.node} sent malformed ranges: {first_problem(error, 'range')}") from None


def _check_same_network(federation: Federation) -> None:
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


def preprocess_images(
    contact: NodeClient, federation: Federation, settings: ServerSettings, journal: RunRecorder
) -> None:
    """Every node preprocesses its images for its plans and builds its trainer; all must train as many epochs.

    Raises:
        ConfigError: names two nodes that do not.
    """
    journal.stage("preprocess")
    request = messages.PreprocessRequest(fold=settings.folds[0])
    federation.preprocessed = _ask_training_nodes(contact, Kind.PREPROCESS, request, federation, settings, journal)
    first, *others = federation.training
    for other in others:
        ours, theirs = federation.preprocessed[first].epochs, federation.preprocessed[other].epochs
        if ours != theirs:
            raise ConfigError(
                f"nodes {federation.name(first)} and {federation.name(other)} train {ours} and {theirs} epochs; "
                "give them the same trainer.class, or set trainer.epochs"
            )
    told = federation.preprocessed[first]
    federation.rounds = math.ceil(told.epochs / settings.local_epochs)
    journal.training = {"rounds": federation.rounds, "iterations": told.iterations * settings.local_epochs}

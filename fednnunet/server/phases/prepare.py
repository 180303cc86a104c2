"""Preparation: every node plans its network and preprocesses its images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from fednnunet.errors import ConfigError, DataError, ProtocolError, first_problem, one_line
from fednnunet.exchange.layer_names import has_part
from fednnunet.exchange.messages import Body, FingerprintReply, Kind, PlanRequest, PreprocessRequest
from fednnunet.files import write_atomically
from fednnunet.fingerprint.bins import IntensityRange, histogram_bins_over
from fednnunet.fingerprint.merge import merge_fingerprints
from fednnunet.fingerprint.schema import DatasetFingerprint
from fednnunet.server.node_requests import request_all
from fednnunet.server.session import Federation, Session
from fednnunet.server.strategy.secure_asym_fedavg import SecureAsymFedAvg

INTENSITIES = "foreground_intensity_properties_per_channel"

T = TypeVar("T")


def plan_networks(session: Session) -> None:
    """Every node plans: from the federated fingerprint (FFE) or its own."""
    federation, recorder = session.federation, session.recorder
    recorder.on_stage("plan")
    request = PlanRequest(fingerprint=None)
    if session.settings.fingerprint is not None:
        merged = federated_fingerprint(session)
        write_atomically(recorder.folder / "federated_fingerprint.json", json.dumps(merged, indent=1))
        request = PlanRequest(fingerprint=merged, num_training=federation.num_training)
    federation.planned = _request_training_nodes(session, Kind.PLAN, request)
    if session.settings.fingerprint is not None:
        _check_same_network(federation)
    else:
        plans = {node: planned.plans.get(INTENSITIES) for node, planned in federation.planned.items()}
        _name_without_foreground(session, [node for node, found in plans.items() if _are_empty(found)])
    recorder.on_plans({federation.name(node): federation.planned[node].plans for node in federation.training})


def _are_empty(intensities: Any) -> bool:
    """Whether plans hold no foreground intensities of any channel."""
    return isinstance(intensities, dict) and bool(intensities) and not any(intensities.values())


def _name_without_foreground(session: Session, nodes: Sequence[int]) -> None:
    for node in nodes:
        session.recorder.on_message(
            f"node {session.federation.name(node)}: no case has foreground; it teaches that there is nothing to find "
            "(healthy controls), or its annotations are missing"
        )


def _request_training_nodes(session: Session, kind: Kind, request: Body) -> dict[int, Any]:
    """Replies of the training nodes; one that fails is left out from here on, where the run may miss nodes."""
    nodes = session.federation.training
    replies = request_all(session, kind, dict.fromkeys(nodes, request), wait_for_all=True)
    bodies = {reply.node: reply.body for reply in replies}
    session.federation.remove(set(nodes) - set(bodies))
    return bodies


def federated_fingerprint(session: Session) -> dict[str, Any]:
    """nnU-Net's fingerprint of all nodes' cases, merged from each node's contribution.

    Where the run may miss nodes, one whose contribution cannot be used is left out, and the others are asked again:
    their contributions depend on how many cases there are in all, and on the range of all intensities.

    Raises:
        NodeError: a node failed that cannot be missed.
        ProtocolError: a malformed contribution, or not the requested one; names the node.
        DataError: no node has foreground in a channel.
    """
    federation = session.federation
    while True:
        parts = _contributions(session)
        unusable = set(federation.training) - set(parts)
        if not unusable:
            _name_without_foreground(session, [node for node, part in parts.items() if not part.has_foreground])
            try:
                return merge_fingerprints(list(parts.values()))
            except ValueError as error:
                raise DataError(f"the nodes' fingerprints cannot be merged: {error}") from None
        federation.remove(unusable)


def _contributions(session: Session) -> dict[int, DatasetFingerprint]:
    """Contributions of the training nodes; of fewer, where some cannot be used and may be missed.

    Nodes whose ranges cannot be used are left out before the others are asked.
    """
    settings, federation = session.settings, session.federation
    described = {node: federation.described[node] for node in federation.training}
    bins: dict[str, Any] = {}
    if settings.fingerprint == "histogram":
        ranges = _parse_each(session, described, _parse_ranges)
        federation.remove(set(described) - set(ranges))
        bins = {channel: b.model_dump() for channel, b in histogram_bins_over(list(ranges.values())).items()}
        empty = sorted(set(federation.described[federation.training[0]].channel_names) - set(bins))
        if empty:
            raise DataError(f"no node has foreground in channel {empty[0]}: every label map is empty")
        request = settings.fingerprint_request(content="contribution", total_cases=federation.num_training, bins=bins)
        requests = dict.fromkeys(federation.training, request)
        replies = request_all(session, Kind.FINGERPRINT, requests, wait_for_all=True, report=False)
        described = {reply.node: reply.body for reply in replies}
    return _parse_each(session, described, lambda reply: _parse_fingerprint(reply, bins))


def _parse_each(
    session: Session, replies: Mapping[int, FingerprintReply], parse: Callable[[FingerprintReply], T]
) -> dict[int, T]:
    """Every reply, parsed; without those that ``parse`` refuses, where the run may miss nodes."""
    parsed: dict[int, T] = {}
    failures: list[ProtocolError] = []
    for node, reply in replies.items():
        try:
            parsed[node] = parse(reply)
        except ProtocolError as error:
            failures.append(error)
    session.accept_failures(failures, len(parsed))
    return parsed


def _parse_fingerprint(reply: FingerprintReply, bins: Mapping[str, Any]) -> DatasetFingerprint:
    """A node's part of the fingerprint; over ``bins``, where a contribution was requested."""
    parsed = DatasetFingerprint.parse(reply.fingerprint, f"node {reply.node}")
    over = {channel: intensities.bins.model_dump() for channel, intensities in (parsed.intensities or {}).items()}
    for part, ours, theirs in (
        ("channels", sorted(reply.channel_names), sorted(parsed.channels)),
        ("bins", bins, over),
        ("cases", reply.num_training, parsed.num_cases),
    ):
        if ours != theirs:
            raise ProtocolError(
                f"node {reply.node} sent a fingerprint of other {part} than were requested: "
                f"{one_line(str(theirs))} instead of {ours}"
            )
    return parsed


def _parse_ranges(reply: FingerprintReply) -> dict[str, IntensityRange]:
    """Channel to the range of a node's foreground intensities."""
    unknown = sorted(set(reply.intensity_ranges or {}) - set(reply.channel_names))
    if unknown:
        raise ProtocolError(f"node {reply.node} sent ranges of a channel that it does not have: {one_line(unknown[0])}")
    try:
        return {channel: IntensityRange.model_validate(r) for channel, r in (reply.intensity_ranges or {}).items()}
    except ValidationError as error:
        raise ProtocolError(f"node {reply.node} sent malformed ranges: {first_problem(error, 'range')}") from None


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
    keys = [key for node in federation.training if (key := federation.described[node].key) is not None]
    request = PreprocessRequest(
        fold=settings.folds[0], local_epochs=settings.local_epochs, secure_run=settings.secure_run, keys=keys
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


def match_networks(session: Session) -> None:
    """The strategy matches the layers of the nodes' networks that are trained."""
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
    )
    if isinstance(session.strategy, SecureAsymFedAvg):
        session.strategy.set_cases({node: federation.described[node].num_training for node in federation.training})

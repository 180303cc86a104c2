"""The federated fingerprint: what the server asks of the nodes, and makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from fednnunet.errors import ConfigError, DataError, ProtocolError, first_problem, one_line
from fednnunet.exchange.messages import FingerprintReply, Kind
from fednnunet.exchange.quantities import Counts, Questions
from fednnunet.fingerprint.bins import IntensityRange, histogram_bins_over
from fednnunet.fingerprint.geometry import Answers, check_counts, noise_of, share_of
from fednnunet.fingerprint.made_up_cases import Statistics
from fednnunet.fingerprint.merge import merge_channels, merge_fingerprints
from fednnunet.fingerprint.order_statistics import GeometrySearch
from fednnunet.fingerprint.schema import DatasetFingerprint, IntensityContribution
from fednnunet.fingerprint.window import needed_channels
from fednnunet.privacy.ring import add
from fednnunet.server.node_requests import request_all
from fednnunet.server.session import Session

INTENSITIES = "foreground_intensity_properties_per_channel"
FEWEST_CASES = 1000
"""Below it, the noise of ``fingerprint.epsilon`` changes most plans (docs/explanation/fingerprint.md)."""

Part = DatasetFingerprint | IntensityContribution
T = TypeVar("T")


def federated_fingerprint(session: Session) -> dict[str, Any]:
    """nnU-Net's fingerprint of all nodes' cases, merged from each node's contribution.

    Where the run may miss nodes, one whose contribution cannot be used is left out, and the others are asked again:
    their contributions depend on how many cases there are in all, and on the range of all intensities.

    Raises:
        NodeError: a node failed that cannot be missed.
        ProtocolError: a malformed contribution, or not the requested one; names the node.
        DataError: no node has foreground in a channel.
        ConfigError: too few cases for the noise that was asked for.
    """
    federation, settings = session.federation, session.settings
    while True:
        statistics = _count_cases(session) if settings.geometry == "sums" else None
        parts = _contributions(session)
        unusable = set(federation.training) - set(parts)
        federation.remove(unusable)
        if not unusable:
            break
    channels = _asked_channels(session)
    empty = [node for node, part in parts.items() if channels[node] and not part.has_foreground]
    name_without_foreground(session, empty)
    asked = sorted({place for places in channels.values() for place in places.values()})
    try:
        merged = _merge([part.renumbered(channels[node]) for node, part in parts.items()], statistics, asked)
    except ValueError as error:
        raise DataError(f"the nodes' fingerprints cannot be merged: {error}") from None
    # nnU-Net expects an entry of every channel, also of one that nodes are not asked for or that no node is left with.
    return merged | {INTENSITIES: {place: merged[INTENSITIES].get(place, {}) for place in _channel_names(session)}}


def _merge(parts: Sequence[Part], statistics: Statistics | None, channels: Sequence[str]) -> dict[str, Any]:
    if statistics is None:
        return merge_fingerprints([part for part in parts if isinstance(part, DatasetFingerprint)], channels)
    return statistics.fingerprint() | {
        INTENSITIES: merge_channels([part.intensities or {} for part in parts], channels)
    }


def _channel_names(session: Session) -> dict[str, str]:
    """Channels that all nodes plan for: number to name."""
    federation = session.federation
    if federation.channels is None:  # they agree
        return federation.described[federation.training[0]].channel_names
    return {str(number): name for number, name in enumerate(federation.channels.names)}


def _asked_channels(session: Session) -> dict[int, dict[str, str]]:
    """By training node: numbers of the channels whose intensities it is asked for, its own to that in the plans."""
    federation, needed = session.federation, session.settings.needed_intensities
    channels = {}
    for node in federation.training:
        own = federation.described[node].channel_names
        places = {one: one for one in own} if federation.channels is None else federation.channels.places_of(own)
        channels[node] = {one: places[one] for one in (needed_channels(own) if needed else own)}
    return channels


def _contributions(session: Session) -> Mapping[int, Part]:
    """Contributions of the training nodes; of fewer, where some cannot be used and may be missed.

    Nodes whose ranges cannot be used are left out before the others are asked.
    """
    settings, federation = session.settings, session.federation
    described = {node: federation.described[node] for node in federation.training}
    bins: dict[int, dict[str, Any]] = {node: {} for node in described}
    if settings.fingerprint == "histogram":
        channels = _asked_channels(session)
        ranges = _parse_each(session, described, lambda node, reply: _parse_ranges(reply, list(channels[node])))
        federation.remove(set(described) - set(ranges))
        if settings.geometry == "sums" and not any(channels.values()):
            return dict.fromkeys(federation.training, IntensityContribution(intensities={}))
        bins = _bins_of({node: channels[node] for node in federation.training}, ranges)
        requests = {
            node: settings.fingerprint_request(
                content="intensities" if settings.geometry == "sums" else "contribution",
                needed=settings.needed_intensities,
                total_cases=federation.num_training,
                bins=bins[node],
            )
            for node in federation.training
        }
        replies = request_all(session, Kind.FINGERPRINT, requests, wait_for_all=True, report=False)
        described = {reply.node: reply.body for reply in replies}
    return _parse_each(session, described, lambda node, reply: _parse_part(session, reply, bins[node]))


def _bins_of(
    channels: Mapping[int, Mapping[str, str]], ranges: Mapping[int, Mapping[str, IntensityRange]]
) -> dict[int, dict[str, Any]]:
    """Node to the bins of its channels, by its own numbers: those over the ranges of all nodes that have the channel.

    Args:
        channels: Node to the channels that it is asked for, its own number to that in the plans.
        ranges: Node to its ranges, by its own numbers.

    Raises:
        DataError: no node has foreground in a channel.
    """
    places = [{channels[node][one]: found for one, found in ranges[node].items()} for node in channels]
    bins = {place: one.model_dump() for place, one in histogram_bins_over(places).items()}
    empty = sorted({place for of_node in channels.values() for place in of_node.values()} - set(bins))
    if empty:
        raise DataError(f"no node has foreground in channel {empty[0]}: every label map is empty")
    return {node: {one: bins[place] for one, place in of_node.items()} for node, of_node in channels.items()}


def _count_cases(session: Session) -> Statistics:
    """Order statistics of all cases, from counts alone.

    A node that fails on the way, where the run may miss it, is left out, and what the others have answered counts.

    Raises:
        NodeError: a node failed that cannot be missed.
        ProtocolError: counts that no cases have; names the node.
        ConfigError: too few cases for the noise that was asked for.
    """
    federation, epsilon = session.federation, session.settings.epsilon
    if epsilon is not None and federation.num_training < FEWEST_CASES:
        raise ConfigError(
            f"fingerprint.epsilon={epsilon:g} needs {FEWEST_CASES} training cases in all, and there are "
            f"{federation.num_training}: its noise would plan another network; set fingerprint.epsilon=null"
        )
    noise = noise_of(epsilon) if epsilon is not None else 0.0
    if session.settings.secure_run is not None:
        return _count_masked(session, noise)
    answers: dict[int, Answers] = {node: {} for node in federation.training}
    while True:
        nodes = federation.training
        search = GeometrySearch(federation.num_training, noise * math.sqrt(len(nodes)))
        search.add(_sums([answers[node] for node in nodes]))
        questions = search.questions()
        if not questions:
            return search.statistics()
        counted = _ask_for_counts(session, questions, answers, noise)
        federation.remove(set(nodes) - set(counted))
        for node, found in counted.items():
            for quantity, counts in found.items():
                answers[node].setdefault(quantity, {}).update(counts)


def _count_masked(session: Session, noise: float) -> Statistics:
    """The same where counts are masked: the server sees their sums over all training nodes, and can miss none.

    Raises:
        ProtocolError: a node's counts are missing, or their sum is none of cases.
    """
    federation, settings = session.federation, session.settings
    nodes, cases = federation.training, federation.num_training
    noise *= share_of(len(nodes), settings.colluding) * math.sqrt(len(nodes))
    search = GeometrySearch(cases, noise)
    while questions := search.questions():
        request = settings.fingerprint_request(
            content="counts", below=questions, secure_run=settings.secure_run, keys=federation.keys
        )
        replies = request_all(session, Kind.FINGERPRINT, dict.fromkeys(nodes, request), wait_for_all=True, report=False)
        missing = sorted({federation.name(node) for node in nodes} - {federation.name(reply.node) for reply in replies})
        if missing:
            raise ProtocolError(
                f"node {missing[0]} did not count its cases, and masked counts need every node; start a new run "
                "without it"
            )
        try:
            search.add(
                check_counts(
                    _masked_sums([reply.body for reply in replies], questions), questions, search.answers, cases, noise
                )
            )
        except ValueError as error:
            raise ProtocolError(
                f"the nodes' masked counts do not add up ({error}); one of them masks for other nodes or questions"
            ) from None
    return search.statistics()


def _masked_sums(replies: Sequence[FingerprintReply], questions: Questions) -> Counts:
    """Sums of masked counts, modulo 2**32."""
    sums: Counts = {}
    for quantity, numbers in questions.items():
        total = np.zeros(len(numbers), np.int32)
        for reply in replies:
            counts = (reply.counts or {}).get(quantity, [])
            if len(counts) != len(numbers):
                raise ValueError(f"node {reply.node} sent other points than were asked for")
            add(total, np.array(counts, np.int32))
        sums[quantity] = total.tolist()
    return sums


def _ask_for_counts(
    session: Session, questions: Questions, answers: Mapping[int, Answers], noise: float
) -> dict[int, Answers]:
    """Every training node's counts; of fewer, where some cannot be used and may be missed."""
    request = session.settings.fingerprint_request(content="counts", below=questions)
    requests = dict.fromkeys(session.federation.training, request)
    replies = request_all(session, Kind.FINGERPRINT, requests, wait_for_all=True, report=False)

    def parse(node: int, reply: FingerprintReply) -> Answers:
        cases = session.federation.described[node].num_training
        try:
            return check_counts(reply.counts or {}, questions, answers[node], cases, noise)
        except ValueError as error:
            raise ProtocolError(f"node {reply.node} sent {error}") from None

    return _parse_each(session, {reply.node: reply.body for reply in replies}, parse)


def _sums(answers: Sequence[Answers]) -> Answers:
    """Sums of the nodes' counts, which all are below the same points."""
    return {
        quantity: {number: sum(of_node[quantity][number] for of_node in answers) for number in numbers}
        for quantity, numbers in answers[0].items()
    }


def _parse_each(
    session: Session, replies: Mapping[int, FingerprintReply], parse: Callable[[int, FingerprintReply], T]
) -> dict[int, T]:
    """Every reply, parsed; without those that ``parse`` refuses, where the run may miss nodes."""
    parsed: dict[int, T] = {}
    failures: list[ProtocolError] = []
    for node, reply in replies.items():
        try:
            parsed[node] = parse(node, reply)
        except ProtocolError as error:
            failures.append(error)
    session.accept_failures(failures, len(parsed))
    return parsed


def _parse_part(session: Session, reply: FingerprintReply, bins: Mapping[str, Any]) -> Part:
    """A node's part of the fingerprint; over ``bins``, where a contribution was requested."""
    model: type[Part] = IntensityContribution if session.settings.geometry == "sums" else DatasetFingerprint
    parsed = model.parse(reply.fingerprint, f"node {reply.node}")
    over = {channel: intensities.bins.model_dump() for channel, intensities in (parsed.intensities or {}).items()}
    checked: list[tuple[str, Any, Any]] = [("bins", bins, over)]
    if isinstance(parsed, DatasetFingerprint):
        checked.insert(0, ("channels", sorted(bins or reply.channel_names), sorted(parsed.channels)))
        checked.append(("cases", reply.num_training, parsed.num_cases))
    for part, ours, theirs in checked:
        if ours != theirs:
            raise ProtocolError(
                f"node {reply.node} sent a fingerprint of other {part} than were requested: "
                f"{one_line(str(theirs))} instead of {ours}"
            )
    return parsed


def _parse_ranges(reply: FingerprintReply, asked: Sequence[str]) -> dict[str, IntensityRange]:
    """Channel to the range of a node's foreground intensities."""
    for known, what in ((reply.channel_names, "that it does not have"), (asked, "that it was not asked for")):
        unknown = sorted(set(reply.intensity_ranges or {}) - set(known))
        if unknown:
            raise ProtocolError(f"node {reply.node} sent ranges of a channel {what}: {one_line(unknown[0])}")
    try:
        return {channel: IntensityRange.model_validate(r) for channel, r in (reply.intensity_ranges or {}).items()}
    except ValidationError as error:
        raise ProtocolError(f"node {reply.node} sent malformed ranges: {first_problem(error, 'range')}") from None


def name_without_foreground(session: Session, nodes: Sequence[int]) -> None:
    """Tell the operator which nodes' cases have no foreground."""
    names = [session.federation.name(node) for node in nodes]
    what = "no case has foreground"
    why = "it teaches that there is nothing to find (healthy controls), or its annotations are missing"
    session.recorder.on_node_messages(
        {name: [f"node {name}: {what}; {why}"] for name in names}, f"{what} at {len(names)} nodes"
    )

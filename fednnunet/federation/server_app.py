"""The server: what happens in a federation, phase by phase.

It runs on any Flower grid: the embedded :class:`~fednnunet.federation.grid.LocalGrid` or a SuperLink. It never
sees an image; what it keeps of a round can be asked of the nodes again, so it has no state of its own to lose.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from pydantic import ValidationError

from fednnunet import __version__
from fednnunet.errors import ConfigError, DataError, NodeError, ProtocolError, first_problem, one_line
from fednnunet.exchange import messages
from fednnunet.exchange.messages import ExchangeDtype, Fold, Kind
from fednnunet.federation.aggregation import check_model
from fednnunet.federation.asking import ask, ask_as_they_join, check_enough, num_bytes, parse_reply
from fednnunet.federation.contact import Contact
from fednnunet.federation.journal import Journal
from fednnunet.federation.scoring import evaluate_nodes, score_external_centres
from fednnunet.federation.strategy import WEIGHT_KEY, AsymFedAvg, NoExchange
from fednnunet.files import write_atomically
from fednnunet.fingerprint.local import IntensityRange, LocalFingerprint, common_ranges
from fednnunet.fingerprint.merge import merge_fingerprints

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class ServerSettings:
    """What the server is told.

    Attributes:
        fingerprint: how the fingerprint that every node plans from is merged (FFE); None where each plans from its own.
        folds: to train, one after another.
        timeout: seconds to wait for the replies of a stage or round; None waits for ever.
        local_epochs: that nodes train between two aggregations.
        heterogeneous_tasks: nodes may differ in channels and labels.
        min_nodes: go on without nodes that fail or do not reply while so many are in; None needs all.
        dtype: that layers are rounded to while they travel in training.
        cross_centre: score every node's model on every other node's held-out cases, too.
        nodes: of the federation, which the first stage waits for; None takes those that the grid has when it begins.
        patient: nodes that can not be reached come back, and are waited for.
        run: id of this run, where nodes are to be told of it; the same when it goes on.
        task: what nodes are told to do in it (:class:`~fednnunet.config.TaskConfig`).
        centres: names that nodes may have, and whether each only tests; None takes any.
    """

    fingerprint: Literal["histogram", "weighted_mean"] | None
    folds: Sequence[Fold]
    timeout: float | None
    local_epochs: int = 1
    heterogeneous_tasks: bool = False
    min_nodes: int | None = None
    dtype: ExchangeDtype = "float32"
    cross_centre: bool = False
    nodes: int | None = None
    patient: bool = False
    run: str | None = None
    task: Mapping[str, Any] | None = None
    centres: Mapping[str, bool] | None = None

    def fingerprint_request(self, **asked: Any) -> messages.FingerprintRequest:
        """A request for a fingerprint; the first of a run that a node gets tells it the task."""
        return messages.FingerprintRequest(run=self.run, task=None if self.task is None else dict(self.task), **asked)


@dataclass
class Federation:
    """The nodes of a run and what they told of themselves, by Flower's node id."""

    described: dict[int, messages.FingerprintReply]
    planned: dict[int, messages.PlanReply] = field(default_factory=dict)
    preprocessed: dict[int, messages.PreprocessReply] = field(default_factory=dict)
    rounds: int = 0
    """Of a fold, once the nodes have told how many epochs they train."""

    def name(self, node_id: int) -> str:
        """The node's own name; its id before it is known."""
        return self.described[node_id].node if node_id in self.described else str(node_id)

    def leave_out(self, nodes: Iterable[int]) -> None:
        """Go on without these nodes."""
        for node in nodes:
            for told in (self.described, self.planned, self.preprocessed):
                told.pop(node, None)

    @property
    def training(self) -> list[int]:
        """Nodes with training cases, sorted by name."""
        return [node for node in self.by_name() if not self.described[node].external]

    @property
    def external(self) -> list[int]:
        """Nodes that only test, sorted by name."""
        return [node for node in self.by_name() if self.described[node].external]

    def of_same_task(self, node: int) -> list[int]:
        """Training nodes with the channels and labels of ``node``, sorted by name."""
        task = [getattr(self.described[node], what) for what in TASK]
        return [n for n in self.training if [getattr(self.described[n], what) for what in TASK] == task]

    def by_name(self) -> list[int]:
        """All nodes, sorted by name."""
        return sorted(self.described, key=self.name)

    @property
    def num_training(self) -> int:
        """Training cases of all nodes."""
        return sum(reply.num_training for reply in self.described.values())


def build_server_app(settings: ServerSettings, strategy: AsymFedAvg | NoExchange, journal: Journal) -> ServerApp:
    """A Flower ServerApp that runs the whole federation."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        contact = Contact(grid, journal, settings.patient)
        federation = describe_nodes(contact, settings, journal)
        check_agreement(federation, settings.heterogeneous_tasks)
        journal.num_training = {federation.name(n): federation.described[n].num_training for n in federation.training}
        plan_networks(contact, federation, settings, journal)
        preprocess_images(contact, federation, settings, journal)
        strategy.prepare(
            {node: federation.planned[node].layers for node in federation.training},
            {node: federation.name(node) for node in federation.training},
            settings.dtype,
        )
        finished: dict[Fold, list[int]] = {}
        for fold in settings.folds:
            before = journal.models_of(fold)
            if before:
                finished[fold] = [node for node in federation.training if federation.name(node) in before]
            else:
                arrays = train_rounds(contact, federation, strategy, fold, settings, journal)
                finished[fold] = evaluate_nodes(contact, federation, strategy, fold, arrays, settings, journal)
        score_external_centres(contact, federation, strategy, finished, settings, journal)

    return app


# phases ------------------------------------------------------------------------------------------------


def describe_nodes(contact: Contact, settings: ServerSettings, journal: Journal) -> Federation:
    """Ask every node for its labels and number of cases, and of its fingerprint what merging it begins with.

    Raises:
        NodeError: a node failed that can not be missing, or runs another version.
        ConfigError: too few nodes came, or two have one name.
    """
    journal.stage("fingerprint")
    tell: dict[str | None, Literal["nothing", "ranges", "statistics"]] = {
        None: "nothing",
        "histogram": "ranges",
        "weighted_mean": "statistics",
    }
    request = settings.fingerprint_request(tell=tell[settings.fingerprint])
    federation = Federation({})
    if settings.nodes is None:
        asked = dict.fromkeys(sorted(contact.grid.get_node_ids()), request)
        if not asked:
            raise ConfigError(
                "no node is connected; start the nodes first, or set how many to wait for: federation.nodes"
            )
        replies = ask(contact, Kind.FINGERPRINT, asked, federation, settings, journal, at_least=settings.min_nodes)
        if len(replies) < len(asked):
            journal.message(f"in are {', '.join(sorted(reply.node for _, reply, _ in replies))}")
    else:
        replies = ask_as_they_join(contact, request, settings.nodes, federation, settings, journal)
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


TASK = ("channel_names", "labels", "regions_class_order")
"""What makes two datasets one task, in ``dataset.json``."""


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


def plan_networks(contact: Contact, federation: Federation, settings: ServerSettings, journal: Journal) -> None:
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
    contact: Contact,
    kind: Kind,
    request: messages.Body,
    federation: Federation,
    settings: ServerSettings,
    journal: Journal,
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
        at_least=settings.min_nodes,
        wait=True,
    )
    answered = {node: reply for node, reply, _ in replies}
    federation.leave_out(set(asked) - set(answered))
    return answered


def federated_fingerprint(
    contact: Contact, federation: Federation, settings: ServerSettings, journal: Journal
) -> dict[str, Any]:
    """nnU-Net's fingerprint of all nodes' cases, from what each tells of its own.

    Where nodes may be missing, one whose contribution can not be used is left out, and the others are asked anew: what
    they tell depends on how many cases there are in all, and on the range of their intensities.

    Raises:
        NodeError: a node failed that can not be missing.
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
    contact: Contact, federation: Federation, settings: ServerSettings, journal: Journal
) -> dict[int, LocalFingerprint]:
    """Of the training nodes; of fewer, where some can not be used and may be missing.

    Those whose ranges can not be used are left out before the others are asked.
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
        replies = ask(contact, Kind.FINGERPRINT, asked, federation, settings, at_least=settings.min_nodes, wait=True)
        described = {node: reply for node, reply, _ in replies}
    return _usable(described, lambda reply: _fingerprint_of(reply, bins), settings, journal)


def _usable(
    replies: Mapping[int, messages.FingerprintReply],
    read: Callable[[messages.FingerprintReply], T],
    settings: ServerSettings,
    journal: Journal,
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


def preprocess_images(contact: Contact, federation: Federation, settings: ServerSettings, journal: Journal) -> None:
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


def train_rounds(
    contact: Contact,
    federation: Federation,
    strategy: AsymFedAvg | NoExchange,
    fold: Fold,
    settings: ServerSettings,
    journal: Journal,
) -> ArrayRecord:
    """Train and aggregate a fold, from the last round that can be had again.

    Returns:
        The arrays after the last aggregation.
    """
    start, members = _resume_point(
        federation, fold, journal, lambda finished: strategy.remembers(journal.folder, fold, finished)
    )
    journal.begin_fold(fold, federation.rounds, start)
    strategy.begin_fold(
        {node: _last_round(federation, node, fold, start) for node in federation.training},
        journal.update_norms_of(fold),
    )
    if start:
        log.info("fold %s goes on from round %d", fold, start)
        arrays = strategy.restore(journal.folder, fold, start) or ArrayRecord()
        if not arrays:
            arrays, _ = _train_round(contact, federation, strategy, fold, start, arrays, settings, nodes=members)
    else:
        arrays = _initial_arrays(contact, federation, strategy, fold, settings, journal)
    for server_round in range(start + 1, federation.rounds + 1):
        arrays, rows = _train_round(contact, federation, strategy, fold, server_round, arrays, settings, journal)
        strategy.save(journal.folder, fold, server_round, arrays)
        journal.write_round(server_round, rows)
    return arrays


def _resume_point(
    federation: Federation, fold: Fold, journal: Journal, remembered: Callable[[int], bool]
) -> tuple[int, list[int]]:
    """The last round of which every node that was in it, and still is, has its checkpoint; and these nodes."""
    for server_round, names in sorted(journal.nodes_of_rounds(fold).items(), reverse=True):
        members = [node for node in federation.training if federation.name(node) in names]
        have_it = [_last_round(federation, node, fold, server_round) == server_round for node in members]
        if members and all(have_it) and server_round <= federation.rounds and remembered(server_round):
            return server_round, members
    return 0, []


def _last_round(federation: Federation, node: int, fold: Fold, until: int) -> int:
    """The last round up to ``until`` that ``node`` has a checkpoint of; 0 where there is none."""
    rounds = federation.described[node].resume_rounds.get(fold, [])
    return max((server_round for server_round in rounds if server_round <= until), default=0)


def _initial_arrays(
    contact: Contact,
    federation: Federation,
    strategy: AsymFedAvg | NoExchange,
    fold: Fold,
    settings: ServerSettings,
    journal: Journal,
) -> ArrayRecord:
    """Shared layers start equal everywhere: as the first node that has them initialised them, pretrained ones first.

    Where nodes may be missing, the next one is asked for layers that a node does not send as it should.
    """
    at_least = None if settings.min_nodes is None else 0
    missing = set(strategy.groups)
    initial = ArrayRecord()
    for node in sorted(federation.training, key=lambda node: not federation.preprocessed[node].pretrained):
        wanted = [layer for layer in strategy.layers_of(node) if strategy.group_of(node, layer) in missing]
        if not wanted:
            continue
        request = messages.TrainRequest(fold=fold, server_round=0, layers=wanted)
        shapes = {layer: federation.planned[node].layers[layer] for layer in wanted}
        sent = ArrayRecord()
        for _, _, sent in ask(contact, Kind.TRAIN, {node: request}, federation, settings, at_least=at_least, wait=True):
            try:
                check_model(sent, shapes, f"node {federation.name(node)}")
            except ProtocolError as error:
                check_enough([error], 0, at_least, journal)
                sent = ArrayRecord()
        for layer, array in sent.items():
            group = strategy.group_of(node, layer)
            initial[group] = array
            missing.discard(group)
    return initial


def _train_round(
    contact: Contact,
    federation: Federation,
    strategy: AsymFedAvg | NoExchange,
    fold: Fold,
    server_round: int,
    arrays: ArrayRecord,
    settings: ServerSettings,
    journal: Journal | None = None,
    nodes: Sequence[int] = (),
) -> tuple[ArrayRecord, list[dict[str, Any]]]:
    rows: dict[int, dict[str, Any]] = {}
    refused: dict[int, str] = {}
    wanted = nodes or strategy.sample(fold, server_round)
    enough = _enough(settings.min_nodes, len(federation.training) - len(wanted))
    there = contact.present(wanted, enough)
    config = ConfigRecord({"fold": fold, "epochs": settings.local_epochs, "nodes": there})
    requests = list(strategy.configure_train(server_round, arrays, config, contact.grid))
    sent = {message.metadata.dst_node_id: num_bytes(message) for message in requests}

    def passing_by(replies: Iterable[Message]) -> Iterable[Message]:
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_content():
                try:
                    body = _figures_of_round(reply, federation, fold, server_round)
                except ProtocolError as error:
                    log.warning("round %d: %s", server_round, error)
                    refused[node] = str(error)
                    continue
                rows[node] = {
                    "node": federation.name(node),
                    **body.model_dump(include=set(ROUND_METRICS)),
                    "bytes_up": num_bytes(reply),
                    "bytes_down": sent[node],
                }
                if journal is not None:
                    journal.node_done(federation.name(node), server_round, rows[node])
            yield reply

    replies = contact.stream(requests, settings.timeout, enough)
    aggregated, _ = strategy.aggregate_train(server_round, passing_by(replies))
    late = {node: f"round {server_round}: no reply within {settings.timeout} s" for node in sent if node not in rows}
    failures = late | strategy.failures | refused
    out = [NodeError(federation.name(node), reason) for node, reason in failures.items()]
    check_enough(out, len(federation.training) - len(out), settings.min_nodes, journal)
    used = [node for node in federation.training if node in rows and node not in failures]
    # Groups of layers that no node of this round has keep their last average.
    return ArrayRecord({**arrays, **(aggregated or {})}), [
        {**rows[node], "update_norm": strategy.update_norms.get(node)} for node in used
    ]


def _figures_of_round(reply: Message, federation: Federation, fold: Fold, server_round: int) -> messages.TrainReply:
    """What a node tells of the round it was asked to train.

    Raises:
        ProtocolError: malformed, of another round or fold, or of a number of cases that the node does not have.
    """
    node = reply.metadata.src_node_id
    name = federation.name(node)
    body = parse_reply(messages.TrainReply, reply, name)
    if (body.fold, body.server_round) != (fold, server_round):
        raise ProtocolError(
            f"node {name} sent round {body.server_round} of fold {body.fold} instead of round {server_round} of {fold}"
        )
    weighed = reply.content.metric_records.get("metrics", MetricRecord()).get(WEIGHT_KEY)
    cases = federation.described[node].num_training
    if body.num_examples > cases or weighed != body.num_examples:
        raise ProtocolError(f"node {name} sent {weighed} training cases of the fold; it has told of {cases} in all")
    return body


def _enough(min_nodes: int | None, not_drawn: int) -> int | None:
    """How many replies a round needs to which not all nodes were drawn."""
    return None if min_nodes is None else max(1, min_nodes - not_drawn)


ROUND_METRICS = ("train_loss", "val_loss", "pseudo_dice", "seconds_train", "seconds_exchange")

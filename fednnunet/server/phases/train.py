"""The rounds of a fold: train, aggregate, go on where an interrupted run was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fednnunet.errors import NodeError, ProtocolError
from fednnunet.exchange import messages
from fednnunet.exchange.messages import Fold, Kind
from fednnunet.server.node_client import NodeClient
from fednnunet.server.node_requests import ask, check_enough, num_bytes, parse_reply
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import Federation, ServerSettings
from fednnunet.server.strategy.asym_fedavg import WEIGHT_KEY, AsymFedAvg, NoExchange
from fednnunet.server.strategy.averaging import check_model

log = logging.getLogger(__name__)


def train_rounds(
    contact: NodeClient,
    federation: Federation,
    strategy: AsymFedAvg | NoExchange,
    fold: Fold,
    settings: ServerSettings,
    journal: RunRecorder,
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
    federation: Federation, fold: Fold, journal: RunRecorder, remembered: Callable[[int], bool]
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
    contact: NodeClient,
    federation: Federation,
    strategy: AsymFedAvg | NoExchange,
    fold: Fold,
    settings: ServerSettings,
    journal: RunRecorder,
) -> ArrayRecord:
    """Shared layers start equal everywhere: as the first node that has them initialised them, pretrained ones first.

    Where nodes may be missing, the next one is asked for layers that a node does not send as it should.
    """
    min_replies = None if settings.min_nodes is None else 0
    missing = set(strategy.groups)
    initial = ArrayRecord()
    for node in sorted(federation.training, key=lambda node: not federation.preprocessed[node].pretrained):
        wanted = [layer for layer in strategy.layers_of(node) if strategy.group_of(node, layer) in missing]
        if not wanted:
            continue
        request = messages.TrainRequest(fold=fold, server_round=0, layers=wanted)
        shapes = {layer: federation.planned[node].layers[layer] for layer in wanted}
        sent = ArrayRecord()
        for _, _, sent in ask(
            contact, Kind.TRAIN, {node: request}, federation, settings, min_replies=min_replies, wait=True
        ):
            try:
                check_model(sent, shapes, f"node {federation.name(node)}")
            except ProtocolError as error:
                check_enough([error], 0, min_replies, journal)
                sent = ArrayRecord()
        for layer, array in sent.items():
            group = strategy.group_of(node, layer)
            initial[group] = array
            missing.discard(group)
    return initial


def _train_round(
    contact: NodeClient,
    federation: Federation,
    strategy: AsymFedAvg | NoExchange,
    fold: Fold,
    server_round: int,
    arrays: ArrayRecord,
    settings: ServerSettings,
    journal: RunRecorder | None = None,
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

    def record_replies(replies: Iterable[Message]) -> Iterable[Message]:
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_content():
                try:
                    body = _parse_train_reply(reply, federation, fold, server_round)
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
    aggregated, _ = strategy.aggregate_train(server_round, record_replies(replies))
    late = {node: f"round {server_round}: no reply within {settings.timeout} s" for node in sent if node not in rows}
    failures = late | strategy.failures | refused
    out = [NodeError(federation.name(node), reason) for node, reason in failures.items()]
    check_enough(out, len(federation.training) - len(out), settings.min_nodes, journal)
    used = [node for node in federation.training if node in rows and node not in failures]
    # Groups of layers that no node of this round has keep their last average.
    return ArrayRecord({**arrays, **(aggregated or {})}), [
        {**rows[node], "update_norm": strategy.update_norms.get(node)} for node in used
    ]


def _parse_train_reply(reply: Message, federation: Federation, fold: Fold, server_round: int) -> messages.TrainReply:
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
    """How many replies per round needs to which not all nodes were drawn."""
    return None if min_nodes is None else max(1, min_nodes - not_drawn)


ROUND_METRICS = ("train_loss", "val_loss", "pseudo_dice", "seconds_train", "seconds_exchange")

"""Training: the rounds of a fold, from the start or from where an interrupted run stopped."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fednnunet.errors import NodeError, ProtocolError
from fednnunet.exchange.messages import Fold, Kind, TrainReply, TrainRequest
from fednnunet.exchange.records import metrics_in, record_of
from fednnunet.listing import join_nodes
from fednnunet.server.node_messages import num_bytes, parse_reply, with_whole_layers
from fednnunet.server.node_requests import request_all
from fednnunet.server.phases.unmask import open_sums
from fednnunet.server.session import Federation, Session
from fednnunet.server.strategy.averaging import WEIGHT_KEY, check_model
from fednnunet.server.strategy.secure_average import Shares, SumsToOpen, VoidRound

log = logging.getLogger(__name__)

ROUND_METRICS = ("train_loss", "val_loss", "pseudo_dice", "seconds_train", "seconds_exchange", "gpu_memory_gib")
"""Fields of a reply that go into ``rounds.csv``."""
MAX_VOID_ROUNDS = 3
"""Rounds in a row whose secure sums cannot be opened, after which a run ends."""
MISSING_SHOWN = 3
"""Most rounds of which a message lists what is missing: nodes keep so many."""


def is_finished(session: Session, fold: Fold) -> bool:
    """Whether an interrupted run has trained and evaluated the fold; its final models are then those."""
    federation = session.federation
    names = session.recorder.models_of(fold)
    if names:
        names |= {federation.name(node) for node in federation.training if federation.holds_none_out(node, fold)}
        session.final_models[fold] = [node for node in federation.training if federation.name(node) in names]
    return bool(names)


def train_rounds(session: Session, fold: Fold) -> ArrayRecord:
    """Train and aggregate a fold, from the last round that can be resumed.

    Returns:
        The arrays after the last aggregation.
    """
    federation, strategy, recorder = session.federation, session.strategy, session.recorder
    start, members = _resume_point(session, fold)
    recorder.on_fold_start(fold, federation.rounds, start)
    strategy.begin_fold(
        {node: _last_checkpoint(federation, node, fold, start) for node in federation.training},
        recorder.update_norms_of(fold, start),
    )
    if start:
        log.info("fold %s goes on from round %d", fold, start)
        arrays = strategy.restore(recorder.folder, fold, start) or ArrayRecord()
        if not arrays:
            arrays, _ = _TrainingRound(session, fold, start, report=False).run(arrays, members)
    else:
        arrays = _initial_arrays(session, fold)
    void: list[str] = []
    for server_round in range(start + 1, federation.rounds + 1):
        nodes = strategy.sample(fold, server_round)
        try:
            arrays, rows = _TrainingRound(session, fold, server_round).run(arrays, nodes)
        except VoidRound as problem:
            void.append(f"round {server_round} of fold {fold} is void: {problem}")
            if len(void) == MAX_VOID_ROUNDS or server_round == federation.rounds:
                raise ProtocolError(f"{void[-1]} ({len(void)} rounds in a row); see the nodes' logs") from None
            recorder.on_message(f"{void[-1]}; the next round starts from the same averages")
            continue
        void.clear()
        strategy.save(recorder.folder, fold, server_round, arrays)
        if means := strategy.round_means:
            recorder.on_round_means(server_round, {"nodes": len(rows), **means})
        recorder.on_round_end(server_round, rows)
    return arrays


def _resume_point(session: Session, fold: Fold) -> tuple[int, list[int]]:
    """The last round of which every node that was in it, and still is, has its checkpoint; and these nodes.

    Where that is not the last round of all, the operator is told what is missing of the later ones.
    """
    federation, recorder = session.federation, session.recorder
    missing: list[str] = []
    for server_round, names in sorted(recorder.nodes_of_rounds(fold).items(), reverse=True):
        members = [node for node in federation.training if federation.name(node) in names]
        if server_round > federation.rounds:
            continue
        without = [
            federation.name(node)
            for node in members
            if _last_checkpoint(federation, node, fold, server_round) != server_round
        ]
        if without or not members:
            missing.append(f"of round {server_round} at {join_nodes(without or sorted(names))}")
        elif not session.strategy.remembers(recorder.folder, fold, server_round):
            missing.append(f"of round {server_round} at the server")
        else:
            _report_missing(session, fold, missing, f"goes on from round {server_round}")
            return server_round, members
    _report_missing(session, fold, missing, "begins anew")
    return 0, []


def _report_missing(session: Session, fold: Fold, missing: Sequence[str], consequence: str) -> None:
    if missing:
        shown = "; ".join(missing[:MISSING_SHOWN]) + ("; …" if len(missing) > MISSING_SHOWN else "")
        session.recorder.on_message(f"fold {fold} {consequence}: no sound checkpoint {shown}")


def _last_checkpoint(federation: Federation, node: int, fold: Fold, until: int) -> int:
    """The last round up to ``until`` that ``node`` has a checkpoint of; 0 where there is none."""
    rounds = federation.described[node].resume_rounds.get(fold, [])
    return max((server_round for server_round in rounds if server_round <= until), default=0)


def _initial_arrays(session: Session, fold: Fold) -> ArrayRecord:
    """Shared layers start equal everywhere: as the first node that has them initialised them, pretrained ones first.

    Where the run may miss nodes, the next one is asked for layers that a node does not send as it should.
    """
    federation, strategy = session.federation, session.strategy
    missing = set(strategy.groups.names)
    initial = ArrayRecord()
    for node in sorted(federation.training, key=lambda node: not federation.preprocessed[node].pretrained):
        layers = [layer for layer, group in strategy.groups.of_node(node).items() if group in missing]
        if not layers:
            continue
        request = TrainRequest(fold=fold, server_round=0, layers=layers)
        shapes = {layer: federation.planned[node].layers[layer] for layer in layers}
        for reply in request_all(session, Kind.TRAIN, {node: request}, wait_for_all=True, optional=True, report=False):
            try:
                check_model(reply.arrays, shapes, f"node {federation.name(node)}")
            except ProtocolError as error:
                session.accept_failures([error])
                continue
            for layer, array in reply.arrays.items():
                group = strategy.groups.group_of(node, layer)
                initial[group] = array
                missing.discard(group)
    return initial


class _TrainingRound:
    """One round: requests, replies as they come, and the aggregation.

    Args:
        session: of the run.
        fold: fold that is trained.
        server_round: number of the round, from 1.
        report: notify the observers of each node's reply.
    """

    def __init__(self, session: Session, fold: Fold, server_round: int, report: bool = True) -> None:
        self.session = session
        self.fold = fold
        self.server_round = server_round
        self.report = report
        self.rows: dict[int, dict[str, Any]] = {}
        self.refused: dict[int, str] = {}
        self._are_failures_accepted = False

    def run(self, arrays: ArrayRecord, nodes: Sequence[int]) -> tuple[ArrayRecord, list[dict[str, Any]]]:
        """Train at ``nodes`` from ``arrays``.

        Returns:
            The arrays after the round; rows of ``rounds.csv``, one per node whose layers were used.

        Raises:
            VoidRound: the secure sums of the round cannot be opened.
        """
        session = self.session
        strategy, settings = session.strategy, session.settings
        min_replies = self._min_replies(nodes)
        connected = session.client.wait_until_connected(nodes, min_replies)
        config = ConfigRecord({"fold": self.fold, "epochs": settings.local_epochs, "nodes": connected})
        requests = list(strategy.configure_train(self.server_round, arrays, config, session.client.grid))
        sent = {request.metadata.dst_node_id: num_bytes(request) for request in requests}

        def whole(request: Message) -> Message | None:
            node = request.metadata.dst_node_id
            again = with_whole_layers(request, TrainRequest, strategy.arrays_for(node, arrays))
            sent[node] += 0 if again is None else num_bytes(again)
            return again

        replies = session.client.stream(requests, settings.timeout, min_replies, whole)
        strategy.open_sums = partial(self._open_sums, sent)
        try:
            aggregated, _ = strategy.aggregate_train(self.server_round, self._record_replies(replies, sent))
        except VoidRound:
            self._accept_failures(sent)
            raise
        self._accept_failures(sent)
        failures = self._failures(sent)
        # Groups of layers that no node of this round has keep their last average.
        return record_of({**arrays, **(aggregated or {})}), [
            {**self.rows[node], "update_norm": strategy.update_norms.get(node)}
            for node in session.federation.training
            if node in self.rows and node not in failures
        ]

    def _failures(self, sent: Collection[int]) -> dict[int, str]:
        """Node to why its layers are not used, of those that were sent a request."""
        late = f"round {self.server_round}: no reply within {self.session.settings.timeout} s"
        strategy = self.session.strategy
        return {node: late for node in sent if node not in self.rows} | strategy.failures | self.refused

    def _accept_failures(self, sent: Collection[int]) -> None:
        """Go on without nodes whose layers are not used, where the run may miss them; decided once in a round."""
        if self._are_failures_accepted:
            return
        federation = self.session.federation
        errors = [NodeError(federation.name(node), reason) for node, reason in self._failures(sent).items()]
        self.session.accept_failures(errors, len(federation.training) - len(errors))
        self._are_failures_accepted = True

    def _open_sums(self, sent: Collection[int], sums: SumsToOpen) -> Shares:
        """Have the sums opened, if the run may miss those whose layers are not in them: they are opened once only."""
        self._accept_failures(sent)
        return open_sums(self.session, sums)

    def _min_replies(self, nodes: Sequence[int]) -> int:
        """Number of replies that the round needs; nodes that were not drawn for it count as if they had replied."""
        least = self.session.settings.min_nodes
        if least is None:
            return len(nodes)
        return max(1, least - (len(self.session.federation.training) - len(nodes)))

    def _record_replies(self, replies: Iterator[Message], sent: dict[int, int]) -> Iterator[Message]:
        """Hand on ``replies``, malformed ones emptied; a row of ``rounds.csv`` is kept of each of the others."""
        name = self.session.federation.name
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_content():
                try:
                    body = self._parse(reply)
                except ProtocolError as error:
                    log.warning("round %d: %s", self.server_round, error)
                    self.refused[node] = str(error)
                    reply.content = RecordDict()  # the strategy refuses it, and does not wait for its node
                    yield reply
                    continue
                self.rows[node] = {
                    "node": name(node),
                    **body.model_dump(include=set(ROUND_METRICS)),
                    "bytes_up": num_bytes(reply),
                    "bytes_down": sent[node],
                }
                if self.report:
                    self.session.recorder.on_node_reply(name(node), self.server_round, self.rows[node])
            yield reply
            del reply  # of the size of a model: not kept while the next one is received

    def _parse(self, reply: Message) -> TrainReply:
        """A node's reply to this round's request.

        Raises:
            ProtocolError: malformed, of another round or fold, or with a number of cases that the node does not have.
        """
        node = reply.metadata.src_node_id
        name = self.session.federation.name(node)
        body = parse_reply(TrainReply, reply, name)
        if (body.fold, body.server_round) != (self.fold, self.server_round):
            raise ProtocolError(
                f"node {name} sent round {body.server_round} of fold {body.fold} instead of round {self.server_round} "
                f"of {self.fold}"
            )
        weight = metrics_in(reply.content).get(WEIGHT_KEY)
        cases = self.session.federation.described[node].num_training
        if body.num_examples > cases or weight != body.num_examples:
            raise ProtocolError(f"node {name} sent {weight} training cases of the fold; it registered {cases} in all")
        return body

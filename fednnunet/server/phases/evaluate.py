"""What the server does after training: nodes score, and models travel to the cases of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import ENSEMBLE, CaseScore, EvaluateRequest, Fold, Kind, Model
from fednnunet.server.node_client import NodeClient
from fednnunet.server.node_requests import ask, check_enough
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg, NoExchange
from fednnunet.server.strategy.averaging import check_model

if TYPE_CHECKING:
    from fednnunet.server.session import Federation, ServerSettings

FoldsOf = Mapping[int, Sequence[Fold]]
"""Models: the folds of each node."""


def evaluate_nodes(
    contact: NodeClient,
    federation: Federation,
    strategy: AsymFedAvg | NoExchange,
    fold: Fold,
    arrays: ArrayRecord,
    settings: ServerSettings,
    journal: RunRecorder,
) -> list[int]:
    """Nodes write the fold's final checkpoint and score its held-out cases; with ``cross_centre`` each other's, too.

    Returns:
        Nodes that did.
    """
    journal.stage("evaluate")
    requests = {
        node: EvaluateRequest(fold=fold, server_round=federation.rounds, trained=strategy.trained(node))
        for node in federation.training
    }
    averages = {node: strategy.arrays_for(node, arrays) for node in federation.training}
    replies = ask(
        contact, Kind.EVALUATE, requests, federation, settings, journal, averages, min_replies=settings.min_nodes
    )
    own: dict[int, list[CaseScore]] = {}
    refused: list[ProtocolError] = []
    for node, reply, _ in replies:
        try:
            _check_centres(federation, node, reply.cases)
            own[node] = _relabel(reply.cases, federation.name(node))
        except ProtocolError as error:
            refused.append(error)
    check_enough(refused, len(own), settings.min_nodes, journal)
    scores = [score for cases in own.values() for score in cases]
    if settings.cross_centre and fold != "all":
        others = {
            user: {node: [fold] for node in federation.of_same_task(user) if node in own and node != user}
            for user in own
        }
        if _share_final_model(federation, strategy, list(own)):  # another node's model is a node's own
            scores += [s for user in own for node in others[user] for s in _relabel(own[user], federation.name(node))]
        else:
            scores += _cross_evaluate(contact, federation, others, fold, settings, journal)
    journal.write_cases(fold, scores)
    return list(own)


def score_external_centres(
    contact: NodeClient,
    federation: Federation,
    strategy: AsymFedAvg | NoExchange,
    finished: Mapping[Fold, Sequence[int]],
    settings: ServerSettings,
    journal: RunRecorder,
) -> None:
    """External centres score all of their cases with every node's models, folds averaged, and with all of them.

    Args:
        contact: reaches the nodes.
        federation: its nodes.
        strategy: says whether nodes end with one model.
        finished: fold to the nodes that have a final model of it.
        settings: of the server.
        journal: takes the scores; what an interrupted run has scored is not scored again.
    """
    waiting = [node for node in federation.external if not journal.has_scores_at(federation.name(node))]
    if not waiting:
        return
    journal.stage("external")
    first_fold, last = next(iter(finished)), list(finished.values())[-1]
    users: dict[int, FoldsOf] = {}
    same: dict[int, list[int]] = {}
    for user in waiting:
        folds = {node: [f for f in finished if node in finished[f]] for node in federation.of_same_task(user)}
        users[user] = {node: of_node for node, of_node in folds.items() if of_node}
        nodes = sorted(users[user], key=lambda node: node not in last)  # first those that are still there
        if len(nodes) > 1 and _share_final_model(federation, strategy, nodes):
            users[user] = {nodes[0]: users[user][nodes[0]]}
            same[user] = nodes[1:]
    scores = _cross_evaluate(contact, federation, users, first_fold, settings, journal)
    for user, others in same.items():
        # One model stands for all of them, and for the mean of their softmax outputs.
        of_one = [score for score in scores if score.centre == federation.name(user)]
        scores += [score for name in (*map(federation.name, others), ENSEMBLE) for score in _relabel(of_one, name)]
    journal.write_cases(ENSEMBLE if len(finished) > 1 else first_fold, scores)


def _cross_evaluate(
    contact: NodeClient,
    federation: Federation,
    users: Mapping[int, FoldsOf],
    fold: Fold,
    settings: ServerSettings,
    journal: RunRecorder,
) -> list[CaseScore]:
    """Send models to the nodes that use them; these score all of their cases, or those that ``fold`` holds out."""
    recipients: dict[tuple[int, Fold], list[int]] = {}
    for user, models in users.items():
        for node, folds in models.items():
            for of_fold in folds:
                recipients.setdefault((node, of_fold), []).append(user)
    lost: set[int] = set()
    min_replies = None if settings.min_nodes is None else 0  # a federation that may lose nodes goes on without them
    for (node, of_fold), nodes in recipients.items():
        if node in lost:
            continue
        # One model at a time passes through: the server's memory stays that of one model.
        name, planned = federation.name(node), federation.planned[node]
        request = EvaluateRequest(fold=of_fold, layers=list(planned.layers))
        replies = ask(contact, Kind.EVALUATE, {node: request}, federation, settings, min_replies=min_replies)
        if not replies:
            journal.message(f"node {name} does not send its model of fold {of_fold}; its models are left out")
            lost.add(node)
            continue
        ((_, reply, arrays),) = replies
        try:
            check_model(arrays, planned.layers, f"node {name}")
        except ProtocolError as error:
            check_enough([error], 0, min_replies, journal)
            lost.add(node)
            continue
        model = Model(node=name, fold=of_fold, plans=planned.plans, mirror_axes=reply.mirror_axes)
        keep = dict.fromkeys(nodes, EvaluateRequest(keep=model))
        ask(contact, Kind.EVALUATE, keep, federation, settings, None, dict.fromkeys(nodes, arrays), min_replies)
    sent = {
        user: {federation.name(node): list(folds) for node, folds in models.items() if node not in lost}
        for user, models in users.items()
    }
    requests = {user: EvaluateRequest(fold=fold, score=models) for user, models in sent.items() if models}
    scores: list[CaseScore] = []
    for user, reply, _ in ask(contact, Kind.EVALUATE, requests, federation, settings, journal, min_replies=min_replies):
        try:
            _check_centres(federation, user, reply.cases)
            others = [score.model for score in reply.cases if score.model not in (*sent[user], ENSEMBLE)]
            if others:
                name = federation.name(user)
                raise ProtocolError(f"node {name} sent scores of model {others[0]}, which it was not sent")
        except ProtocolError as error:
            check_enough([error], 0, min_replies, journal)
            continue
        scores += reply.cases
    return scores


def _check_centres(federation: Federation, node: int, scores: Iterable[CaseScore]) -> None:
    """A node scores its own cases; the centres of a pooled dataset are no nodes.

    Raises:
        ProtocolError: scores in the name of another node.
    """
    others = {federation.name(other) for other in federation.described} - {federation.name(node)}
    for score in scores:
        if score.centre in others:
            raise ProtocolError(f"node {federation.name(node)} sent scores of cases of node {score.centre}")


def _share_final_model(federation: Federation, strategy: AsymFedAvg | NoExchange, nodes: Sequence[int]) -> bool:
    """Whether one final model is that of all ``nodes``: same plans, and every layer averaged."""
    first, *others = ({**federation.planned[node].plans, "dataset_name": ""} for node in nodes)
    return all(plans == first for plans in others) and strategy.averages_all_layers(nodes)


def _relabel(scores: Iterable[CaseScore], model: str) -> list[CaseScore]:
    """The scores, as those of ``model``."""
    return [score.model_copy(update={"model": model}) for score in scores]

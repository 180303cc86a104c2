"""Evaluation: nodes score their final models, and models travel to the cases of other nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from flwr.app import ArrayRecord, Message

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import (
    ENSEMBLE,
    EvaluateRequest,
    Fold,
    Kind,
    Model,
    Score,
    ScoreModelsRequest,
    SendModelRequest,
)
from fednnunet.server.node_messages import with_whole_layers
from fednnunet.server.node_requests import request_all
from fednnunet.server.session import Federation, Session
from fednnunet.server.strategy.averaging import check_model

FoldsByNode: TypeAlias = Mapping[int, Sequence[Fold]]
"""Final models, as node id to the folds that the node trained them in."""


def evaluate_nodes(session: Session, fold: Fold, arrays: ArrayRecord) -> None:
    """Nodes write the fold's final checkpoint and score its held-out cases; with ``cross_centre`` also each other's.

    Args:
        session: of the run.
        fold: fold that was trained.
        arrays: the last averages, which each node gets its part of.
    """
    federation, strategy, settings = session.federation, session.strategy, session.settings
    fine_tunes = settings.personal is not None and settings.personal.tie is None
    session.recorder.on_stage("fine_tune" if fine_tunes else "evaluate")
    averages = {node: strategy.groups.arrays_for(node, arrays) for node in federation.training}
    requests, sent = {}, {}
    for node, whole in averages.items():
        sent[node], references = strategy.shorten(node, whole)
        requests[node] = EvaluateRequest(
            fold=fold,
            server_round=federation.rounds,
            trained=strategy.last_round(node),
            dtype=settings.dtype,
            references=references,
        )

    def again(request: Message) -> Message | None:
        return with_whole_layers(request, EvaluateRequest, averages[request.metadata.dst_node_id])

    own: dict[int, list[Score]] = {}
    personal: dict[int, list[Score]] = {}
    failures: list[ProtocolError] = []
    for reply in request_all(session, Kind.EVALUATE, requests, sent, whole=again):
        try:
            _check_centres(federation, reply.node, (*reply.body.cases, *reply.body.personal))
            if reply.body.personal and settings.personal is None:
                raise ProtocolError(
                    f"node {federation.name(reply.node)} sent scores of a model of its own, which the run does not make"
                )
            own[reply.node] = _relabel(reply.body.cases, federation.name(reply.node))
            if settings.personal is not None:
                personal[reply.node] = _relabel(reply.body.personal, federation.name(reply.node))
        except ProtocolError as error:
            failures.append(error)
    session.accept_failures(failures, len(own))
    scores = _all(own)
    if settings.cross_centre and fold != "all":
        others = {
            evaluator: {
                node: [fold] for node in federation.of_same_task(evaluator) if node in own and node != evaluator
            }
            for evaluator in own
            if own[evaluator]
        }
        if _have_one_final_model(session, list(own)):  # another node's model is a node's own
            for evaluator, models in others.items():
                scores += [score for node in models for score in _relabel(own[evaluator], federation.name(node))]
        else:
            scores += _all(_cross_evaluate(session, others, fold))
    kept, personal_kept = (_kept_scores(federation, fold, told) for told in (own, personal))
    session.recorder.write_cases(fold, scores, kept, _all(personal), personal_kept)
    session.final_models[fold] = list(own)


def evaluate_external_centres(session: Session) -> None:
    """External centres score all of their cases with every node's models, folds averaged, and with all of them.

    Centres that an interrupted run has evaluated are not evaluated again.
    """
    federation, recorder = session.federation, session.recorder
    evaluators = [node for node in federation.external if not recorder.has_scores_at(federation.name(node))]
    if not evaluators:
        return
    recorder.on_stage("external")
    first_fold, last = next(iter(session.final_models)), list(session.final_models.values())[-1]
    models: dict[int, FoldsByNode] = {}
    same_model: dict[int, list[int]] = {}
    for evaluator in evaluators:
        folds = {
            node: [fold for fold, nodes in session.final_models.items() if node in nodes]
            for node in federation.of_same_task(evaluator)
        }
        models[evaluator] = {node: of_node for node, of_node in folds.items() if of_node}
        nodes = sorted(models[evaluator], key=lambda node: node not in last)  # nodes that are still there come first
        if len(nodes) > 1 and _have_one_final_model(session, nodes):
            models[evaluator] = {nodes[0]: models[evaluator][nodes[0]]}
            same_model[evaluator] = nodes[1:]
    replies = _cross_evaluate(session, models, first_fold)
    scores = _all(replies)
    kept = {name: name for evaluator, told in replies.items() if not told for name in [federation.name(evaluator)]}
    for evaluator, others in same_model.items():
        # One model stands for all of them, and for the mean of their softmax outputs.
        of_one = [score for score in scores if score.centre == federation.name(evaluator)]
        for name in (*map(federation.name, others), ENSEMBLE):
            scores += _relabel(of_one, name)
    recorder.write_cases(ENSEMBLE if len(session.final_models) > 1 else first_fold, scores, kept)


def _all(replies: Mapping[int, Iterable[Score]]) -> list[Score]:
    return [score for told in replies.values() for score in told]


def _cross_evaluate(session: Session, models: Mapping[int, FoldsByNode], fold: Fold) -> dict[int, list[Score]]:
    """Send models to nodes, which score all of their cases, or those that ``fold`` holds out.

    Args:
        session: of the run.
        models: evaluating node to the models that it gets.
        fold: fold whose held-out cases are scored.

    Returns:
        Evaluating node to what it told, in the order of the replies; nodes that failed are left out.
    """
    recipients: dict[tuple[int, Fold], list[int]] = {}
    for evaluator, folds_of in models.items():
        for node, folds in folds_of.items():
            for of_fold in folds:
                recipients.setdefault((node, of_fold), []).append(evaluator)
    lost: set[int] = set()
    for (node, of_fold), evaluators in recipients.items():
        # One model at a time passes through: the server's memory stays that of one model.
        if node not in lost and not _pass_on_model(session, node, of_fold, evaluators):
            lost.add(node)
    name = session.federation.name
    sent = {
        evaluator: {name(node): list(folds) for node, folds in folds_of.items() if node not in lost}
        for evaluator, folds_of in models.items()
    }
    requests = {
        evaluator: ScoreModelsRequest(
            fold=fold,
            models=names,
            labels=session.federation.labels_to_score(evaluator),
            channels=session.federation.channels_to_score(evaluator),
        )
        for evaluator, names in sent.items()
        if names
    }
    told: dict[int, list[Score]] = {}
    for reply in request_all(session, Kind.SCORE_MODELS, requests, optional=True):
        try:
            _check_centres(session.federation, reply.node, reply.body.cases)
            _check_models(name(reply.node), reply.body.cases, sent[reply.node])
        except ProtocolError as error:
            session.accept_failures([error])
            continue
        told[reply.node] = reply.body.cases
    return told


def _pass_on_model(session: Session, node: int, fold: Fold, evaluators: Sequence[int]) -> bool:
    """Take a node's final model of a fold, and send it to ``evaluators``.

    Returns:
        Whether the node has sent it, as it should.
    """
    name, planned = session.federation.name(node), session.federation.planned[node]
    averages = _averages_of(session, node, fold)
    replies = request_all(
        session,
        Kind.SEND_MODEL,
        {node: SendModelRequest(fold=fold, layers=list(planned.layers) if averages is None else [])},
        optional=True,
        report=False,
        consequence="its models are left out",
    )
    for reply in replies:
        sent = averages or reply.arrays
        try:
            check_model(sent, planned.layers, f"node {name}")
        except ProtocolError as error:
            session.accept_failures([error], consequence="its models are left out")
            return False
        model = Model(
            node=name,
            fold=fold,
            plans=planned.plans,
            mirror_axes=reply.body.mirror_axes,
            unlearnt=session.federation.unlearnt_channels.get(node, []),
        )
        requests, arrays = dict.fromkeys(evaluators, model), dict.fromkeys(evaluators, sent)
        request_all(session, Kind.KEEP_MODEL, requests, arrays, optional=True, report=False)
    return bool(replies)


def _averages_of(session: Session, node: int, fold: Fold) -> ArrayRecord | None:
    """The last averages of a fold, where layers are summed securely: the server's own copy of the node's model."""
    if session.settings.secure_run is None:
        return None
    arrays = session.strategy.restore(session.recorder.folder, fold, session.federation.rounds)
    assert arrays is not None, "a strategy of secure sums has a state"
    return session.strategy.groups.arrays_for(node, arrays)


def _kept_scores(federation: Federation, fold: Fold, own: Mapping[int, Sequence[Score]]) -> dict[str, str]:
    """Centre that holds cases out in the fold, and of which its node has told nothing, to the node."""
    return {
        centre: federation.name(node)
        for node, scores in own.items()
        for centre, held_out in federation.described[node].held_out.items()
        if held_out.get(fold) and centre not in {score.centre for score in scores}
    }


def _check_centres(federation: Federation, node: int, scores: Iterable[Score]) -> None:
    """Check that a node scores its own cases; the centres of a pooled dataset are no nodes.

    Raises:
        ProtocolError: scores in the name of another node.
    """
    others = {federation.name(other) for other in federation.described} - {federation.name(node)}
    for score in scores:
        if score.centre in others:
            raise ProtocolError(f"node {federation.name(node)} sent scores of cases of node {score.centre}")


def _check_models(name: str, scores: Iterable[Score], models: Iterable[str]) -> None:
    """Check that the node of this name has scored the models that it was sent.

    Raises:
        ProtocolError: scores of another model.
    """
    for score in scores:
        if score.model not in (*models, ENSEMBLE):
            raise ProtocolError(f"node {name} sent scores of model {score.model}, which it was not sent")


def _have_one_final_model(session: Session, nodes: Sequence[int]) -> bool:
    """Whether all ``nodes`` have one and the same final model: same plans, and every layer trained and averaged."""
    if session.settings.train_layers:  # those that stay may have come from different weights
        return False
    planned = session.federation.planned
    first, *others = ({**planned[node].plans, "dataset_name": ""} for node in nodes)
    return all(plans == first for plans in others) and session.strategy.groups.cover_all_layers(nodes)


def _relabel(scores: Iterable[Score], model: str) -> list[Score]:
    """The scores, as those of ``model``."""
    return [score.model_copy(update={"model": model}) for score in scores]

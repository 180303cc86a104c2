"""Scores of models that are the nodes' own, beside those of the federation's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fednnunet.errors import ProtocolError
from fednnunet.exchange.messages import CaseScore, EvaluateRequest, Kind, PersonalTraining
from tests.support.scripted_federation import Answer, RunFederation, ScriptedNode

pytestmark = pytest.mark.federation

HELD_OUT = {0: 1}


class Owner(ScriptedNode):
    """A node with a model of its own, whose DSC on its only case is given; None keeps it."""

    def __init__(self, name: str, dsc: float | None = 0.75, centre: str | None = None) -> None:
        super().__init__(name, held_out={name: HELD_OUT})
        self.dsc, self.centre = dsc, centre or name

    def _evaluate(self, body: EvaluateRequest, received: Mapping[str, Any]) -> Answer:
        answer = super()._evaluate(body, dict(received))
        if self.dsc is not None:
            own = CaseScore(centre=self.centre, case=0, label="tumour", dsc=self.dsc, hd95=2)
            answer.body["personal"] = [own.model_dump()]
        return answer


@pytest.mark.parametrize(
    ("personal", "shared", "own"),
    [
        (PersonalTraining(fine_tune_epochs=2, learning_rate=0.01), "asym", "asym fine-tuned"),
        (PersonalTraining(tie=0.1), "asym shared", "asym"),
    ],
)
def test_both_models_are_in_the_table_and_the_nodes_own_stays(
    run_federation: RunFederation, personal: PersonalTraining, shared: str, own: str
) -> None:
    nodes = [Owner("Oslo"), Owner("Porto", dsc=None), ScriptedNode("Riga", cases=0)]
    run = run_federation(nodes, settings={"personal": personal, "cross_centre": True})
    assert nodes[0].requests_of(Kind.PREPROCESS)[0].personal == personal
    rows = {(row.strategy, row.node, row.model): row for row in run.cases.itertuples()}
    of_federation = {(shared, "Oslo", "Oslo"), (shared, "Porto", "Porto"), (shared, "Oslo", "Porto")}
    of_federation |= {(shared, "Porto", "Oslo"), *((shared, "Riga", model) for model in ("Oslo", "Porto", "ensemble"))}
    assert set(rows) == of_federation | {(own, "Oslo", "Oslo"), (own, "Porto", "Porto")}
    assert rows[own, "Oslo", "Oslo"].dsc == 0.75
    assert rows[shared, "Oslo", "Oslo"].dsc != 0.75
    assert rows[own, "Porto", "Porto"].n_cases == 0, "it is told that the node keeps it"
    assert set(run.rounds.strategy) == {"asym"}


@pytest.mark.parametrize(
    ("settings", "centre", "problem"),
    [
        ({}, None, "node Oslo sent scores of a model of its own, which the run does not make"),
        ({"personal": PersonalTraining(tie=1)}, "Porto", "node Oslo sent scores of cases of node Porto"),
    ],
)
def test_scores_that_no_model_of_the_nodes_own_can_have_are_refused(
    run_federation: RunFederation, settings: dict[str, Any], centre: str | None, problem: str
) -> None:
    with pytest.raises(ProtocolError, match=problem):
        run_federation([Owner("Oslo", centre=centre), ScriptedNode("Porto")], settings=settings)

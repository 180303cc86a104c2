"""Nodes that tell means of their scores, or none of them, beside nodes that tell all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fednnunet.exchange.messages import EvaluateReply, EvaluateRequest, Kind, MeanScore, Score
from tests.support.scripted_federation import Answer, RunFederation, ScriptedNode

pytestmark = pytest.mark.federation


class Discreet(ScriptedNode):
    """A node that tells the means over six cases, or nothing."""

    def __init__(self, name: str, tells: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.tells = tells

    def _scores(self, scores: Mapping[str | None, float]) -> Answer:
        told: Sequence[Score] = [
            MeanScore(centre=self.name, num_cases=6, model=model, label=label, dsc=dsc)
            for model, dsc in scores.items()
            for label in (None, "tumour")
            if self.tells == "mean"
        ]
        return Answer(EvaluateReply(cases=list(told), seconds=1).model_dump())


def held_out(name: str) -> dict[str, dict[int, int]]:
    return {name: {0: 6, 1: 6}}


def members() -> list[ScriptedNode]:
    return [
        ScriptedNode("Oslo", held_out=held_out("Oslo")),
        Discreet("Porto", "mean", held_out=held_out("Porto")),
        Discreet("Riga", "nothing", held_out=held_out("Riga")),
        Discreet("Turku", "nothing", cases=0),
    ]


def test_cases_means_and_what_is_kept_are_in_one_table(run_federation: RunFederation) -> None:
    run = run_federation(members(), settings={"folds": [0, 1]})
    rows = run.cases.fillna({"label": "", "case": -1})
    for fold in ("0", "1"):
        of_fold = rows[rows["fold"] == fold]
        shown = list(
            of_fold[["node", "model", "case", "label", "n_cases"]].fillna(1).itertuples(index=False, name=None)
        )
        assert shown == [
            ("Oslo", "Oslo", 0, "tumour", 1),
            ("Porto", "Porto", -1, "", 6),
            ("Porto", "Porto", -1, "tumour", 6),
            ("Riga", "Riga", -1, "", 0),
        ]
    assert set(rows[rows["node"] == "Turku"]["n_cases"]) == {0}


def test_what_was_told_or_kept_is_not_asked_for_again(run_federation: RunFederation) -> None:
    nodes = members()
    run_federation(nodes, settings={"folds": [0, 1]})
    before = run_federation(nodes, settings={"folds": [0, 1]}).cases
    asked = [body for node in nodes for body in node.requests if isinstance(body, EvaluateRequest)]
    assert len(asked) == 2 * 3, "each training node for each fold, by the first run"
    assert len(nodes[-1].requests_of(Kind.SCORE_MODELS)) == 1
    assert before["n_cases"].isna().sum() == 2


def test_a_table_of_cases_alone_has_no_counts(run_federation: RunFederation) -> None:
    assert "n_cases" not in run_federation([ScriptedNode("Oslo"), ScriptedNode("Porto")]).cases

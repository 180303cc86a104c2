"""What hospitals choose of what there is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fednnunet.errors import ConfigError
from fednnunet.evaluation.choice import STANDARD_ERRORS
from fednnunet.reporting.gains import Gains, gains_by_selections
from fednnunet.reporting.selected import Selections, select_by_scores
from fednnunet.selection.sources import Sources


@dataclass(frozen=True)
class Chosen:
    """What hospitals choose.

    Attributes:
        sources: what there was to choose among.
        selections: the choices.
        gains: differences to training alone; None where it was not run.
        standard_errors: what counted as noise.
    """

    sources: Sources
    selections: Selections
    gains: Gains | None
    standard_errors: float


def choose_models(sources: Sources, default: str | None = None, standard_errors: float = STANDARD_ERRORS) -> Chosen:
    """Choose for every hospital, with each seed.

    Raises:
        ConfigError: ``standard_errors`` is no number from 0.
        DataError: as :func:`~fednnunet.reporting.selected.select_by_scores`.
    """
    if not (math.isfinite(standard_errors) and standard_errors >= 0):
        raise ConfigError(f"standard errors: {standard_errors} is no number from 0")
    selections = select_by_scores(sources.scores, sources.training, default, standard_errors)
    return Chosen(sources, selections, gains_by_selections(selections, sources.training), standard_errors)

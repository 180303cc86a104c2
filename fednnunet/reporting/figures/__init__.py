"""Figures of the report, by what they show; each function returns a matplotlib figure and writes nothing."""

from fednnunet.reporting.figures.centres import centre_summaries
from fednnunet.reporting.figures.many_nodes import score_distributions, sorted_differences
from fednnunet.reporting.figures.overlays import Overlay, overlay_grid, overlay_panel, read_dsc, read_overlay
from fednnunet.reporting.figures.rounds import ALL_NODES, learning_curves, round_costs
from fednnunet.reporting.figures.scores import case_scores, cross_centre, forest
from fednnunet.reporting.figures.style import (
    as_data_uri,
    as_png,
    node_styles,
    save_figure,
    save_picture,
    strategy_colours,
)

__all__ = [
    "ALL_NODES",
    "Overlay",
    "as_data_uri",
    "as_png",
    "case_scores",
    "centre_summaries",
    "cross_centre",
    "forest",
    "learning_curves",
    "node_styles",
    "overlay_grid",
    "overlay_panel",
    "read_dsc",
    "read_overlay",
    "round_costs",
    "save_figure",
    "save_picture",
    "score_distributions",
    "sorted_differences",
    "strategy_colours",
]

"""Plans of nodes side by side; those of many nodes in groups of equal networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fednnunet.config.dataset import POOLED_NODE
from fednnunet.listing import MOST_NODES
from fednnunet.reporting.run_folder import Run, brief_plans

TITLES = {
    "batch_size": "batch size",
    "patch_size": "patch (pixels)",
    "spacing": "spacing (mm)",
    "n_stages": "stages",
    "features_per_stage": "features",
}
AVERAGED = "parameters averaged"
_NETWORK = ("batch_size", "patch_size", "n_stages", "features_per_stage")
"""Plans that are equal in these are of one group."""


@dataclass(frozen=True)
class StrategyPlans:
    """Plans of one strategy, side by side.

    Attributes:
        strategy: name of the strategy.
        nodes: names of the nodes, the columns.
        rows: name of a property, and its value at each node.
    """

    strategy: str
    nodes: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class PlanGroups:
    """Plans of many nodes of one strategy.

    Attributes:
        strategy: name of the strategy.
        titles: properties, the columns.
        rows: nodes of a group, and its properties: one value, or the ends of those that differ within it; the largest
            group first.
    """

    strategy: str
    titles: list[str]
    rows: list[tuple[list[str], list[str]]]

    @property
    def num_nodes(self) -> int:
        """Nodes of all groups."""
        return sum(len(nodes) for nodes, _ in self.rows)


def collect_plans(run: Run, order: Sequence[str]) -> StrategyPlans | PlanGroups | None:
    """Plans of a run, side by side or, of more than :data:`~fednnunet.listing.MOST_NODES` nodes, in groups.

    Args:
        run: of any strategy.
        order: nodes in the order of the columns.

    Returns:
        None where no node has made plans.

    Raises:
        DataError: plans have no such configuration.
    """
    if not run.plans:
        return None
    configuration = str(run.info.get("configuration", "2d"))
    nodes = sorted(run.plans, key=lambda node: order.index(node) if node in order else len(order))
    briefs = {node: brief_plans(run.plans[node], configuration) for node in nodes}
    shared = run.info.get("shared_fraction", {})
    if len(nodes) > MOST_NODES:
        return _grouped(run.strategy, briefs, shared)
    rows = [(title, [_show(briefs[node][key]) for node in briefs]) for key, title in TITLES.items()]
    if any(shared.values()):
        rows.append((AVERAGED, [f"{shared[node]:.0%}" if node in shared else "–" for node in briefs]))
    return StrategyPlans(run.strategy, ["all nodes pooled" if n == POOLED_NODE else n for n in briefs], rows)


def _grouped(strategy: str, briefs: Mapping[str, Mapping[str, Any]], shared: Mapping[str, float]) -> PlanGroups:
    groups: dict[str, list[str]] = {}
    for node, brief in briefs.items():
        groups.setdefault(repr([brief[key] for key in _NETWORK]), []).append(node)
    titles = [*TITLES.values(), *([AVERAGED] if any(shared.values()) else [])]
    rows = []
    for nodes in sorted(groups.values(), key=len, reverse=True):
        values = [_show_range([briefs[node][key] for node in nodes]) for key in TITLES]
        if any(shared.values()):
            shares = [shared[node] for node in nodes if node in shared] or [0.0]
            values.append(" to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares)))))
        rows.append((nodes, values))
    return PlanGroups(strategy, titles, rows)


def _show_range(values: Sequence[Any]) -> str:
    """One value, or the least and the largest of values that differ."""
    ordered = sorted(values)
    return " to ".join(dict.fromkeys((_show(ordered[0]), _show(ordered[-1]))))


def _show(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    if len(value) > 3:
        return f"{value[0]} … {value[-1]}"
    return " × ".join(f"{number:g}" for number in value)

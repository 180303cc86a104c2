"""Who annotates or has what, where nodes have unlike labels or channels (``task.labels`` and ``channels=union``)."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fednnunet.config.dataset import POOLED_NODE
from fednnunet.config.task import BACKGROUND, IGNORE
from fednnunet.errors import DataError
from fednnunet.listing import MOST_NODES, join_first
from fednnunet.run_files import LABEL_COLUMNS

NAMED = 5
"""Most nodes or labels named in a cell."""


@dataclass(frozen=True)
class Annotation:
    """Labels of the nodes of a run; or their channels, in the same way.

    Attributes:
        labels: label to the nodes that annotate it, in the order of the values.
        nodes: all nodes, in the order of the file.
    """

    labels: dict[str, list[str]]
    nodes: list[str]


@dataclass(frozen=True)
class AnnotationTable:
    """What the report shows of it.

    Attributes:
        titles: of the columns.
        rows: a label and its cells: a mark per node, or of many nodes counts and the first names.
        per_node: of many nodes, each and its labels; else nothing.
        alone: labels that one training node alone annotates, or channels that it alone has, with its name.
    """

    titles: list[str]
    rows: list[list[str]]
    per_node: list[tuple[str, str]]
    alone: str


def read_annotation(path: Path, columns: Sequence[str] = LABEL_COLUMNS) -> Annotation | None:
    """Read ``labels.csv`` or ``channels.csv``; None where there is none.

    Args:
        path: the file.
        columns: its columns before the nodes.

    Raises:
        DataError: it is no such table; names the file and what is wrong.
    """
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file, strict=True))
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} is not a readable table: {error}") from None
    what, value = columns
    nodes = header[len(columns) :]
    if header[: len(columns)] != list(columns) or len(set(nodes)) < len(nodes):
        raise DataError(f"{path} must have the columns {', '.join(columns)}, then one per node")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header) or not set(row[len(columns) :]) <= {"yes", ""}:
            raise DataError(f"{path}: line {line} must be a {what}, its {value}, and yes or nothing per node")
    return Annotation(
        {row[0]: [n for n, cell in zip(nodes, row[len(columns) :], strict=True) if cell] for row in rows}, nodes
    )


def annotation_tables(
    annotations: Sequence[tuple[str, Annotation | None]], external: Collection[str], what: str = LABEL_COLUMNS[0]
) -> list[tuple[str, AnnotationTable]]:
    """Tables of a report: one, with the strategies that it is about, for each way in which runs differ.

    Args:
        annotations: strategy and labels, of each run. Pooled images are left out: one node holds what all annotate.
        external: external nodes.
        what: ``label`` or ``channel``.
    """
    found: list[tuple[Annotation, list[str]]] = []
    for strategy, annotation in annotations:
        if annotation is None or POOLED_NODE in annotation.nodes:
            continue
        about = next((about for other, about in found if other == annotation), None)
        if about is None:
            found.append((annotation, [strategy]))
        elif strategy not in about:
            about.append(strategy)
    return [(", ".join(about), _table(annotation, external, what)) for annotation, about in found]


def _table(annotation: Annotation, external: Collection[str], what: str) -> AnnotationTable:
    is_label = what == LABEL_COLUMNS[0]
    labels = {name: nodes for name, nodes in annotation.labels.items() if not (is_label and name == BACKGROUND)}
    training = [node for node in annotation.nodes if node not in external]
    outside = [node for node in annotation.nodes if node in external]
    by_training = {name: [node for node in nodes if node not in external] for name, nodes in labels.items()}
    single = [
        f"{name} ({nodes[0]})"
        for name, nodes in by_training.items()
        if len(nodes) == 1 and not (is_label and name == IGNORE)
    ]
    alone = join_first(single, MOST_NODES) if len(training) > 1 and single else ""
    if len(annotation.nodes) <= MOST_NODES:
        shown = [*training, *outside]
        titles = [what, *(f"{node} (external)" if node in external else node for node in shown)]
        rows = [[name, *("✓" if node in nodes else "–" for node in shown)] for name, nodes in labels.items()]
        return AnnotationTable(titles, rows, [], alone)
    titles = [
        what,
        f"of {len(training)} training nodes",
        *([f"of {len(outside)} external"] if outside else []),
        "such as",
    ]
    rows = [
        [
            name,
            str(len(by_training[name])),
            *([str(len(nodes) - len(by_training[name]))] if outside else []),
            join_first(by_training[name], NAMED),
        ]
        for name, nodes in labels.items()
    ]
    per_node = [
        (
            f"{node} (external)" if node in external else node,
            ", ".join(n for n, nodes in labels.items() if node in nodes),
        )
        for node in (*training, *outside)
    ]
    return AnnotationTable(titles, rows, per_node, alone)

"""``fednnunet find-best``: the best configuration and post-processing over all nodes; it parses, calls, prints."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fednnunet.errors import ConfigError, one_line

if TYPE_CHECKING:
    from rich.progress import TaskID

    from fednnunet.best_configuration.node_models import TrainedFolds
    from fednnunet.best_configuration.sums import NodeSums

WIDE = 200
"""Width of the tables in characters when they go to a file."""


def find_best(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, one of each configuration; at a hospital its own folders of these runs. With "
            "--from-sums: the files of all nodes.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the decision.")] = Path("outputs/best_configuration"),
    node_sums: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Decide nothing: write what one node tells of its held-out cases, sums only."
        ),
    ] = None,
    from_sums: Annotated[
        bool, typer.Option("--from-sums", help="Decide from files that nodes wrote with --node-sums.")
    ] = False,
    use: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Decide nothing: put the post-processing of the decision in this folder beside the best models of the "
            "runs, where `fednnunet export` and `fednnunet predict` find it.",
        ),
    ] = None,
    node: Annotated[str | None, typer.Option(help="With --node-sums: name of the node.")] = None,
    personal: Annotated[
        bool,
        typer.Option("--personal", help="The nodes' own models, fine-tuned or Ditto's, instead of the federation's."),
    ] = False,
    fold: Annotated[
        list[int] | None,
        typer.Option(
            min=0, max=99, help="Fold whose held-out cases count; can be repeated.", show_default="all trained"
        ),
    ] = None,
    no_ensembles: Annotated[
        bool, typer.Option("--no-ensembles", help="Compare no ensembles of two, which need softmax outputs.")
    ] = False,
    no_postprocessing: Annotated[
        bool, typer.Option("--no-postprocessing", help="Do not try to keep the largest component only.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that read images; 0: one per core.", min=0)] = 0,
) -> None:
    """Find the best configuration, or ensemble of two, and its post-processing, over the held-out cases of all nodes.

    As nnUNetv2_find_best_configuration decides with all cases in one place. Sums and numbers of cases leave a node.
    """
    from fednnunet.best_configuration.sums import check_copies, check_together, read_sums
    from fednnunet.cli.writable import check_file, check_folder

    if node is not None and node_sums is None:
        raise ConfigError("--node goes with --node-sums; without, all nodes of the runs count")
    if use is not None:
        if from_sums or node_sums is not None or fold or no_ensembles or no_postprocessing or personal:
            raise ConfigError("--use takes a decision as it is; give it with runs alone")
        _use(use, sources)
        return
    if node_sums is not None:
        check_file(node_sums)
    else:
        check_folder(out)
    if from_sums:
        if node_sums is not None or fold or no_ensembles or no_postprocessing or personal:
            raise ConfigError(
                "--from-sums takes files as nodes wrote them; --node-sums, --fold, --personal, --no-ensembles and "
                "--no-postprocessing are for the nodes"
            )
        told = [read_sums(path) for path in sources]
        named = [(str(path), sums) for path, sums in zip(sources, told, strict=True)]
        check_together(named)
        check_copies(named)
        _finish(out, told, None)
        return

    from fednnunet.best_configuration.node_models import nodes_of

    by_node = nodes_of(sources, personal)
    if node_sums is not None:
        by_node = _one_node(by_node, node)
    told = _sum_up(by_node, fold, not no_ensembles, not no_postprocessing, workers)
    if node_sums is not None:
        _write_sums(node_sums, told[0])
        return
    check_together([(f"node {sums.node}", sums) for sums in told])
    datasets = {found.dataset for models in by_node.values() for found in models}
    _finish(out, told, datasets.pop() if len(datasets) == 1 else None)


def _one_node(by_node: dict[str, list[TrainedFolds]], node: str | None) -> dict[str, list[TrainedFolds]]:
    """The models of the node whose sums are written, under its name.

    Args:
        by_node: node to its models.
        node: name that was given.

    Raises:
        ConfigError: it is not said which node, or there is none of that name.
    """
    from fednnunet.best_configuration.node_models import UNNAMED
    from fednnunet.exchange.messages import NODE_NAME

    if UNNAMED in by_node:
        if node is None:
            raise ConfigError("say with --node whose sums these are: the node's name in the federation")
        if re.fullmatch(NODE_NAME, node) is None:
            raise ConfigError(f"--node {one_line(node)}: a node's name has at most 64 letters, digits and _ . ' -")
        return dict.fromkeys([node], *by_node.values())
    if node is None and len(by_node) > 1:
        raise ConfigError(f"say with --node whose sums to write: {', '.join(by_node)}")
    if node is not None and node not in by_node:
        raise ConfigError(f"the runs have no node {node}; choose one of: {', '.join(by_node)}")
    return by_node if node is None else {node: by_node[node]}


def _sum_up(
    by_node: dict[str, list[TrainedFolds]],
    folds: list[int] | None,
    ensembles: bool,
    postprocessing: bool,
    workers: int,
) -> list[NodeSums]:
    """Sums of each node, with a bar of progress."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from fednnunet.best_configuration.node_sums import sum_up
    from fednnunet.processes import cores

    told = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for node, models in by_node.items():
            task = progress.add_task(node, total=None)

            def advance(done: int, total: int, task: TaskID = task) -> None:
                progress.update(task, completed=done, total=total)

            told.append(sum_up(models, node, folds, ensembles, postprocessing, workers or cores(), advance))
    return told


def _write_sums(path: Path, sums: NodeSums) -> None:
    from fednnunet.best_configuration.sums import few_cases, write_sums
    from fednnunet.exchange.messages import MIN_CASES

    with _naming_what_cannot_be_written(path):
        write_sums(path, sums)
    print(f"sums over {sums.num_cases} held-out cases: {path}")
    if few := few_cases(sums, MIN_CASES):
        print(
            f"note: fewer than {MIN_CASES} cases have a Dice of {', '.join(few)}, so that their sums say much of each; "
            "read the file before it leaves",
            file=sys.stderr,
        )


def _use(folder: Path, runs: list[Path]) -> None:
    """Put a decision's post-processing beside models, and say where."""
    from fednnunet.best_configuration.node_models import nodes_of
    from fednnunet.best_configuration.take_decision import read_decision, take

    decision = read_decision(folder)
    with _naming_what_cannot_be_written(folder):
        taken = take(decision, nodes_of(runs, decision.personal))
    names = " and ".join(model.configuration for model in decision.best.models)
    if not taken:
        print(
            f"best is the ensemble of {names}, whose post-processing follows their mean: nothing is put beside them; "
            f"fednnunet export RUN... --best {shlex.quote(str(folder))} puts all of it into one file"
        )
    for model in taken:
        print(f"post-processing of {names}: {model / 'postprocessing.json'}")


def _finish(out: Path, told: list[NodeSums], dataset: str | None) -> None:
    """Decide, write, print."""
    from rich.console import Console

    from fednnunet.best_configuration.console import show_decision
    from fednnunet.best_configuration.decision import decide
    from fednnunet.best_configuration.decision_files import BEST_FILE, write_decision

    decision = decide(told)
    with _naming_what_cannot_be_written(out):
        write_decision(out, decision, dataset)
    console = Console(highlight=False)
    # In a file, tables are as wide as they need to be.
    show_decision(decision, console if console.is_terminal else Console(highlight=False, width=WIDE))
    print(f"\ndecision: {out / BEST_FILE}")
    print(f"to hand it over: fednnunet export RUN... --best {shlex.quote(str(out))} -o FILE.zip")
    if len(decision.best.models) == 1 and decision.postprocessing.largest_component:
        print(f"to segment with its post-processing: fednnunet find-best RUN... --use {shlex.quote(str(out))}")


@contextmanager
def _naming_what_cannot_be_written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None

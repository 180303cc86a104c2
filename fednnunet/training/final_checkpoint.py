"""Where the final checkpoint of a node is; without torch, so that it can be looked for before a node starts."""

from __future__ import annotations

from pathlib import Path

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import Fold

FINAL = "checkpoint_final.pth"
"""nnU-Net's name for it."""


def find_checkpoint(source: Path, node: str, fold: Fold) -> Path:
    """The checkpoint that ``init.weights=<source>`` means for a node.

    Args:
        source: a checkpoint, a folder that holds ``checkpoint_final.pth``, or the folder of a finished run, from which
            the checkpoint of the same node is taken, and of the same fold where it trained several.
        node: name of the node.
        fold: fold that will be trained.

    Raises:
        ConfigError: there is none; the message says where it was searched for.
    """
    source = source.expanduser()
    if source.is_file():
        return source
    if (source / FINAL).is_file():
        return source / FINAL
    nodes = source / "nodes"
    if not nodes.is_dir():
        raise ConfigError(
            f"init.weights={source} is neither a checkpoint, nor a folder with {FINAL}, nor a run's folder"
        )
    found = {path.parent.name: path for path in nodes.glob(f"{node}/nnUNet_results/*/*/fold_*/{FINAL}")}
    if not found:
        trained = nodes.glob(f"*/nnUNet_results/*/*/fold_*/{FINAL}")
        others = sorted({path.relative_to(nodes).parts[0] for path in trained})
        raise ConfigError(
            f"init.weights: the run {source} holds no {FINAL} of node {node}, "
            f"only of {', '.join(others) or 'none'}; name one by node: init.weights={{{node}: …}}"
        )
    return found.get(f"fold_{fold}", found[min(found)])

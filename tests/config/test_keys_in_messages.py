"""Texts of the package name configuration keys that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import fednnunet
from fednnunet.config.node_file import NodeFile
from fednnunet.config.run import RunConfig

PACKAGE = Path(fednnunet.__file__).parent
DOTTED = re.compile(r"(?<![\w./{-])([a-z_]+)\.([a-z_]+)(?!\w*\()")
FILE_ENDINGS = {"json", "jsonl", "md", "py"}
OTHER_ROOTS = {"config", "fednnunet", "hydra", "self", "session", "settings", "torch"}
"""First parts of dotted names that are modules or objects in the code, not groups of the configuration."""


def keys_of_groups() -> dict[str, set[str]]:
    """Keys of each group in the configuration of a run or of a node."""
    groups: dict[str, set[str]] = {}
    for config in (RunConfig, NodeFile):
        for name, field in config.model_fields.items():
            group = field.annotation
            if isinstance(group, type) and issubclass(group, BaseModel):
                keys = {key.alias or own_name for own_name, key in group.model_fields.items()}
                groups.setdefault(name, set()).update(keys)
    return groups


GROUPS = keys_of_groups()
KEYS = set().union(*GROUPS.values())


def unknown_keys(text: str) -> Iterator[str]:
    """Dotted names in ``text`` that have a group or a key of the configuration in them, but are none of its keys."""
    for group, key in DOTTED.findall(text):
        in_unknown_group = key in KEYS and group not in GROUPS and group not in OTHER_ROOTS
        is_unknown = group in GROUPS and key not in GROUPS[group] and key not in FILE_ENDINGS
        if in_unknown_group or is_unknown:
            yield f"{group}.{key}"


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("lower compute.augmentation_workers, or gpu_memory.gb=8", []),
        ("lower node.augmentation_workers", ["node.augmentation_workers"]),
        ("set +strategy.epochs=1, see dataset.json", ["strategy.epochs"]),
    ],
)
def test_unknown_keys_are_found(text: str, unknown: list[str]) -> None:
    assert list(unknown_keys(text)) == unknown


def test_texts_name_keys_that_exist() -> None:
    unknown = [
        f"{path.relative_to(PACKAGE)}, line {node.lineno}: {key}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for key in unknown_keys(node.value)
    ]
    assert unknown == []

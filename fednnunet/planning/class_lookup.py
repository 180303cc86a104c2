"""nnU-Net's classes, and users' own, by the name that a configuration gives."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from pathlib import Path
from typing import TypeVar

from fednnunet.errors import ConfigError

CLASS_DEFINITION = re.compile(r"^class (\w+)", re.MULTILINE)

C = TypeVar("C")


def find_class(name: str, key: str, base: type[C], folder: str) -> type[C]:
    """A class that nnU-Net defines below ``folder``, or any class by its import path.

    nnU-Net's own search imports module after module until the name turns up, and fails where one of them needs a
    package that is not installed. Here, only the module that defines the class is imported.

    Args:
        name: name of the class, such as ``ExperimentPlanner``, or ``my_package.my_module.MyPlanner``.
        key: configuration key, for the error message.
        base: class that it must be derived from.
        folder: folder of nnU-Net's package, such as ``experiment_planning``.

    Raises:
        ConfigError: there is none (with the nearest names), it needs a package that is not installed, or it is not
            derived from ``base``.
    """
    if "." in name:
        module, _, attribute = name.rpartition(".")
    else:
        module, attribute = check_nnunet_class(name, key, folder, base.__name__), name
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(f"{key}={name} cannot be imported: {error}; set PYTHONPATH to where it lies") from error
    if found is None:
        there = [other for other, value in vars(importlib.import_module(module)).items() if isinstance(value, type)]
        near = ", ".join(difflib.get_close_matches(attribute, there, n=3)) or "none"
        raise ConfigError(f"{key}={name}: {module} has no {attribute}; near it: {near}")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{key}={name} is not derived from {base.__name__}")
    return found


def check_nnunet_class(name: str, key: str, folder: str, default: str) -> str:
    """The module of nnU-Net that defines a class; nothing is imported.

    Args:
        name: name of the class.
        key: configuration key, for the error message.
        folder: folder of nnU-Net's package.
        default: nnU-Net's own, which is named where no name is near.

    Raises:
        ConfigError: there is none; lists the nearest names.
    """
    known = nnunet_classes(folder)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3)) or default
        raise ConfigError(
            f"{key}={name} is not a class that nnU-Net finds; near it: {near} (one of your own by its import path, "
            "such as my_package.my_module.MyClass)"
        )
    return known[name]


def nnunet_classes(folder: str) -> dict[str, str]:
    """Name to module of every class that nnU-Net defines below ``folder`` of its package."""
    package = importlib.util.find_spec("nnunetv2")
    assert package is not None, "it is one of this package's requirements"
    assert package.submodule_search_locations
    root = Path(package.submodule_search_locations[0])
    modules: dict[str, str] = {}
    for path in sorted((root / folder).rglob("*.py")):
        module = ".".join(("nnunetv2", *path.relative_to(root).with_suffix("").parts))
        for name in CLASS_DEFINITION.findall(path.read_text()):
            modules.setdefault(name, module)
    return modules

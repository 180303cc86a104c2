"""Only what pyproject.toml cannot say: the top-level folder ``conf`` ships as ``fednnunet/conf``."""

from __future__ import annotations

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fednnunet", "fednnunet.*"]), "fednnunet.conf"],
    package_dir={"fednnunet.conf": "conf"},
)

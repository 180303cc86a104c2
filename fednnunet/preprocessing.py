"""Preprocess cases by nnU-Net's plans, into a cache that runs share.

A cache entry is named by what it was made from, so that the five folds, strategies with the same plans and a repeated
run preprocess once. It has nnU-Net's own layout.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fednnunet.datasets.raw import RawDataset

log = logging.getLogger(__name__)

REFERENCES = "gt_segmentations"
"""nnU-Net's folder of the original label maps, beside the preprocessed cases."""
FILES_PER_CASE = 2
"""With the case's own name: its image, and its properties."""


def cache_key(raw_digest: str, plans: dict[str, Any], configuration: str, folds: list[dict[str, list[str]]]) -> str:
    """Name of the cache entry for these raw files under these plans, split into these folds."""
    made_from = json.dumps([raw_digest, plans, configuration, folds, version("nnunetv2")], sort_keys=True)
    return hashlib.sha256(made_from.encode()).hexdigest()[:16]


def preprocess(
    dataset: RawDataset,
    planned: Path,
    plans: dict[str, Any],
    configuration: str,
    cache: Path,
    workers: int = 1,
) -> Path:
    """Run nnU-Net's preprocessor on every case.

    The entry appears under its name when it is complete; an interrupted or parallel run leaves none half-made.

    Args:
        dataset: the node's cases.
        planned: ``nnUNet_preprocessed/<dataset>`` with ``dataset.json``, fingerprint and plans.
        plans: the plans, already in ``planned``.
        configuration: nnU-Net's configuration, such as ``2d``.
        cache: folder of the entry to make or reuse.
        workers: number of processes; 1 works in this one (each further one costs seconds of imports).

    Returns:
        The folder to use as ``nnUNet_preprocessed``.
    """
    if cache.is_dir():
        log.info("preprocessed data are there already: %s", cache.name)
        return cache
    partial = cache.with_name(f"{cache.name}.partial-{uuid.uuid4().hex[:8]}")
    target = partial / dataset.name
    shutil.copytree(planned, target, ignore=shutil.ignore_patterns(REFERENCES))
    try:
        _preprocess_cases(dataset, target, plans, configuration, workers)
        labels = target / REFERENCES
        labels.mkdir()
        for case in dataset.cases:
            shutil.copyfile(case.label, labels / f"{case.name}{dataset.file_ending}")
        try:
            os.rename(partial, cache)
        except OSError:
            if not cache.is_dir():  # else another run was first with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return cache


def missing_cases(folder: Path, identifiers: Iterable[str]) -> list[str]:
    """Cases whose preprocessed images or properties are not in nnU-Net's folder of a configuration."""
    try:
        files = Counter(os.path.splitext(name)[0] for name in os.listdir(folder))
    except FileNotFoundError:
        files = Counter()
    return [identifier for identifier in identifiers if files[identifier] < FILES_PER_CASE]


def _preprocess_cases(
    dataset: RawDataset, target: Path, plans: dict[str, Any], configuration: str, workers: int
) -> None:
    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    preprocessor = settings.preprocessor_class(verbose=False)
    preprocessor.show_progress_bar = False
    if workers > 1:
        before = os.environ["nnUNet_preprocessed"]
        os.environ["nnUNet_preprocessed"] = str(target.parent)
        try:
            preprocessor.run(dataset.name, configuration, manager.plans_name, workers)
        finally:
            os.environ["nnUNet_preprocessed"] = before
        return
    folder = target / settings.data_identifier
    folder.mkdir()
    for case in dataset.cases:
        images = [str(image) for image in case.images]
        preprocessor.run_case_save(
            str(folder / case.name), images, str(case.label), manager, settings, dataset.dataset_json
        )

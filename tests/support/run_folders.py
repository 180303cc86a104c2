"""A run folder as ``train.py`` leaves it, with figures that look like training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fednnunet.reporting.run_folder import read_run
from fednnunet.server.run_observer import RunObserver

NODES = {"ISPY1": 12, "ISPY2": 36, "DUKE": 14, "NACT": 5}
EXTERNAL = "KAUNO"
LEVEL = {"local": 0.42, "asym": 0.58, "ffe": 0.55, "centralized": 0.6}
ROUNDS = 12

MakeRun = Callable[..., Path]

MANY = 100
"""Nodes of :func:`many_nodes`, ten of them external."""


def many_nodes() -> tuple[dict[str, int], list[str]]:
    """Training nodes with 5 to 40 cases, and external nodes."""
    sizes = np.random.default_rng(0).integers(5, 41, MANY - 10)
    return {f"H{number:03}": int(size) for number, size in enumerate(sizes)}, [f"X{number:02}" for number in range(10)]


def write_overlay(path: Path, rng: np.random.Generator, quality: float) -> None:
    """A bright blob, its outline, and a prediction that misses some of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = 72, 64
    y, x = np.mgrid[:height, :width]
    reference = ((y - 40) ** 2 / 81 + (x - 28) ** 2 / 49) < 1
    prediction = ((y - 40) ** 2 / 81 + (x - 28 - 8 * (1 - quality)) ** 2 / 49) < quality + 0.3
    tissue = 80 * np.exp(-(((y - 36) / 30) ** 2 + ((x - 32) / 26) ** 2))
    image = tissue + 45 * reference + rng.normal(0, 9, (height, width))
    np.savez_compressed(
        path,
        image=image.astype(np.float32),
        reference=reference.astype(np.uint8),
        prediction=prediction.astype(np.uint8),
        spacing=np.array([1.2, 1.0]),
        dsc=2 * (reference & prediction).sum() / (reference.sum() + prediction.sum()),
    )


def nnunet_plans(batch: int, patch: int, spacing: float, stages: int) -> dict[str, Any]:
    """The part of nnU-Net's plans that a report shows."""
    features = [min(8 * 2**stage, 64) for stage in range(stages)]
    architecture = {"arch_kwargs": {"n_stages": stages, "features_per_stage": features}}
    chosen = {
        "batch_size": batch,
        "patch_size": [patch, patch],
        "spacing": [spacing, spacing],
        "architecture": architecture,
    }
    return {"dataset_name": "Dataset101_X", "plans_name": "nnUNetPlans", "configurations": {"2d": chosen}}


@pytest.fixture
def make_run(tmp_path: Path, write_run: MakeRun) -> MakeRun:
    """Write a finished run below ``tmp_path/sweep`` or into ``folder``; returns its folder."""

    def make(strategy: str = "asym", *, seed: int = 0, folder: Path | None = None, **options: Any) -> Path:
        chosen = folder or tmp_path / "sweep" / f"strategy={strategy},seed={seed}"
        return write_run(chosen, strategy, seed=seed, **options)

    return make


@pytest.fixture(scope="session")
def write_run() -> MakeRun:
    """Write a finished run into a folder; returns the folder."""

    def write(
        folder: Path,
        strategy: str,
        *,
        seed: int = 0,
        fold: int | list[int] = 0,
        dataset: str = "phantom",
        labels: tuple[str, ...] = ("tumour", "oedema"),
        overrides: tuple[str, ...] = (),
        overlays: bool = False,
        nodes: Mapping[str, int] = NODES,
        external: Sequence[str] = (EXTERNAL,),
        held_out: int | None = 6,
        crossed: bool = False,
    ) -> Path:
        """A finished run.

        Args:
            folder: of the run.
            strategy: its name.
            seed: of the run.
            fold: as in the configuration; all of an external node's cases are in the first.
            dataset: name of the dataset.
            labels: foreground labels.
            overrides: what the command line changed beside strategy and seed.
            overlays: write pictures of three cases of each node.
            nodes: training nodes and their cases.
            external: external nodes.
            held_out: cases of a training node in a fold; None for a fifth of its cases.
            crossed: every node's model is scored at every training node, too.
        """
        folds = fold if isinstance(fold, list) else [fold]
        several = len(folds) > 1
        rng = np.random.default_rng([seed, folds[0], *strategy.encode()])
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").write_text(f"seed: {seed}\nstrategy:\n  name: {strategy} # <own>\n")
        lines = [f"strategy={strategy}", f"seed={seed}", *overrides]
        (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {line}\n" for line in lines))
        level = LEVEL.get(strategy, 0.5)
        pooled = strategy == "centralized"
        fine = [node for node, cases in nodes.items() if node == "DUKE" or (node not in NODES and cases > 30)]
        workers = ["centralized"] if pooled else list(nodes)
        plans = {
            node: nnunet_plans(8, 112, 0.75, 5) if node in fine else nnunet_plans(8, 56, 1.5, 4) for node in workers
        }
        (folder / "plans.json").write_text(json.dumps(plans))
        shares = {node: 0.23 if node == "DUKE" else 0.61 for node in nodes}
        info = {
            "strategy": strategy,
            "dataset": dataset,
            "seed": seed,
            "fold": fold,
            "configuration": "2d",
            "nodes": list(nodes),
            "external": list(external),
            "distance_unit": "mm",
            "rounds": ROUNDS,
            "iterations": 10,
            "started": "2026-01-02T03:04:05+00:00",
            "seconds": 81.2,
            "peak_memory_gib": 3.1,
            "versions": {"fednnunet": "0.1.0", "nnunetv2": "2.8.1"},
            "command": "python train.py -m strategy=local,asym <&>",
            "shared_fraction": shares if strategy == "asym" else {},
            "num_training": {"centralized": sum(nodes.values())} if pooled else dict(nodes),
        }
        (folder / "run.json").write_text(json.dumps(info))
        centres = [{"name": name, "external": name in external} for name in [*nodes, *external]]
        config = {"configuration": info["configuration"], "evaluation.distance_unit": info["distance_unit"]}
        config |= {"seed": seed, "fold": fold, "dataset.name": dataset, "dataset.centres": centres}
        (folder / "config.json").write_text(json.dumps(config | {"strategy.name": strategy}))
        cases = [
            {
                "strategy": strategy,
                "node": node,
                "model": model,
                "fold": "ensemble" if node in external and several else fold,
                "case": case + (0 if node in external else 6 * fold),
                "label": label,
                "dsc": float(np.clip(rng.normal(level - 0.12 * (node == "NACT"), 0.12), 0, 1)),
                "hd95": None if case == 0 and label == "oedema" else float(rng.gamma(3, 4 * (1.2 - level))),
                "surface_dsc": float(rng.random()),
                "volume_error": float(rng.normal()),
                "empty": "prediction" if case == 1 and label == "tumour" else None,
            }
            for fold in folds
            for node in [*nodes, *(external if fold == folds[0] else [])]
            for model in ([*workers, "ensemble"] if node in external else workers if pooled or crossed else [node])
            for case in range(held_out or max(1, nodes.get(node, 30) // 5))
            for label in labels
        ]
        pd.DataFrame(cases).to_csv(folder / "cases.csv", index=False)
        exchanges = strategy not in ("local", "centralized")
        rounds = [
            {
                "strategy": strategy,
                "round": number,
                "node": node,
                "train_loss": 0.1 - level * (1 - np.exp(-number / 4)) + rng.normal(0, 0.015),
                "val_loss": 0.12 - level * (1 - np.exp(-number / 4)) + rng.normal(0, 0.03),
                "pseudo_dice": None if number == 1 else level * (1 - np.exp(-number / 4)) + rng.normal(0, 0.02),
                "seconds_train": 2 + rng.random(),
                "seconds_exchange": 0.1 * rng.random() if exchanges else 0.0,
                "bytes_up": 3_100_000 if exchanges else 0,
                "bytes_down": 3_100_000 if exchanges else 0,
                "gpu_memory_gib": None,
                "update_norm": 0.02 if exchanges else None,
                **({"fold": fold} if several else {}),
            }
            for fold in folds
            for number in range(1, ROUNDS + 1)
            for node in workers
        ]
        pd.DataFrame(rounds).to_csv(folder / "rounds.csv", index=False)
        if overlays:
            for centre in [*nodes, *external]:
                node = "centralized" if pooled and centre not in external else centre
                for case in range(3):
                    quality = level + 0.15 * (1 - case)
                    write_overlay(folder / "nodes" / node / "overlays" / f"{centre}__{case}.npz", rng, quality)
        return folder

    return write


def track(tracker: RunObserver, folder: Path, *, ok: bool = True) -> None:
    run = read_run(folder)
    tracker.on_run_start({key: run.info[key] for key in ("strategy", "dataset", "seed", "fold", "configuration")})
    tracker.on_plans(run.plans)
    for server_round, rows in run.rounds.groupby("round"):
        tracker.on_round_end(int(server_round), rows.to_dict("records"))
    tracker.on_result(folder)
    tracker.on_run_end(None if ok else KeyboardInterrupt())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of reports are composed and not rendered, which takes most of a report's time."""
    monkeypatch.setattr("fednnunet.reporting.figures.style._render", lambda figure, kind: b"")

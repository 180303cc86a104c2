"""What is observed of training steps, from one gradient to a round, and what the inversion makes of each."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import pandas as pd
import torch
from images import DATASETS, NODES, REFERENCE
from inversion import (
    Batch,
    Gradient,
    Prior,
    gradient,
    invert,
    mean_gradient,
    noisy,
    rank_of_gradient,
    rank_of_truth,
    round_update,
)
from membership import CONFIGURATION, Model
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from trainings import FEDERATED, images_folder, run_folder

from fednnunet.config.groups import TrainerConfig
from fednnunet.datasets.raw import read_dataset
from fednnunet.preprocessing import preprocess
from fednnunet.training.trainer import build_nnunet_trainer

BATCH = 4
"""Patches of a training step; nnU-Net's plans have more, which is harder to invert."""
ROUNDS = (8, 50)
"""Training steps of the rounds that are attacked."""
CLIP, NOISE = 0.5, 0.1
"""Norm to which the noisy gradient is clipped, and noise on every value in units of it."""
OTHERS, KNOWN = 300, 100
"""Patches of held-out cases that the true one is compared with: by what was found, and by their gradients."""
SETTINGS = TrainerConfig.model_validate(
    {
        "class": "nnUNetTrainerNoDA",
        **{"epochs": 5, "iterations": 50, "val_iterations": 1, "initial_lr": 0.01},
        **{"weight_decay": 3e-5, "oversample_foreground": 0.33},
    }
)


class Loader:
    """nnU-Net's training loader of a node, and its trainer, with the federation's plans.

    Args:
        out: folder of the experiment.
        seed: seed of images and weights; all nodes begin with the same.
        node: name of the node.
    """

    def __init__(self, out: Path, seed: int, node: str) -> None:
        run, name = run_folder(out, FEDERATED, seed), DATASETS[node]
        self.model = Model(run, node)
        plans = copy.deepcopy(self.model.plans)
        plans["configurations"][CONFIGURATION]["batch_size"] = BATCH
        dataset = read_dataset(images_folder(out, seed) / name, node)
        folder = out / "inversion" / f"seed{seed}" / node
        planned = run / "nodes" / node / "nnUNet_preprocessed" / name
        preprocessed = preprocess(dataset, planned, plans, CONFIGURATION, folder / "nnUNet_preprocessed")
        os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_raw": str(images_folder(out, seed))}
        os.environ |= {"nnUNet_preprocessed": str(preprocessed), "nnUNet_results": str(folder / "nnUNet_results")}
        L.seed_everything(seed, verbose=False)
        self.trainer: nnUNetTrainer = build_nnunet_trainer(
            plans, CONFIGURATION, 0, dataset.dataset_json, SETTINGS, torch.device("cpu")
        )
        self._training, self._held_out = self.trainer.get_dataloaders()

    def draw(self, held_out: bool = False) -> Batch:
        """The next batch, of training cases or of held-out ones."""
        batch = next(self._held_out if held_out else self._training)
        return Batch(batch["data"], batch["target"])

    def gradient(self, batch: Batch) -> Gradient:
        """Gradient of the trainer's loss."""
        return gradient(self.trainer.network, self.trainer.loss, batch.images, batch.targets)


@dataclass(frozen=True)
class Observation:
    """What the attacker has, and what he looks for.

    Attributes:
        what: in words, the row of the table.
        gradient: a gradient, or an update that is taken for one.
        batch: the patches that are looked for.
    """

    what: str
    gradient: Gradient
    batch: Batch


def observe(loaders: dict[str, Loader]) -> Iterator[Observation]:
    """What is attacked of a seed; the network of the first node is the one to invert."""
    node = loaders[NODES[0]]
    network, batch = node.trainer.network, node.draw()
    rng = torch.Generator().manual_seed(0)
    patches = [batch.patch(number) for number in range(BATCH)]
    for patch in patches:
        yield Observation("gradient of one patch", node.gradient(patch), patch)
        noised = noisy(node.gradient(patch), CLIP, NOISE, rng)
        yield Observation(f"the same, clipped, noise {NOISE:g}", noised, patch)
    yield Observation(f"a step of {BATCH} patches", round_update(node.trainer, [batch]), batch)
    of_nodes = [loader.draw().patch(0) for loader in loaders.values()]
    summed = mean_gradient([node.gradient(patch) for patch in of_nodes])
    yield Observation(f"average over {len(of_nodes)} nodes of a patch each", summed, join(of_nodes))
    for steps in ROUNDS:
        later = [node.draw() for _ in range(steps - 1)]
        yield Observation(f"a round of {steps} steps", round_update(node.trainer, [batch, *later]), batch)
    first = copy.deepcopy(network.state_dict())
    network.load_state_dict(node.model.final().state_dict())
    for patch in patches:
        yield Observation("gradient of one patch, trained network", node.gradient(patch), patch)
    network.load_state_dict(first)


def join(patches: Sequence[Batch]) -> Batch:
    """One batch of several."""
    targets = [torch.cat(scale) for scale in zip(*(patch.targets for patch in patches), strict=True)]
    return Batch(torch.cat([patch.images for patch in patches]), targets)


def attack_patches(out: Path, seed: int, steps: int) -> pd.DataFrame:
    """Invert everything that is observed of a seed: one row per patch."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        loaders = {node: Loader(out, seed, node) for node in NODES}
    draws = OTHERS // BATCH // len(NODES) + 1
    others = join([loader.draw(held_out=True) for _ in range(draws) for loader in loaders.values()]).part(slice(OTHERS))
    node = loaders[NODES[0]]
    network, loss = node.trainer.network, node.trainer.loss
    reference = [image for _, (image, _) in node.model.cases(images_folder(out, seed), REFERENCE)]
    prior = Prior(torch.cat(reference))
    rows = []
    for observation in observe(loaders):
        batch = observation.batch
        found = invert(network, loss, batch.targets, observation.gradient, prior, steps)
        for number in range(len(batch.images)):
            truth = batch.patch(number)
            told = rank_of_truth(found[number].numpy(), truth.images[0].numpy(), others.images.numpy())
            known = rank_of_gradient(network, loss, observation.gradient, truth, others.part(slice(KNOWN)))
            rows.append((seed, observation.what, *told, known))
    return pd.DataFrame(rows, columns=["seed", "observed", "correlation", "others", "rank", "known_rank"])

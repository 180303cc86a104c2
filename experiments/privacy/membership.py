"""Membership inference: was a case among those that a model was trained on?

The attacker has the model and cases with their label maps, and takes those for members on which the loss is low (Yeom
et al. 2018), or lower than that of a reference model that was trained on other cases (calibration: Sablayrolles et al.
2019, Carlini et al. 2022). The loss is nnU-Net's own, of all slices of a case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from images import DATASETS, LARGE, NODES, REFERENCE
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from trainings import ALONE, FEDERATED, TRAININGS, images_folder, run_folder

from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.splits import splits_of
from fednnunet.evaluation.functional import dice_score
from fednnunet.training.checkpoint import NUMBERS
from fednnunet.training.final_checkpoint import find_checkpoint
from fednnunet.training.network_state import load_state
from fednnunet.training.trainer import build_network

CONFIGURATION = "2d"
LOSS = DC_and_CE_loss(  # as nnUNetTrainer builds it, without deep supervision
    {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
)
VIEWS = {
    (ALONE, "final"): "a node alone",
    (FEDERATED, "seen"): "a node in a federation",
    (FEDERATED, "final"): "average of the federation",
}
"""Training and what is looked at of it, to the name of the row."""
Case = tuple[torch.Tensor, torch.Tensor]
"""Image and label map as the network takes them, both (Z, 1, Y, X)."""


class Model:
    """A node's model, with the plans by which its images are preprocessed.

    Args:
        run: folder of the run.
        node: name of the node.
        fold: fold that was trained.
    """

    def __init__(self, run: Path, node: str, fold: int = 0) -> None:
        self.checkpoint = find_checkpoint(run, node, fold)
        folder = self.checkpoint.parents[1]
        self.plans = json.loads((folder / "plans.json").read_text())
        self.dataset_json = json.loads((folder / "dataset.json").read_text())

    def final(self) -> nn.Module:
        """Its network after the last round; in a federation, the average."""
        with torch.serialization.safe_globals(NUMBERS):
            weights = torch.load(self.checkpoint, map_location="cpu", weights_only=True)["network_weights"]
        network = self._network()
        network.load_state_dict(weights)
        return network

    def seen(self, layers: Path) -> nn.Module:
        """Its network with the layers that it has sent last, from the file in which the server kept them."""
        network = self._network()
        with np.load(layers, allow_pickle=False) as arrays:
            load_state(network, dict(arrays))
        return network

    def _network(self) -> nn.Module:
        return build_network(nnUNetTrainer, PlansManager(self.plans), CONFIGURATION, self.dataset_json).eval()

    def cases(self, images: Path, hospital: str) -> Iterator[tuple[bool, Case]]:
        """Whether it is a member, and image and label map, of every case of a hospital."""
        plans = PlansManager(self.plans)
        settings = plans.get_configuration(CONFIGURATION)
        dataset = read_dataset(images / DATASETS[hospital], hospital)
        (split,) = splits_of(dataset, hospital, [0])
        preprocessor = settings.preprocessor_class(verbose=False)
        for case in dataset.cases:
            files = [str(path) for path in case.images]
            arrays = preprocessor.run_case(files, str(case.label), plans, settings, dataset.dataset_json)
            image, label = (
                fit(torch.from_numpy(np.asarray(array[:], dtype=np.float32)[0]), settings.patch_size)[:, None]
                for array in arrays[:2]
            )
            yield case.name in split["train"], (image, label.clamp_min(0))


def fit(slices: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Slices (Z, Y, X) cut or padded with zeros to ``size`` (Y, X), around their centre."""
    missing = [wanted - present for wanted, present in zip(size, slices.shape[1:], strict=True)]
    (above, below), (left, right) = ((number // 2, number - number // 2) for number in missing)
    return nn.functional.pad(slices, (left, right, above, below))


@torch.no_grad()
def attack_case(network: nn.Module, case: Case) -> tuple[float, float]:
    """Loss and DSC of a case."""
    image, label = case
    logits = network(image)
    return float(LOSS(logits, label)), dice_score(logits.argmax(1).numpy() > 0, label[:, 0].numpy() > 0)


def attacked(run: Path, training: str) -> Iterator[tuple[str, str, Model, nn.Module]]:
    """Row, hospital, model and network of everything that is attacked of a training."""
    for hospital in TRAININGS[training].hospitals:
        model = Model(run, hospital)
        if hospital in NODES:
            for (of_training, view), row in VIEWS.items():
                if of_training == training:
                    seen = run / "seen" / f"{hospital}.npz"
                    yield row, hospital, model, model.final() if view == "final" else model.seen(seen)
        elif hospital == LARGE:
            yield f"60 cases, {training}", hospital, model, model.final()


def attack(out: Path, training: str, seed: int) -> pd.DataFrame:
    """Attack the models of a training: one row per model and case."""
    images = images_folder(out, seed)
    reference = Model(run_folder(out, ALONE, seed), REFERENCE).final()
    rows = []
    for row, hospital, model, network in attacked(run_folder(out, training, seed), training):
        for number, (member, case) in enumerate(model.cases(images, hospital)):
            loss, dsc = attack_case(network, case)
            other_loss, _ = attack_case(reference, case)
            rows.append((seed, row, hospital, number, member, loss, other_loss, dsc))
    return pd.DataFrame(rows, columns=["seed", "model", "hospital", "case", "member", "loss", "reference_loss", "dsc"])

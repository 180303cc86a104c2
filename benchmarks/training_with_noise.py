"""What noise that hides cases costs in DSC: training on from pretrained weights, by the steps that nodes train.

    python benchmarks/training_with_noise.py
    python benchmarks/training_with_noise.py --tiny     few steps, to see that it works

For each seed, a small nnU-Net network is trained on 200 generated cases that count as public: ellipses brighter than
their surroundings. Part of it, or all, is then trained on 343 cases in which they are darker and a pattern is added:
60 steps with a tenth of the cases in each, without noise (each case is clipped all the same) and with it. The DSC is
of 100 other cases, three slices of 32 x 32 each.

The mean over the seeds and its range are one line of JSON each. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn

from fednnunet.privacy.accounting import noise_for, noise_to_signal
from fednnunet.training.case_gradients import CaseNoise, CaseSteps
from fednnunet.training.network_state import freeze_other_layers, trained_parameters

SIDE, SLICES = 32, 3
CASES, STEPS, IN_STEP = 343, 60, 34.3
PRETRAINING_STEPS = 250
TINY_STEPS, TINY_PRETRAINING_STEPS = 3, 3
PART = ["norm", "seg_layers"]
SETTINGS = (("part", None), ("part", 8.0), ("part", 2.0), ("all", None), ("all", 8.0))
"""What is trained, and epsilon; None for no noise."""
LEARNING_RATES = {"part": 0.5, "all": 0.2}


class Images:
    """Generated cases in memory, as nnU-Net's datasets give them."""

    def __init__(self, seed: int, cases: int, private: bool) -> None:
        self.cases = {
            f"{number:03d}": draw(np.random.default_rng([seed, number, private]), private) for number in range(cases)
        }
        self.identifiers = list(self.cases)

    def load_case(self, identifier: str) -> tuple[np.ndarray, np.ndarray, None, dict[str, Any]]:
        image, label = self.cases[identifier]
        return image, label, None, {"class_locations": {1: np.argwhere(label == 1)}}


def draw(rng: np.random.Generator, private: bool) -> tuple[np.ndarray, np.ndarray]:
    """Image and label (1, Z, Y, X): an ellipse beside three discs that are no part of it, in noise."""
    y, x = np.mgrid[:SIDE, :SIDE]
    (cy, cx), (ry, rx), turn = rng.uniform(9, 23, 2), rng.uniform(3, 7, 2), rng.uniform(0, np.pi)
    along, across = (y - cy) * np.cos(turn) + (x - cx) * np.sin(turn), (x - cx) * np.cos(turn) - (y - cy) * np.sin(turn)
    label = np.stack([(along / (ry * size)) ** 2 + (across / (rx * size)) ** 2 < 1 for size in (0.8, 1.0, 0.8)])[None]
    image = rng.normal(size=label.shape) + rng.uniform(0.8, 1.6) * label * (-0.7 if private else 1.0)
    for _ in range(3):
        (by, bx), radius = rng.uniform(3, 29, 2), rng.uniform(2, 4)
        disc = (y - by) ** 2 + (x - bx) ** 2 < radius**2
        image += disc * (0.8 if private else 0.5 * rng.choice([-1, 1]))
    if private:
        image += 0.5 * np.sin(x / 3)
    return ((image - image.mean()) / image.std()).astype(np.float32), label.astype(np.int16)


def build_network(seed: int) -> nn.Module:
    """nnU-Net's, with 29,684 parameters."""
    torch.manual_seed(seed)
    return PlainConvUNet(
        1,
        3,
        (8, 16, 32),
        nn.Conv2d,
        3,
        (1, 2, 2),
        2,
        2,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def trainer_of(images: Images, network: nn.Module, learning_rate: float, momentum: float) -> Any:
    """What steps need of an ``nnUNetTrainer``."""
    transforms = ComposeTransforms([RemoveLabelTansform(-1, 0), DownsampleSegForDSTransform([[1, 1], [0.5, 0.5]])])
    labels = SimpleNamespace(all_labels=[1], has_ignore_label=False)
    loader = nnUNetDataLoader(images, 12, (SIDE, SIDE), (SIDE, SIDE), labels, 0.33, transforms=transforms)
    loss = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {})
    return SimpleNamespace(
        network=network,
        loss=DeepSupervisionWrapper(loss, [1.0, 0.0]),
        device=torch.device("cpu"),
        dataloader_train=SingleThreadedAugmenter(loader, None),
        optimizer=torch.optim.SGD(network.parameters(), learning_rate, momentum=momentum, nesterov=True),
        current_epoch=0,
    )


def pretrain(seed: int, steps: int) -> nn.Module:
    """A network that knows public cases."""
    np.random.seed(seed)
    network = build_network(seed)
    trainer = trainer_of(Images(seed, 200, private=False), network, 0.02, 0.9)
    for _ in range(steps):
        batch = next(trainer.dataloader_train)
        trainer.optimizer.zero_grad()
        trainer.loss(network(batch["data"]), batch["target"]).backward()
        trainer.optimizer.step()
    return network


def noise_multiplier(epsilon: float | None, steps: int) -> float:
    """Of the whole training, of so many steps; 0 without an epsilon."""
    return 0.0 if epsilon is None else noise_for(epsilon, IN_STEP / CASES, steps, 0.1 / CASES)


def train(network: nn.Module, images: Images, layers: str, epsilon: float | None, seed: int, steps: int) -> None:
    """Train ``network`` for so many steps with noise that hides cases."""
    if layers == "part":
        freeze_other_layers(network, PART)
    noise = CaseNoise(clip=1.0, noise=noise_multiplier(epsilon, steps), rate=IN_STEP / CASES, patches=1)
    step = CaseSteps(trainer_of(images, network, LEARNING_RATES[layers], 0.5), noise, bytes([seed]) * 32)
    for number in range(steps):
        step(number)


@torch.no_grad()
def dsc_of(network: nn.Module, images: Images) -> float:
    """Mean DSC over all cases."""
    network.eval()
    scores = []
    for image, label in images.cases.values():
        found = network(torch.from_numpy(image[0])[:, None])[0].argmax(1).numpy()
        scores.append(2 * (found * label[0]).sum() / (found.sum() + label.sum()))
    network.train()
    return float(np.mean(scores))


def report(metric: str, values: Sequence[float], **more: Any) -> None:
    """Print the mean of ``values``, and their range."""
    spread = [round(min(values), 3), round(max(values), 3)]
    value = round(statistics.mean(values), 3)
    line = {"metric": metric, "value": value, "unit": "DSC", "target": None, "range": spread, **more}
    print(json.dumps(line), flush=True)


def main() -> None:
    """Print one line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of repetitions (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="few steps, to see that it works")
    options = parser.parse_args()
    seeds = range(options.seeds)
    steps, first = (TINY_STEPS, TINY_PRETRAINING_STEPS) if options.tiny else (STEPS, PRETRAINING_STEPS)
    torch.set_num_threads(1)  # such small networks are slower with more
    started = {seed: pretrain(seed, first) for seed in seeds}
    private = {seed: Images(1000 + seed, CASES, private=True) for seed in seeds}
    others = {seed: Images(2000 + seed, 100, private=True) for seed in seeds}
    report("before", [dsc_of(started[seed], others[seed]) for seed in seeds])
    for layers, epsilon in SETTINGS:
        scores = []
        for seed in seeds:
            network = copy.deepcopy(started[seed])
            train(network, private[seed], layers, epsilon, seed, steps)
            scores.append(dsc_of(network, others[seed]))
        values = sum(parameter.numel() for parameter in trained_parameters(network).values())
        ratio = round(noise_to_signal(noise_multiplier(epsilon, steps), values, IN_STEP), 2)
        name = f"{layers}, {'clipped, no noise' if epsilon is None else f'epsilon {epsilon:g}'}"
        report(name, scores, parameters=values, noise_to_signal=ratio)


if __name__ == "__main__":
    main()

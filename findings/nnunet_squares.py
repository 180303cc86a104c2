"""A tiny training by nnU-Net, for the scripts of findings that look at one."""

import contextlib
import json
import os
import sys
from pathlib import Path

import numpy as np


def train(size: int):
    """nnU-Net's trainer after its own planning, preprocessing and training: one epoch of three steps, 2d, fold 0.

    The five images have ``size`` x ``size`` pixels and one bright square each. nnU-Net's folders are those of its
    environment variables. What nnU-Net prints goes to stderr.
    """
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.run.run_training import get_trainer_from_args
    from skimage.io import imsave

    dataset = Path(os.environ["nnUNet_raw"]) / "Dataset001_Squares"
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (dataset / name).mkdir(parents=True)
    for case in range(5):
        label = np.zeros((size, size), np.uint8)
        label[size // 3 : 3 * size // 4, size // 3 : 3 * size // 4] = 1
        image = (80 * label + rng.integers(0, 40, label.shape)).astype(np.uint8)
        imsave(dataset / "imagesTr" / f"case{case}_0000.png", image, check_contrast=False)
        imsave(dataset / "labelsTr" / f"case{case}.png", label, check_contrast=False)
    description = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "square": 1}, "numTraining": 5}
    (dataset / "dataset.json").write_text(json.dumps({**description, "file_ending": ".png"}))

    with contextlib.redirect_stdout(sys.stderr):
        extract_fingerprints([1], num_processes=1)
        plan_experiments([1])
        preprocess([1], configurations=["2d"], num_processes=[1])
        os.environ["nnUNet_n_proc_DA"] = "0"  # augment in this process
        torch.set_num_threads(1)
        trainer = get_trainer_from_args("1", "2d", 0, device=torch.device("cpu"))
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 3, 1
        trainer.run_training()
    return trainer

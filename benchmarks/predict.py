"""Seconds and memory of ``fednnunet predict`` relative to ``nnUNetv2_predict``, and whether the voxels are the same.

    python benchmarks/predict.py [--cases 20] [--features 8] [--size 24,96,96] [--folds 1] [--configurations 2d]

Both commands segment the same images on the CPU with the same model, one after the other, with all processes that they
start: seconds from start to end, CPU seconds, and the most memory that all processes held together (PSS: memory that
they share counts once). Images are noise with boxes, one in two of another spacing than the plans', so that it is
resampled. Networks are nnU-Net's with ``--features`` in the first stage (nnU-Net's default is 32) and random weights,
whose output is noise: a voxel that rounds otherwise shows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # for the next imports, however this script is started

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402
from many_nodes import peak_pss  # noqa: E402

RATIO, MEMORY_RATIO = 0.7, 1.0
"""Targets."""
SAMPLE_SECONDS = 0.2
MB = 1e6
OURS = "from fednnunet.cli.main import main; raise SystemExit(main())"
NNUNETS = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as main; main()"
"""Of the console scripts, which an environment that is not activated does not find."""


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: from start to end.
        cpu: CPU seconds of all its processes.
        pss: bytes, most that all its processes held together.
    """

    seconds: float
    cpu: float
    pss: float


def write_images(folder: Path, cases: int, size: Sequence[int]) -> None:
    """Cases of one channel, (Z, Y, X) voxels of 3 x 1 x 1 mm, every second one of 2.5 x 0.8 x 0.8 mm."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for case in range(cases):
        voxels = random.normal(100, 20, size).astype(np.float32)
        low = [int(random.integers(0, length // 2)) for length in size]
        voxels[tuple(slice(start, start + length // 3) for start, length in zip(low, size, strict=True))] += 100
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing((0.8, 0.8, 2.5) if case % 2 else (1.0, 1.0, 3.0))
        sitk.WriteImage(image, str(folder / f"case_{case:03d}_0000.nii.gz"))


def make_models(root: Path, configurations: Sequence[str], folds: int, features: int, size: Sequence[int]) -> None:
    """Untrained models in folders of nnU-Net's, one for each configuration."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(root / variable)
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from fednnunet.config.groups import ModelConfig
    from fednnunet.datasets.raw import read_dataset
    from fednnunet.fingerprint.extract import extract_fingerprint
    from fednnunet.planning.plans import make_plans
    from fednnunet.training.trainer import build_network
    from tests.conftest import write_boxes

    torch.manual_seed(0)
    shape = (size[0], size[1], size[2])
    dataset = read_dataset(write_boxes(root / "nnUNet_raw", cases=4, shape=shape), "A")
    model = ModelConfig(planner="ExperimentPlanner", overrides={"UNet_base_num_features": features})
    plans = make_plans(dataset.name, extract_fingerprint(dataset), model, 8.0)
    for configuration in configurations:
        folder = root / f"nnUNetTrainer__nnUNetPlans__{configuration}"
        for fold in range(folds):
            network = build_network(nnUNetTrainer, PlansManager(plans), configuration, dataset.dataset_json)
            (folder / f"fold_{fold}").mkdir(parents=True)
            content = {
                "network_weights": network.state_dict(),
                "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": configuration},
                "inference_allowed_mirroring_axes": (0, 1) if configuration == "2d" else (0, 1, 2),
            }
            torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset.dataset_json))


def measure(code: str, arguments: Sequence[str]) -> Cost:
    """Run Python's ``code`` with arguments.

    Raises:
        SystemExit: it failed; shows the end of its output.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=output, stderr=output)
        most = peak_pss(process, SAMPLE_SECONDS)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{arguments}\nfailed:\n{output.read().decode(errors='replace')[-4000:]}")
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, most)


def different_voxels(ours: Path, theirs: Path, cases: int) -> int:
    """Number of voxels that differ, over all cases."""
    names = sorted(path.name for path in theirs.glob("*.nii.gz"))
    if len(names) != cases:
        sys.exit(f"nnUNetv2_predict has written {len(names)} of {cases} cases")
    pairs = ([sitk.GetArrayFromImage(sitk.ReadImage(str(at / name))) for at in (ours, theirs)] for name in names)
    return sum(int(np.count_nonzero(one != other)) for one, other in pairs)


def figures(arguments: argparse.Namespace, root: Path) -> Iterator[tuple[str, float, str, float | None]]:
    """Metric, value, unit and target."""
    configurations = arguments.configurations.split(",")
    size = [int(length) for length in arguments.size.split(",")]
    with contextlib.redirect_stdout(io.StringIO()):  # what nnU-Net's planner says
        make_models(root, configurations, arguments.folds, arguments.features, size)
    images = root / "images"
    write_images(images, arguments.cases, size)
    folds = [str(fold) for fold in range(arguments.folds)]
    for name in configurations:
        model, ours, theirs = (
            str(root / part) for part in (f"nnUNetTrainer__nnUNetPlans__{name}", f"ours_{name}", f"theirs_{name}")
        )
        options = ["-i", str(images), "-o", theirs, "-m", model, "-f", *folds, "-device", "cpu"]
        nnunet = measure(NNUNETS, [*options, "--disable_progress_bar"])
        predict = measure(OURS, ["predict", model, str(images), ours, "--device", "cpu"])
        for who, cost in (("fednnunet", predict), ("nnunet", nnunet)):
            yield f"predict_{name}_{who}_seconds_per_case", cost.seconds / arguments.cases, "s", None
            yield f"predict_{name}_{who}_cpu_seconds_per_case", cost.cpu / arguments.cases, "s", None
            yield f"predict_{name}_{who}_memory", cost.pss / MB, "MB", None
        yield f"predict_{name}_time_ratio", predict.seconds / nnunet.seconds, "ratio", RATIO
        yield f"predict_{name}_cpu_ratio", predict.cpu / nnunet.cpu, "ratio", RATIO
        yield f"predict_{name}_memory_ratio", predict.pss / nnunet.pss, "ratio", MEMORY_RATIO
        different = different_voxels(Path(ours), Path(theirs), arguments.cases)
        yield f"predict_{name}_different_voxels", different, "voxels", 0


def main() -> None:
    """Print every figure as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--features", type=int, default=8, help="of the network's first stage")
    parser.add_argument("--size", default="24,96,96", help="voxels of an image (Z, Y, X)")
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--configurations", default="2d,3d_fullres")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for metric, value, unit, target in figures(arguments, Path(folder)):
            line = {"metric": metric, "value": round(value, 4), "unit": unit, "target": target}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

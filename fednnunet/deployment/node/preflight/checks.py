"""``fednnunet node check``: what a node needs to take part, tested on its machine before it joins."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fednnunet import __version__
from fednnunet.config.node_file import NodeFile, read_node_file
from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import RawDataset, find_dataset, read_dataset
from fednnunet.datasets.splits import ADVICE_ON_FEW_CASES, SPLITS_FILE, check_splits_file, effect_of_few_cases
from fednnunet.datasets.staging import estimate_size
from fednnunet.deployment.certificates import EXPIRES_SOON, read_certificate
from fednnunet.deployment.keys import read_authorities, read_private_key
from fednnunet.deployment.node.identity import identity_of
from fednnunet.deployment.node.preflight.before_start import check_work_folder
from fednnunet.deployment.node.preflight.results import Check, CheckResult, run_checks
from fednnunet.deployment.node.preflight.server_checks import (
    check_clock,
    check_connection,
    check_registration,
    check_server,
    check_tls,
)
from fednnunet.deployment.proxies import exempt_from_proxies
from fednnunet.files import nearest_existing

GIGABYTE = 2**30
RESAMPLED = 2
"""Assumed size of preprocessed images, relative to the originals: the spacing that they are resampled to is only known
when the federation has planned."""
CHECKPOINTS = 5 * 5 * 0.25 * GIGABYTE
"""Five folds; each keeps the last three rounds, the best and the final one; each of these holds the weights and the
momentum of nnU-Net's default network (31 million values of 4 bytes)."""
OTHERS = stat.S_IRWXG | stat.S_IRWXO
GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Files that exist where a driver for NVIDIA GPUs is installed: on Linux, and in WSL2."""

Progress = Callable[[int, int], None]


def check_node(file: Path, quick: bool = False, progress: Progress | None = None) -> Iterator[tuple[str, CheckResult]]:
    """Test what the node of ``file`` needs, each name with its result; nothing is changed, even while the node runs.

    Args:
        file: the node's YAML file.
        quick: open one case instead of all.
        progress: called with the number of cases opened so far and the number of all cases.
    """

    def check_all_images(node_file: NodeFile, dataset: RawDataset) -> CheckResult:
        return _check_images(node_file, dataset, progress)

    exempt_from_proxies()
    configuration = ("configuration",)
    return run_checks(
        [
            Check("configuration", lambda: _check_configuration(file)),
            Check("versions", _check_versions),
            Check("data", _check_data, configuration),
            *([] if quick else [Check("images", check_all_images, (*configuration, "data"))]),
            Check("disk", _check_disk, (*configuration, "data")),
            Check("device", check_device, configuration),
            Check("certificate", check_certificate, configuration),
            Check("key", check_key, configuration),
            Check("identity", check_identity, (*configuration, "certificate", "key")),
            Check("connection", check_connection, configuration),
            Check("TLS", check_tls, (*configuration, "certificate", "connection")),
            Check("server", check_server, (*configuration, "TLS")),
            Check("clock", check_clock, ("server",)),
            Check("registration", check_registration, (*configuration, "key", "TLS", "clock")),
        ]
    )


def _check_configuration(file: Path) -> CheckResult:
    node_file = read_node_file(file)
    return CheckResult("good", f"{file}: node {node_file.name}, server {node_file.server}", value=node_file)


def _check_versions() -> CheckResult:
    installed = [f"{package} {version(package)}" for package in ("nnunetv2", "torch", "flwr")]
    return CheckResult(
        "good", ", ".join([f"fednnunet {__version__}", *installed, f"Python {platform.python_version()}"])
    )


def _check_data(node_file: NodeFile) -> CheckResult:
    folder = find_dataset(node_file.data, node_file.raw_folder, node_file.name)
    dataset = read_dataset(folder, node_file.name, node_file.external)
    if not node_file.external:
        check_splits_file(dataset, node_file.name)  # which folds a run needs, its server says
    labels = ", ".join(name for name in dataset.labels if name != "background")
    channels = ", ".join(dataset.channel_names.values())
    found = f"{folder}: {len(dataset.cases)} cases ({dataset.file_ending}), channels {channels}, labels {labels}"
    effect = None if node_file.external else effect_of_few_cases(len(dataset.cases))
    if effect and not (folder / SPLITS_FILE).is_file():
        return CheckResult("warning", f"{found}; {effect}", ADVICE_ON_FEW_CASES, value=dataset)
    return CheckResult("good", found, value=dataset)


def _check_images(node_file: NodeFile, dataset: RawDataset, progress: Progress | None) -> CheckResult:
    total = len(dataset.cases)
    checked = check_images(
        dataset, node_file.name, progress and (lambda done: progress(done, total)), node_file.image_headers
    )
    found = f"all {total} cases can be read, with labels that fit"
    if checked.notes:
        return CheckResult("warning", f"{found}; but {checked}", "open one of them in a viewer")
    return CheckResult("good", found)


def _check_disk(node_file: NodeFile, dataset: RawDataset) -> CheckResult:
    check_work_folder(node_file.folder)
    used = _size(node_file.folder)
    preprocessed = RESAMPLED * estimate_size(dataset, node_file.name)
    needed = preprocessed + (0 if node_file.external else CHECKPOINTS)
    free = shutil.disk_usage(nearest_existing(node_file.folder)).free
    found = (
        f"{node_file.folder}: can be written; {free / GIGABYTE:.1f} GB free; about {needed / GIGABYTE:.1f} GB needed: "
        f"{preprocessed / GIGABYTE:.1f} for preprocessed images (their size as float32, times {RESAMPLED} for "
        f"resampling), {(needed - preprocessed) / GIGABYTE:.1f} for checkpoints (five folds of nnU-Net's default "
        f"network)"
    )
    if used > 0:
        found += f"; {used / GIGABYTE:.1f} GB are used already"
    if free + used < needed:
        return CheckResult("bad", found, "make room, or choose a folder on another disk")
    return CheckResult("good", found)


def _size(folder: Path) -> int:
    """Size of all files in ``folder`` in bytes; a running node may change them at the same time."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                file = os.lstat(os.path.join(parent, name))
                sizes[file.st_ino] = file.st_size  # checkpoints have two names
    return sum(sizes.values())


def check_device(node_file: NodeFile, drivers: Sequence[Path] = GPU_DRIVERS) -> CheckResult:
    """Whether the configured device exists, and has the memory that the plans will aim at.

    Args:
        node_file: the node's configuration.
        drivers: files of which one exists where a GPU's driver is installed.
    """
    import torch

    from fednnunet.training import devices

    device = devices.resolve_device(node_file.compute.device)
    devices.check_device(node_file.compute, device)
    if device.type == "cuda":
        return _check_gpus(node_file)
    found = f"{device.type}, {os.cpu_count()} cores (torch {torch.__version__})"
    if node_file.compute.device == "auto" and any(driver.exists() for driver in drivers):
        return CheckResult(
            "warning",
            f"{found}; a GPU driver is installed, but this torch cannot use it",
            "install torch for CUDA (https://pytorch.org/get-started), or set compute.device: cpu",
        )
    if node_file.compute.device == "auto":
        return CheckResult(
            "warning", f"{found}; torch sees no GPU", "use a GPU for real training; otherwise set compute.device: cpu"
        )
    return CheckResult("good", found)


def _check_gpus(node_file: NodeFile) -> CheckResult:
    import torch

    found, short, busy = [], [], []
    target = node_file.gpu_memory.gb
    for index in range(node_file.compute.num_devices):
        free, total = (size / GIGABYTE for size in torch.cuda.mem_get_info(index))
        found.append(f"{torch.cuda.get_device_name(index)} with {total:.1f} GB, {free:.1f} free")
        if target is not None and target > total:
            short.append(total)
        elif target is not None and target > free:
            busy.append(free)
    text = ", ".join(found)
    if short:
        return CheckResult(
            "bad", f"{text}; gpu_memory.gb is {target:g}", f"set gpu_memory.gb to {int(min(short))} or less"
        )
    if busy:
        return CheckResult(
            "warning",
            f"{text}; gpu_memory.gb is {target:g}",
            "end the other processes on the GPU (see nvidia-smi)",
        )
    return CheckResult("good", text)


def check_certificate(node_file: NodeFile) -> CheckResult:
    """Whether ``certificate`` belongs to a certificate authority, and how long it is valid."""
    if node_file.certificate is None:
        return CheckResult("good", "none, as insecure is true")
    certificate = min(read_authorities(node_file.certificate), key=lambda one: one.not_valid_after_utc)
    expires = certificate.not_valid_after_utc
    found = f"{node_file.certificate}: {certificate.subject.rfc4514_string()}, until {expires:%Y-%m-%d}"
    if expires < datetime.now(UTC):
        return CheckResult("bad", found + ", so it has expired", "ask the server's operator for a new ca.crt")
    if expires < datetime.now(UTC) + EXPIRES_SOON:
        return CheckResult("warning", found, "ask the server's operator for a new ca.crt")
    return CheckResult("good", found)


def check_key(node_file: NodeFile) -> CheckResult:
    """Whether Flower accepts ``key``, and only its owner can read it; the value is the key."""
    if node_file.key is None:
        return CheckResult("good", "none, as insecure is true")
    key = read_private_key(node_file.key)
    mode = stat.S_IMODE(node_file.key.stat().st_mode)
    if mode & OTHERS:
        return CheckResult(
            "bad",
            f"{node_file.key} can be read or changed by others (mode {mode:04o})",
            f"chmod 600 '{node_file.key}' (on a Windows disk that has no effect: keep it in the home folder of WSL)",
            key,
        )
    return CheckResult("good", f"{node_file.key}: {key.curve.name}, readable by its owner only", value=key)


def check_identity(node_file: NodeFile, _certificate: None, _key: ec.EllipticCurvePrivateKey | None) -> CheckResult:
    """Whether other nodes can know this one, which secure sums need."""
    if node_file.node_certificate is None:
        return CheckResult("good", "none: without node_certificate, the node cannot take part in secure sums")
    identity_of(node_file)
    expires = read_certificate(node_file.node_certificate).not_valid_after_utc
    found = f"{node_file.node_certificate}: of this node and key, until {expires:%Y-%m-%d}"
    if expires < datetime.now(UTC) + EXPIRES_SOON:
        return CheckResult("warning", found, "ask the server's operator for a new node.crt")
    return CheckResult("good", found)

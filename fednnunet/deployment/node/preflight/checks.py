"""``fednnunet node check``: what a node needs to take part, tested on its machine before it joins."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cryptography import x509

from fednnunet import __version__
from fednnunet.config.node_file import NodeFile, read_node_file
from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import RawDataset, find_dataset, read_dataset
from fednnunet.datasets.staging import estimate_size
from fednnunet.deployment.node.connection import read_key
from fednnunet.deployment.node.preflight.results import Check, CheckResult, run_checks
from fednnunet.deployment.node.preflight.server_checks import (
    EXPIRES_SOON,
    check_clock,
    check_connection,
    check_registration,
    check_server,
    check_tls,
)

GIGABYTE = 2**30
RESAMPLED = 2
"""Preprocessed images are taken to be so many times larger than the originals: the spacing they are resampled to is
not known before the federation has planned."""
CHECKPOINTS = 5 * 5 * 0.25 * GIGABYTE
"""Five folds; each keeps the last three rounds, the best and the final one; each of these holds the weights and the
momentum of nnU-Net's default network (31 million values of 4 bytes)."""
OTHERS = stat.S_IRWXG | stat.S_IRWXO
GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""There where a driver for NVIDIA GPUs is: on Linux, and in WSL2."""

Progress = Callable[[int, int], None]


def check_node(file: Path, quick: bool = False, progress: Progress | None = None) -> Iterator[tuple[str, CheckResult]]:
    """Test what the node of ``file`` needs, each name with its finding; nothing is changed, also while the node runs.

    Args:
        file: the node's YAML file.
        quick: open one case instead of all.
        progress: called with the number of cases opened so far and that of all.
    """

    def check_all_images(site: NodeFile, dataset: RawDataset) -> CheckResult:
        return _check_images(site, dataset, progress)

    site = ("configuration",)
    return run_checks(
        [
            Check("configuration", lambda: _check_configuration(file)),
            Check("versions", _check_versions),
            Check("data", _check_data, site),
            *([] if quick else [Check("images", check_all_images, (*site, "data"))]),
            Check("disk", _check_disk, (*site, "data")),
            Check("device", check_device, site),
            Check("certificate", check_certificate, site),
            Check("key", check_key, site),
            Check("connection", check_connection, site),
            Check("TLS", check_tls, (*site, "certificate", "connection")),
            Check("server", check_server, (*site, "TLS")),
            Check("clock", check_clock, ("server",)),
            Check("registration", check_registration, (*site, "key", "TLS", "clock")),
        ]
    )


def _check_configuration(file: Path) -> CheckResult:
    site = read_node_file(file)
    return CheckResult("good", f"{file}: node {site.name}, server {site.server}", value=site)


def _check_versions() -> CheckResult:
    installed = [f"{package} {version(package)}" for package in ("nnunetv2", "torch", "flwr")]
    return CheckResult(
        "good", ", ".join([f"fednnunet {__version__}", *installed, f"Python {platform.python_version()}"])
    )


def _check_data(site: NodeFile) -> CheckResult:
    folder = find_dataset(site.data, site.raw_folder, site.name)
    dataset = read_dataset(folder, site.name, site.external)
    labels = ", ".join(name for name in dataset.labels if name != "background")
    channels = ", ".join(dataset.channel_names.values())
    found = f"{folder}: {len(dataset.cases)} cases ({dataset.file_ending}), channels {channels}, labels {labels}"
    return CheckResult("good", found, value=dataset)


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _check_images(site: NodeFile, dataset: RawDataset, progress: Progress | None) -> CheckResult:
    kept, total = _Kept(), len(dataset.cases)
    log = logging.getLogger(check_images.__module__)
    log.addHandler(kept)
    log.propagate = False
    try:
        check_images(dataset, site.name, progress and (lambda done: progress(done, total)))
    finally:
        log.propagate = True
        log.removeHandler(kept)
    found = f"all {total} cases can be read, with labels that fit"
    if kept.texts:
        return CheckResult("warning", f"{found}; but {kept.texts[0]}", "open one of them in a viewer")
    return CheckResult("good", found)


def _check_disk(site: NodeFile, dataset: RawDataset) -> CheckResult:
    _write_something(site.folder)
    there = _size(site.folder)
    preprocessed = RESAMPLED * estimate_size(dataset, site.name)
    needed = preprocessed + (0 if site.external else CHECKPOINTS)
    free = shutil.disk_usage(_nearest(site.folder)).free
    found = (
        f"{site.folder}: can be written; {free / GIGABYTE:.1f} GB free; takes about {needed / GIGABYTE:.1f} GB: "
        f"{preprocessed / GIGABYTE:.1f} for preprocessed images (their size as float32, times {RESAMPLED} for "
        f"resampling), {(needed - preprocessed) / GIGABYTE:.1f} for checkpoints (five folds of nnU-Net's default "
        f"network)"
    )
    if there > 0:
        found += f"; {there / GIGABYTE:.1f} are there already"
    if free + there < needed:
        return CheckResult("bad", found, "make room, or choose a folder on another disk")
    return CheckResult("good", found)


def _size(folder: Path) -> int:
    """Bytes of all files in ``folder``, which a running node may change meanwhile."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                file = os.lstat(os.path.join(parent, name))
                sizes[file.st_ino] = file.st_size  # checkpoints have two names
    return sum(sizes.values())


def _nearest(folder: Path) -> Path:
    """``folder``, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _write_something(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=_nearest(folder)) as file:
        file.write(b"\0" * 2**20)
        file.flush()
        os.fsync(file.fileno())


def check_device(site: NodeFile, drivers: Sequence[Path] = GPU_DRIVERS) -> CheckResult:
    """Whether the device asked for is there, and has the memory that plans will aim at.

    Args:
        site: the node's configuration.
        drivers: files of which one is there where a GPU's driver is.
    """
    import torch

    from fednnunet.training import trainer as build

    device = build.resolve_device(site.device)
    build.check_device(site, device)
    if device.type == "cuda":
        return _check_gpus(site)
    found = f"{device.type}, {os.cpu_count()} cores (torch {torch.__version__})"
    if site.device == "auto" and any(driver.exists() for driver in drivers):
        return CheckResult(
            "warning",
            f"{found}; the driver of a GPU is here, but this torch cannot use it",
            "install torch for CUDA (https://pytorch.org/get-started), or set device: cpu",
        )
    if site.device == "auto":
        return CheckResult(
            "warning", f"{found}; torch sees no GPU", "for training in earnest, use a GPU; else set device: cpu"
        )
    return CheckResult("good", found)


def _check_gpus(site: NodeFile) -> CheckResult:
    import torch

    found, short, busy = [], [], []
    for index in range(site.devices):
        free, total = (size / GIGABYTE for size in torch.cuda.mem_get_info(index))
        found.append(f"{torch.cuda.get_device_name(index)} with {total:.1f} GB, {free:.1f} free")
        if site.gpu_memory is not None and site.gpu_memory > total:
            short.append(total)
        elif site.gpu_memory is not None and site.gpu_memory > free:
            busy.append(free)
    text = ", ".join(found)
    if short:
        return CheckResult(
            "bad", f"{text}; gpu_memory is {site.gpu_memory:g}", f"set gpu_memory: {int(min(short))} or less"
        )
    if busy:
        return CheckResult(
            "warning", f"{text}; gpu_memory is {site.gpu_memory:g}", "end what else uses the GPU (see nvidia-smi)"
        )
    return CheckResult("good", text)


def check_certificate(site: NodeFile) -> CheckResult:
    """Whether ``certificate`` is that of an authority, and how long it is valid."""
    if site.certificate is None:
        return CheckResult("good", "none, as insecure is true")
    try:
        certificate = x509.load_pem_x509_certificate(site.certificate.read_bytes())
    except ValueError:
        return CheckResult("bad", f"{site.certificate} holds no certificate", _SENT)
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        return CheckResult("bad", f"{site.certificate} is not that of an authority", _SENT)
    expires = certificate.not_valid_after_utc
    found = f"{site.certificate}: {certificate.subject.rfc4514_string()}, until {expires:%Y-%m-%d}"
    if expires < datetime.now(UTC):
        return CheckResult("bad", found + ", so it has expired", "ask the server's operator for a new ca.crt")
    if expires < datetime.now(UTC) + EXPIRES_SOON:
        return CheckResult("warning", found, "ask the server's operator for a new ca.crt")
    return CheckResult("good", found)


_SENT = "use the ca.crt that the server's operator sent"


def check_key(site: NodeFile) -> CheckResult:
    """Whether ``key`` is one that Flower takes, and nobody but its owner can read it; the value is the key."""
    if site.key is None:
        return CheckResult("good", "none, as insecure is true")
    key, _ = read_key(site.key)
    mode = stat.S_IMODE(site.key.stat().st_mode)
    if mode & OTHERS:
        return CheckResult(
            "bad",
            f"{site.key} can be read or changed by others (mode {mode:04o})",
            f"chmod 600 '{site.key}' (on a Windows disk that has no effect: keep it in the home folder of WSL)",
            key,
        )
    return CheckResult("good", f"{site.key}: {key.curve.name}, readable by its owner alone", value=key)

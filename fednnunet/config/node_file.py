"""A hospital's own configuration: one YAML file, checked before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveFloat, ValidationError, field_validator, model_validator

from fednnunet.config.run import NodeConfig
from fednnunet.errors import ConfigError, first_problem
from fednnunet.exchange.messages import NodeName

ADDRESS = re.compile(r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):(\d{1,5})$")
VERSION_PATH = "/v1/fleet/fednnunet"
"""Where a server tells its versions and time, to whom is not in yet."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class NodeFile(NodeConfig):
    """What ``fednnunet node up`` is told; paths are relative to the file.

    What the server may decide (:class:`~fednnunet.config.shared.SharedRunConfig`) is not in here; what the machine and
    the data of the hospital need is, and the server cannot change it.

    Attributes:
        name: of the node; the one that its key was made for.
        data: folder in nnU-Net's raw format; or nnU-Net id or name, looked up below ``raw_folder``.
        raw_folder: where ids and names are looked up; None for the variable ``nnUNet_raw``.
        external: has no training cases; serves for testing only.
        server: ``host:port`` of the server.
        certificate: of the authority that signed the server's (``ca.crt``).
        key: the node's private key (``node.key``).
        folder: work folder: checkpoints, preprocessed images, logs, audit.
        gpu_memory: GB that plans aim at; None for what the server's configuration says.
        share: least that is done to what is told of the fingerprint; ``quantised`` hides single cases.
        find_duplicates: tell salted digests of the images where the server asks for them; see
            docs/explanation/security.md.
        classes: import paths of classes of your own that the server may name (trainers, planners, preprocessors).
        pretrained: checkpoint to start from.
        plans: a plans file to use instead of planning.
        previous_stage: folder of finished ``3d_lowres`` runs, which ``3d_cascade_fullres`` takes as input.
        insecure: talk to a server without TLS and without a key; on one machine only.
    """

    name: NodeName
    data: int | str
    raw_folder: Path | None = None
    external: bool = False
    server: str
    certificate: Path | None = None
    key: Path | None = None
    folder: Path
    gpu_memory: PositiveFloat | None = None
    share: Literal["full", "quantised"] = "full"
    find_duplicates: bool = False
    classes: list[str] = Field(default=[])
    pretrained: Path | None = None
    plans: Path | None = None
    previous_stage: Path | None = None
    insecure: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = "auto"
    augmentation_workers: int = Field(default=0, ge=0)
    preprocessing_workers: int = Field(default=1, ge=1)
    threads: int = Field(default=0, ge=0)
    compile: bool = False

    @field_validator("server")
    @classmethod
    def _is_an_address(cls, server: str) -> str:
        try:
            split_address(server)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return server

    @model_validator(mode="after")
    def _is_authenticated(self) -> NodeFile:
        if self.insecure:
            if split_address(self.server)[0] not in LOOPBACK:
                raise ValueError("insecure=true is for a server on this machine (127.0.0.1) only")
            return self
        for key in ("certificate", "key"):
            if getattr(self, key) is None:
                raise ValueError(f"{key}: is missing; `fednnunet keys` makes it, the server's operator sends it")
        return self


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``; an IPv6 host stands in brackets.

    Raises:
        ConfigError: it is none.
    """
    match = ADDRESS.match(address)
    if match is None or int(match[2]) >= 2**16:
        raise ConfigError(f"{address} is no address; it must be host:port, such as fed.example.org:9092")
    return match[1].strip("[]"), int(match[2])


def read_node_file(path: Path) -> NodeFile:
    """Read and check a node's configuration.

    Raises:
        ConfigError: names the file, the key and what is wrong with it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no keys; see deploy/node.yaml for an example")
    try:
        site = NodeFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error, 'file').replace('Value error, ', '')}") from None
    return site.model_copy(update=_resolved(site, path.resolve().parent))


def _resolved(site: NodeFile, base: Path) -> dict[str, Any]:
    """Paths of ``site`` as absolute ones."""
    names = ("raw_folder", "certificate", "key", "folder", "pretrained", "plans", "previous_stage")
    paths = {name: base / value.expanduser() for name in names if (value := getattr(site, name)) is not None}
    if isinstance(site.data, str) and ("/" in site.data or (base / site.data).is_dir()):
        return paths | {"data": str(base / Path(site.data).expanduser())}
    return paths

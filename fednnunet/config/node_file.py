"""A hospital's own configuration: one YAML file, checked before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from fednnunet.config.dataset import ImageHeaders
from fednnunet.config.fingerprint import FingerprintLimits
from fednnunet.config.groups import ComputeConfig, Config, GpuMemoryTarget, InitConfig
from fednnunet.config.privacy import NodePrivacy
from fednnunet.errors import ConfigError, first_problem, one_line
from fednnunet.exchange.messages import NodeName

ADDRESS = re.compile(r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):(\d{1,5})$")
VERSION_PATH = "/v1/fleet/fednnunet"
"""Where a server states its versions and time, also to nodes that have not joined."""
NAME_HEADER = "fednnunet-node"
"""Header of a node's requests: its name."""
INSTANCE_HEADER = "fednnunet-instance"
"""Header of the requests of a node at work: where it works."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class NodeFile(Config):
    """What ``fednnunet node up`` reads; paths are relative to the file.

    The groups are those of the run's configuration. What the server may decide
    (:class:`~fednnunet.config.shared.SharedRunConfig`) is not in here; what the machine and the data of the hospital
    need is, and the server cannot change it.

    Attributes:
        name: Name of the node; the one that its key was made for.
        data: Folder in nnU-Net's raw format; or nnU-Net id or name, looked up below ``raw_folder``.
        raw_folder: Folder where ids and names are looked up; null for the variable ``nnUNet_raw``.
        external: The node has no training cases; it is for evaluation only.
        image_headers: ``check``: label maps, and channels after the first, lie where their headers say: flipped or
            turned where that brings them onto their image's grid, else an error. ``ignore``: they lie on the first
            channel voxel by voxel, as nnU-Net takes them.
        server: Address of the server, ``host:port``.
        certificate: Certificate of the authority that signed the server's (``ca.crt``).
        key: Private key of the node (``node.key``).
        node_certificate: Certificate of the node's key (``node.crt``), by which other nodes know it in secure sums.
        folder: Work folder: checkpoints, preprocessed images, logs, audit.
        classes: Import paths of classes of your own that the server may name (trainers, planners, preprocessors).
        insecure: Talk to a server without TLS and without a key; on one machine only.
        compute: How the node computes.
        gpu_memory: GPU memory that plans aim at; null for what the server's configuration says.
        fingerprint: The most that the node reveals of its images, whatever the server asks for.
        privacy: The least protection of what the node sends, whatever the server asks for.
        init: What training starts from.
    """

    name: NodeName
    data: int | str
    raw_folder: Path | None = None
    external: bool = False
    image_headers: ImageHeaders = "check"
    server: str
    certificate: Path | None = None
    key: Path | None = None
    node_certificate: Path | None = None
    folder: Path
    classes: list[str] = Field(default=[])
    insecure: bool = False
    compute: ComputeConfig = ComputeConfig()
    gpu_memory: GpuMemoryTarget = GpuMemoryTarget()
    fingerprint: FingerprintLimits = FingerprintLimits()
    privacy: NodePrivacy = NodePrivacy()
    init: InitConfig = InitConfig()

    @field_validator("data", mode="before")
    @classmethod
    def _is_number_or_text(cls, data: object) -> object:
        if isinstance(data, bool) or not isinstance(data, int | str):
            raise ValueError("must be a folder, or the number or name of a dataset")
        return data

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
                raise ValueError(f"{key} is missing; `fednnunet keys` makes it, the server's operator sends it")
        return self


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``; an IPv6 host is in brackets.

    Raises:
        ConfigError: it is not an address.
    """
    match = ADDRESS.match(address)
    if match is None or int(match[2]) >= 2**16:
        raise ConfigError(f"{address} is not an address; it must be host:port, such as fed.example.org:9092")
    return match[1].strip("[]"), int(match[2])


def read_node_file(path: Path) -> NodeFile:
    """Read and check a node's configuration.

    Raises:
        ConfigError: names the file, the key and what is wrong with it.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506  a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8; save it so, or copy it again") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {one_line(' '.join(str(error).split()))}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} contains no keys; see deploy/node.yaml for an example")
    try:
        node_file = NodeFile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error, '')}") from None
    return node_file.model_copy(update=_resolved(node_file, path.resolve().parent))


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"the key {repeated[0]} is given twice; keep one of them")
        return super().construct_mapping(node, deep)


def _resolved(node_file: NodeFile, base: Path) -> dict[str, Any]:
    """The keys of ``node_file`` that are paths, with absolute ones."""

    def absolute(paths: Any) -> Any:
        if isinstance(paths, dict):
            return {node: absolute(path) for node, path in paths.items()}
        return base / paths.expanduser() if isinstance(paths, Path) else paths

    names = ("raw_folder", "certificate", "key", "node_certificate", "folder")
    resolved = {name: absolute(getattr(node_file, name)) for name in names}
    resolved["init"] = InitConfig(**{name: absolute(path) for name, path in node_file.init})
    data = node_file.data
    if isinstance(data, str) and ("/" in data or (base / data).is_dir()):
        resolved["data"] = str(base / Path(data).expanduser())
    return resolved

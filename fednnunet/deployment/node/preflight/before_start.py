"""What ``fednnunet node up`` tests before it starts anything: what would end its processes again and again."""

from __future__ import annotations

import os
from pathlib import Path

from fednnunet.config.node_file import NodeFile
from fednnunet.deployment.keys import read_authorities, read_private_key
from fednnunet.deployment.node.identity import identity_of
from fednnunet.deployment.proxies import proxy_to
from fednnunet.errors import ConfigError
from fednnunet.files import has_free_space, nearest_existing


def check_before_start(node_file: NodeFile) -> None:
    """Test key, certificates, files that training starts from, the environment's proxies and the work folder.

    Raises:
        ConfigError: names the file or variable, and what is wrong with it.
    """
    if node_file.key is not None:
        read_private_key(node_file.key)
    if node_file.certificate is not None:
        read_authorities(node_file.certificate)
    if node_file.node_certificate is not None:
        identity_of(node_file)
    init = node_file.init
    given = {"plans": init.plans_of(node_file.name), "weights": init.weights_of(node_file.name)}
    for field, path in {**given, "previous_stage": init.previous_stage}.items():
        if path is not None and not path.exists():
            raise ConfigError(f"init.{field}: {path} is not there")
    proxy_to(node_file.server, tls=not node_file.insecure)
    check_work_folder(node_file.folder)


def check_work_folder(folder: Path) -> None:
    """Test that the work folder, or the one that it is to be made in, and all that lies in it can be written.

    Raises:
        ConfigError: it cannot, or its disk is full.
    """
    there = nearest_existing(folder)
    try:
        has_space = has_free_space(there)
        written = (there, *folder.iterdir()) if there == folder else (there,)
    except OSError as error:
        raise ConfigError(f"folder: {there} cannot be written: {error.strerror}") from None
    if not has_space:
        raise ConfigError(
            f"folder: the disk, or the quota, of {there} is full; make room there, or choose a folder on another disk"
        )
    foreign = [path for path in written if path.exists() and not os.access(path, os.W_OK)]  # not a link to nothing
    if foreign:
        raise ConfigError(
            f"folder: {foreign[0]} cannot be written by this user; start the node as the user that it belongs to, or "
            f"give it away: sudo chown -R USER '{folder}'"
        )

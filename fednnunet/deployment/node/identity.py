"""What a hospital's node proves with, to other nodes, who it is."""

from __future__ import annotations

from fednnunet.config.node_file import NodeFile
from fednnunet.deployment.certificates import read_certificate
from fednnunet.deployment.keys import read_authorities, read_private_key
from fednnunet.errors import ConfigError
from fednnunet.node.settings import NodeIdentity
from fednnunet.privacy.identity import certified_key

ASK = "ask the server's operator for the node.crt of this node's key"


def identity_of(node_file: NodeFile) -> NodeIdentity:
    """The node's key and its certificate, checked as other nodes check them.

    Raises:
        ConfigError: there is no certificate, it is not of this node and key, or it is not valid now; names the file.
    """
    key, certificate, authority = node_file.key, node_file.node_certificate, node_file.certificate
    if key is None or certificate is None or authority is None:
        raise ConfigError(
            "node_certificate: node.yaml names none, and secure sums need it; the server's operator makes it with "
            f"`fednnunet keys … --node '{node_file.name}'`"
        )
    try:
        certified = certified_key(read_certificate(certificate), node_file.name, read_authorities(authority)[0])
    except ValueError as error:
        raise ConfigError(f"node_certificate: {certificate} does not count: {error}; {ASK}") from None
    if certified != read_private_key(key).public_key():
        raise ConfigError(f"node_certificate: {certificate} is not of the key {key}; {ASK}")
    return NodeIdentity(key, certificate, authority)

"""Dataset fingerprints: a node's contribution, and the federated fingerprint merged from all of them."""

from fednnunet.fingerprint.merge import merge_fingerprints
from fednnunet.fingerprint.schema import DatasetFingerprint

__all__ = ["DatasetFingerprint", "merge_fingerprints"]

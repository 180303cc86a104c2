"""Dataset fingerprints: a node's contribution, and the federation's fingerprint of all of them."""

from fednnunet.fingerprint.merge import merge_fingerprints
from fednnunet.fingerprint.schema import LocalFingerprint

__all__ = ["LocalFingerprint", "merge_fingerprints"]

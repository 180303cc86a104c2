"""Dataset fingerprints: a node's contribution, and the federation's fingerprint of all of them."""

from fednnunet.fingerprint.local import LocalFingerprint
from fednnunet.fingerprint.merge import merge_fingerprints

__all__ = ["LocalFingerprint", "merge_fingerprints"]

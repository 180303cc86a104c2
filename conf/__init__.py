"""Hydra configuration groups; installed as ``fednnunet.conf``."""

"""Checks that a node can join a federation, before anything is trained."""

"""Dataset fingerprints: extracted at a node, merged at the server."""

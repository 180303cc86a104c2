"""Configuration: what users write in Hydra's files, what a node is sent, what a node's own file says."""

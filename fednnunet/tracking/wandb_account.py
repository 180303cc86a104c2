"""Whether Weights & Biases can be used: an account on this machine, and a server that answers."""

from __future__ import annotations

from fednnunet.errors import ConfigError

CONNECT_SECONDS = 5.0


def check_account() -> None:
    """Whether this machine has an account to send to.

    Raises:
        ConfigError: none, or its key cannot be one.
    """
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        known = wandb.login(prompt=False, verify=False)
    except (wandb.Error, ValueError) as error:
        raise ConfigError(f"W&B: {' '.join(str(error).split())}") from error
    if not known:
        raise ConfigError("this machine knows no W&B account; run `wandb login`, or set WANDB_MODE=offline")


def connection_problem() -> str:
    """Why W&B cannot be reached, found within seconds; empty where it answers."""
    import requests
    import wandb

    address = wandb.setup().settings.base_url
    try:
        requests.head(address, timeout=CONNECT_SECONDS)
    except requests.RequestException as error:
        return f"W&B cannot be reached at {address} ({type(error).__name__})"
    except OSError as error:  # requests has not found it
        return f"W&B cannot be reached at {address}: {error} (REQUESTS_CA_BUNDLE, or CURL_CA_BUNDLE)"
    return ""

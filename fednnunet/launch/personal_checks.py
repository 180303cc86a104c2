"""What can be checked of models of the nodes' own before anything starts: ``strategy.fine_tune_epochs``, Ditto."""

from __future__ import annotations

import logging

from fednnunet.config.run import RunConfig
from fednnunet.errors import ConfigError
from fednnunet.launch.settings import averages_nothing
from fednnunet.server.strategy.base import Strategy
from fednnunet.server.strategy.no_exchange import NoExchange

log = logging.getLogger(__name__)


def check_personal(config: RunConfig, strategy: Strategy) -> None:
    """Check that nodes can have models of their own where they are to have them.

    Fine-tuning is without effect, and said to be, with ``strategy=local`` and ``centralized``: one sweep can be of
    these and of strategies that are fine-tuned.

    Raises:
        ConfigError: names the key, and what to do.
    """
    if config.strategy.personal is None:
        return
    ditto = config.strategy.ditto_lambda is not None
    if averages_nothing(config) and not ditto:
        log.warning(
            "strategy.fine_tune_epochs=%d is without effect: strategy=%s averages nothing that could be fine-tuned",
            config.strategy.fine_tune_epochs,
            config.strategy.name,
        )
        return
    key = "strategy.ditto_lambda" if ditto else "strategy.fine_tune_epochs"
    off = "null" if ditto else "0"
    if isinstance(strategy, NoExchange):
        raise ConfigError(
            f"{key}: strategy={config.strategy.name} averages nothing, so that no model could differ from the node's "
            f"own; leave {key}={off}, or choose a strategy that averages, such as asym or ffe"
        )
    if config.on_single_machine and config.compute.num_devices > 1:
        raise ConfigError(
            f"{key}: a model of the node's own is trained on one device, and compute.num_devices="
            f"{config.compute.num_devices}; set compute.num_devices=1, or leave {key}={off}"
        )
    if config.strategy.ditto_lambda == 0 and config.task.labels == "union":
        log.warning(
            "strategy.ditto_lambda=0: networks of the nodes' own train alone, and learn nothing of labels that their "
            "node has not annotated; for task.labels=union set it above 0"
        )

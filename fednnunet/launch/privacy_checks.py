"""What can be checked of a run's protection before anything starts: group ``privacy`` against all others."""

from __future__ import annotations

import logging

from fednnunet.config.run import RunConfig
from fednnunet.errors import ConfigError
from fednnunet.launch.settings import class_path
from fednnunet.listing import join_nodes
from fednnunet.privacy.secure_sum import SumRules
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg
from fednnunet.server.strategy.no_exchange import NoExchange
from fednnunet.server.strategy.sampling import NodeSampler

log = logging.getLogger(__name__)

DEFAULT_LIMIT = 10
"""``max_update_norm`` of every strategy in ``conf/``: who asks for secure sums has not asked for this."""


def check_privacy(config: RunConfig) -> None:
    """Check that what is asked to be protected can be, and what is asked for can be had in spite of it.

    Raises:
        ConfigError: names the key, and what to do.
    """
    if config.trainer.iterations is not None:  # else the trainer class says it, which nodes read
        steps = config.trainer.iterations * config.strategy.local_epochs
        if steps < config.privacy.least_steps:
            raise ConfigError(
                f"privacy.least_steps={config.privacy.least_steps}: a round has {steps} training steps "
                "(trainer.iterations times strategy.local_epochs); train more of them, or lower it"
            )
    if config.privacy.scores == "nothing" and config.evaluation.cross_centre:
        raise ConfigError(
            "evaluation.cross_centre=true: privacy.scores=nothing keeps the scores at the nodes; leave one of them out"
        )
    config.privacy.check_limit()
    if config.privacy.case is not None and config.strategy.aggregation.get("proximal_mu"):
        raise ConfigError(
            "strategy.aggregation.proximal_mu does not work with privacy.case, whose steps are its own; set it to 0"
        )
    if config.privacy.node is not None:
        _check_nodes_are_hidden(config)
    if config.privacy.secure_sums is None:
        return
    if _aggregation(config) == class_path(NoExchange):
        log.warning("strategy=%s exchanges no layers: there is nothing for secure sums to add up", config.strategy.name)
        _check_models_stay(config)
        return
    _check_strategy(config)
    _check_numbers(config)
    _check_models_stay(config)


def _check_nodes_are_hidden(config: RunConfig) -> None:
    """Check that noise hides all of a node that leaves it."""
    if config.privacy.secure_sums is not None:
        if config.strategy.aggregation.get("weighting") == "num_cases":
            raise ConfigError(
                "strategy.aggregation.weighting=num_cases: nodes that noise hides (privacy.node) count alike in a sum; "
                "set it to uniform"
            )
    elif config.evaluation.cross_centre or config.external_centres:
        raise ConfigError(
            "evaluation.cross_centre=true, and external centres, need the models of nodes, which noise does not hide "
            "(privacy.node); leave them out, or use privacy.secure_sums"
        )


def _aggregation(config: RunConfig) -> str:
    return str(config.strategy.aggregation["_target_"])


def _check_strategy(config: RunConfig) -> None:
    if _aggregation(config) != class_path(AsymFedAvg):
        raise ConfigError(
            f"strategy={config.strategy.name} reads the layers of each node, which secure sums hide "
            "(privacy.secure_sums); use strategy=asym, ffe or fedprox, or privacy=none"
        )
    if config.strategy.aggregation.get("max_update_norm") not in (None, DEFAULT_LIMIT):
        raise ConfigError(
            "strategy.aggregation.max_update_norm: the server sees no single node's update where sums are secure; "
            "leave it out, and set privacy.secure_sums.max_update_norm, by which each node checks its own"
        )
    if config.exchange.dtype != "float32":
        raise ConfigError(
            f"exchange.dtype={config.exchange.dtype}: secure sums are of 32-bit integers, and need exchange.dtype="
            "float32; leave it out"
        )


def _check_numbers(config: RunConfig) -> None:
    """Check that every round can have as many nodes as a sum takes."""
    sums = config.privacy.secure_sums
    assert sums is not None
    rules = SumRules(sums.colluding, sums.min_group)
    nodes = len(config.training_centres)
    names = {number: centre.name for number, centre in enumerate(config.training_centres)}
    fraction = config.strategy.aggregation.get("fraction_train", 1.0)
    in_round = len(NodeSampler(fraction, 0).sample(names, 0, 1))
    fewest = rules.fewest_arrivals(in_round)
    reason = f"with colluding={sums.colluding} and min_group={sums.min_group}, secure sums take at least {fewest} nodes"
    expected, least = config.federation.expected_nodes, config.federation.min_nodes
    if in_round < fewest:
        what = f"{nodes} nodes train" if in_round == nodes else f"{in_round} of {nodes} nodes train in a round"
        raise ConfigError(f"privacy.secure_sums: {what}, and {reason}; have more nodes, or lower these keys")
    if expected is not None and expected - len(config.external_centres) < fewest:
        raise ConfigError(f"federation.expected_nodes={expected}: {reason}, external ones not counted; raise it")
    if least is not None and least < fewest:
        raise ConfigError(f"federation.min_nodes={least}: {reason}; raise it")
    if sums.min_group == 2:
        log.warning(
            "privacy.secure_sums.min_group=2: where two nodes alone have a layer, each can compute the other's from "
            "the average"
        )


def _check_models_stay(config: RunConfig) -> None:
    """Check that no model of a single node has to travel; where all have one network, all end with the average."""
    if not config.keeps_models:
        return
    why = (
        f"with strategy={config.strategy.name}, nodes have models of their own, which would have to leave them, and "
        "privacy.secure_sums hides these"
    )
    if config.evaluation.cross_centre:
        raise ConfigError(f"evaluation.cross_centre=true: {why}; leave it out, or use strategy=ffe or fedprox")
    external = [centre.name for centre in config.dataset.centres if centre.external]
    if external:
        log.warning("external centres (%s) are not scored: %s; use strategy=ffe or fedprox", join_nodes(external), why)

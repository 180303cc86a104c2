"""Noise of a node's rounds that hides its cases, or the node itself; and what the rounds cost."""

from __future__ import annotations

import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from fednnunet.config.privacy import CaseNoiseConfig, NodeNoiseConfig, NoiseConfig, SecureSumsConfig
from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.messages import NoiseReport, TrainRequest
from fednnunet.files import write_private
from fednnunet.node.rounds import epochs_of
from fednnunet.node.settings import NOISE_KEY, NodeSettings
from fednnunet.privacy.accounting import Releases, epsilon_of, noise_for, pld_epsilon
from fednnunet.privacy.ledger import Ledger, Unit
from fednnunet.privacy.masks import SEED_BYTES, derive_seed
from fednnunet.privacy.noise import add_noise
from fednnunet.privacy.ring import FixedPoint
from fednnunet.privacy.secure_sum import SumRules, digest_of
from fednnunet.training.case_gradients import CaseNoise, CaseSteps, check_hides_cases
from fednnunet.training.network_state import named_tensors, no_running_statistics, trained_parameters

LARGEST_DELTA = 0.1
"""Largest expected number of cases for which epsilon does not hold: delta times all cases."""


@dataclass(frozen=True)
class FoldNoise:
    """The noise of a fold's rounds.

    Attributes:
        noise: noise multiplier.
        rate: rate of sampling.
        delta: probability that epsilon does not hold.
        cases: digests of the training cases.
    """

    noise: float
    rate: float
    delta: float
    cases: list[str]


class RoundNoise(ABC):
    """Noise of a run's rounds, and the account that is kept of it.

    Args:
        settings: settings of the node.
        config: the noise.
    """

    unit: Unit

    def __init__(self, settings: NodeSettings, config: NoiseConfig) -> None:
        self.limit = settings.config.privacy.max_epsilon
        self.folds = len(settings.config.folds)
        self.ledger = Ledger(settings.ledger)
        self._noise = config
        self._secret = secret_in(settings.folder / NOISE_KEY)
        self._run = derive_seed(self._secret, "run").hex()[:16]
        self._fold: FoldNoise | None = None

    @property
    def fold(self) -> FoldNoise:
        """Noise of the fold whose trainer was built last."""
        assert self._fold is not None, "a fold begins when its trainer is built"
        return self._fold

    @abstractmethod
    def begin_fold(self, trainer: nnUNetTrainer, digests: Mapping[str, str], local_epochs: int) -> NoiseReport:
        """Compute the noise of a fold, and what it costs.

        Args:
            trainer: trainer of the fold.
            digests: nnU-Net's name of a case to a digest of it.
            local_epochs: epochs of a round.

        Raises:
            ConfigError: no such noise, a trainer that it cannot be added to, or more than the node allows in the end.
        """

    @abstractmethod
    def made(self, trainer: nnUNetTrainer, body: TrainRequest) -> Releases:
        """Noisy sums of a round."""

    def steps(self, trainer: nnUNetTrainer) -> CaseSteps | None:
        """Training steps in the place of the trainer's, after its ``on_train_start()``; None to leave those."""
        return None

    def check_round(self, trainer: nnUNetTrainer, body: TrainRequest, received: Mapping[str, object]) -> None:
        """Refuse a round before it trains that would cost more than the node allows.

        Args:
            trainer: trainer of the fold.
            body: the request.
            received: layers beside it, by name.

        Raises:
            ProtocolError: it would; says how much.
        """
        if self.limit is None:
            return
        before, after = (
            self.ledger.epsilon(self.unit, self.fold.cases, self.fold.delta, more)
            for more in ((), [self.made(trainer, body)])
        )
        if after > self.limit:
            raise ProtocolError(
                f"round {body.server_round} would bring epsilon from {before:.2f} to {after:.2f}; at most "
                f"{self.limit:g} is allowed here (privacy.max_epsilon)"
            )

    def start_round(self, network: nn.Module, body: TrainRequest) -> None:  # noqa: B027  steps need no start
        """The round's layers are loaded."""

    def check_layers(self, layers: Sequence[str], trained_for: Sequence[str]) -> None:  # noqa: B027  steps hide all
        """Refuse to send layers that the noise of a finished round does not hide.

        Args:
            layers: names of those that are asked for.
            trained_for: names of those that were, when the round was trained.

        Raises:
            ProtocolError: there are others.
        """

    def finish_round(self, trainer: nnUNetTrainer, body: TrainRequest) -> None:
        """Write a trained round into the ledger, before its layers leave."""
        made = self.made(trainer, body)
        self.ledger.spend(self.unit, self.fold.cases, self.fold.delta, made, self._run, body.fold, body.server_round)

    def _begin(
        self, trainer: nnUNetTrainer, cases: list[str], rate: float, releases: int, delta: float, units: float | None
    ) -> NoiseReport:
        """Compute the noise, and report it; arguments as in :class:`NoiseReport`."""
        noise = noise_multiplier(self._noise, rate, releases, delta)
        self._fold = FoldNoise(noise, rate, delta, cases)
        whole = Releases(noise, rate, releases)
        total = self.ledger.epsilon(self.unit, cases, delta, [whole], without_run=self._run)
        if self.limit is not None and total > self.limit:
            raise ConfigError(
                f"the run would bring epsilon to {total:.2f}; at most {self.limit:g} is allowed here "
                "(privacy.max_epsilon)"
            )
        return NoiseReport(
            hides=self.unit,
            noise=noise,
            releases=releases,
            epsilon=epsilon_of(noise, rate, releases, delta),
            tighter_epsilon=pld_epsilon([whole], delta),
            total_epsilon=total,
            delta=delta,
            parameters=sum(parameter.numel() for parameter in trained_parameters(trainer.network).values()),
            units=units,
        )


class CaseRounds(RoundNoise):
    """Rounds whose every step hides single cases (:mod:`fednnunet.training.case_gradients`)."""

    unit = "case"

    def __init__(self, settings: NodeSettings, config: CaseNoiseConfig) -> None:
        super().__init__(settings, config)
        self.config = config

    def begin_fold(self, trainer: nnUNetTrainer, digests: Mapping[str, str], local_epochs: int) -> NoiseReport:
        check_hides_cases(trainer)
        cases = [digests[case] for case in trainer.do_split()[0]]
        most = LARGEST_DELTA / len(cases)
        delta = self.config.delta or most
        if delta > most:
            raise ConfigError(
                f"privacy.case.delta={delta:g} is more than {most:.2g}, a tenth of one over {len(cases)} cases: a "
                "whole case could be revealed; set it to null"
            )
        rate = min(1.0, self.config.cases / len(cases))
        # A case is trained on in all folds but one: counted as if in all.
        releases = trainer.num_epochs * trainer.num_iterations_per_epoch * self.folds
        return self._begin(trainer, cases, rate, releases, delta, rate * len(cases))

    def made(self, trainer: nnUNetTrainer, body: TrainRequest) -> Releases:
        """One noisy sum of gradients a step."""
        steps = epochs_of(trainer, body) * trainer.num_iterations_per_epoch
        return Releases(self.fold.noise, self.fold.rate, steps)

    def steps(self, trainer: nnUNetTrainer) -> CaseSteps:
        noise = CaseNoise(self.config.clip, self.fold.noise, self.fold.rate, self.config.patches)
        return CaseSteps(trainer, noise, derive_seed(self._secret, "case", trainer.fold))


class NodeRounds(RoundNoise):
    """Rounds whose update hides the node: it is clipped over all layers that leave, and noise is added to it.

    Where layers are summed securely, honest members add so much that the sum has the noise of one (Kairouz, Liu,
    Steinke 2021); the server sees nothing else. Where it sees single layers, each node adds all of the noise.
    """

    unit = "node"

    def __init__(self, settings: NodeSettings, config: NodeNoiseConfig) -> None:
        super().__init__(settings, config)
        self.config, self.sums = config, settings.config.privacy.secure_sums
        self._local_epochs = 1
        self._start: dict[str, torch.Tensor] = {}

    def begin_fold(self, trainer: nnUNetTrainer, digests: Mapping[str, str], local_epochs: int) -> NoiseReport:
        no_running_statistics(trainer.network, "privacy.node")
        self._local_epochs = local_epochs
        cases = [digests[case] for case in trainer.do_split()[0]]
        releases = math.ceil(trainer.num_epochs / local_epochs) * self.folds
        return self._begin(trainer, cases, 1.0, releases, self.config.delta, None)

    def made(self, trainer: nnUNetTrainer, body: TrainRequest) -> Releases:
        """One noisy update."""
        return Releases(self.fold.noise, 1.0, 1)

    def check_round(self, trainer: nnUNetTrainer, body: TrainRequest, received: Mapping[str, object]) -> None:
        """As for every noise.

        Raises:
            ProtocolError: too expensive; a round of another length than the noise is for; or layers that cannot be
                clipped, as the server did not say from where, or weighs the node differently from others.
        """
        super().check_round(trainer, body, received)
        unknown = sorted(set(body.layers) - set(received))
        if body.epochs != self._local_epochs:
            raise ProtocolError(f"a round of {body.epochs} epochs was asked for; the noise is for {self._local_epochs}")
        if unknown:
            raise ProtocolError(f"layer {unknown[0]} was asked for, but not sent: its change cannot be clipped")
        if body.most_cases is not None:
            raise ProtocolError("nodes that noise hides count alike in a sum, but layers were to be weighted by cases")

    def check_layers(self, layers: Sequence[str], trained_for: Sequence[str]) -> None:
        others = sorted(set(layers) - set(trained_for))
        if others:
            raise ProtocolError(f"layer {others[0]} was not asked for when the round was trained, and has no noise")

    def start_round(self, network: nn.Module, body: TrainRequest) -> None:
        tensors = dict(named_tensors(network))
        self._start = {layer: tensors[layer].detach().clone() for layer in body.layers}

    def finish_round(self, trainer: nnUNetTrainer, body: TrainRequest) -> None:
        """Clip the update and add noise to it, in the network itself; then write it into the ledger.

        Raises:
            ProtocolError: the update is not finite.
        """
        if not body.layers:
            return  # nothing leaves
        tensors = dict(named_tensors(trainer.network))
        updates = {layer: (tensors[layer].detach() - start).cpu().contiguous() for layer, start in self._start.items()}
        norm = float(torch.nn.utils.get_total_norm(list(updates.values())))
        if not math.isfinite(norm):
            raise ProtocolError("the update of the round is not finite")
        scale = min(1.0, self.config.clip / norm) if norm else 1.0
        arrays = {layer: update.mul_(scale).numpy() for layer, update in updates.items()}
        seed = derive_seed(
            self._secret,
            "node",
            body.fold,
            body.server_round,
            digest_of([*arrays.values(), *(start.cpu().numpy() for start in self._start.values())]),
        )
        deviations = self._deviations(body, sum(array.size for array in arrays.values()))
        with torch.no_grad():
            for layer, array in arrays.items():
                add_noise(array, deviations[layer], derive_seed(seed, layer))
                tensors[layer].copy_(self._start[layer] + torch.from_numpy(array).to(tensors[layer].device))
        self._start = {}
        super().finish_round(trainer, body)

    def _deviations(self, body: TrainRequest, values: int) -> dict[str, float]:
        """Standard deviation of the noise on each layer."""
        alone = self.fold.noise * self.config.clip
        deviations = dict.fromkeys(body.layers, alone)
        if self.sums is not None:
            for one in body.classes:
                share = deviation_share(self.sums, len(one.members), values, self.config.clip)
                deviations.update(dict.fromkeys(one.layers, share * alone))
        return deviations


def deviation_share(sums: SecureSumsConfig, members: int, values: int, clip: float) -> float:
    """What a member adds of a sum's noise, as a fraction of its standard deviation.

    Members that help the server may add none, and some may be missing. Integers that stand for floats move an update
    by up to half a step per value (Kairouz, Liu, Steinke 2021), for which there is a little more.

    Args:
        sums: rules of the sums.
        members: members of the class.
        values: number of values of the update.
        clip: its largest norm.
    """
    honest = SumRules(sums.colluding, sums.min_group).fewest_arrivals(members) - sums.colluding
    rounding = math.sqrt(values) / (2 * FixedPoint(members, sums.limit).scale)
    return (1 + rounding / clip) / math.sqrt(honest)


def noise_multiplier(config: NoiseConfig, rate: float, releases: int, delta: float) -> float:
    """The noise multiplier that is configured, or that keeps the epsilon that is.

    Raises:
        ConfigError: there is no such noise.
    """
    if config.noise is not None:
        return config.noise
    assert config.epsilon is not None, "checked with the configuration"
    try:
        return noise_for(config.epsilon, rate, releases, delta)
    except ValueError as error:
        raise ConfigError(f"privacy: {error}") from None


def secret_in(file: Path) -> bytes:
    """The secret in ``file``, which is made with mode 0600 where it does not exist."""
    if not file.is_file():
        write_private(file, secrets.token_bytes(SEED_BYTES))
    return file.read_bytes()

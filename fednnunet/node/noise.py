"""Noise of a node's rounds that hides its cases, or the node itself; and what the rounds cost."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from fednnunet.config.privacy import CaseNoiseConfig
from fednnunet.errors import ConfigError, ProtocolError
from fednnunet.exchange.messages import NoiseReport, TrainRequest
from fednnunet.node.rounds import epochs_of
from fednnunet.node.settings import NOISE_KEY, NodeSettings
from fednnunet.privacy.accounting import Releases, epsilon_of, noise_for, pld_epsilon
from fednnunet.privacy.ledger import Ledger
from fednnunet.privacy.masks import SEED_BYTES, derive_seed
from fednnunet.training.case_gradients import CaseNoise, CaseSteps, check_hides_cases
from fednnunet.training.network_state import trained_parameters


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


class CaseRounds:
    """Rounds whose every step hides single cases.

    Args:
        settings: settings of the node.
        config: the noise; ``settings.config.privacy.case``.
    """

    def __init__(self, settings: NodeSettings, config: CaseNoiseConfig) -> None:
        self.config, self.limit = config, settings.config.privacy.max_epsilon
        self.folds = len(settings.config.folds)
        self.ledger = Ledger(settings.ledger)
        self._secret = secret_in(settings.folder / NOISE_KEY)
        self._run = derive_seed(self._secret, "run").hex()[:16]
        self._fold: FoldNoise | None = None

    def begin_fold(self, trainer: nnUNetTrainer, digests: Mapping[str, str]) -> NoiseReport:
        """Compute the noise of a fold, and what it costs.

        Args:
            trainer: trainer of the fold.
            digests: nnU-Net's name of a case to a digest of it.

        Raises:
            ConfigError: no such noise, a trainer that cannot hide cases, or more than the node allows in the end.
        """
        check_hides_cases(trainer)
        cases = [digests[case] for case in trainer.do_split()[0]]
        rate = min(1.0, self.config.cases / len(cases))
        delta = self.config.delta or 0.1 / len(cases)
        if delta >= 1 / len(cases):
            raise ConfigError(
                f"privacy.case.delta={delta:g} would allow to reveal one of {len(cases)} cases; set it below "
                f"{1 / len(cases):.2g}, or to null"
            )
        # A case is trained on in all folds but one: counted as if in all.
        releases = trainer.num_epochs * trainer.num_iterations_per_epoch * self.folds
        noise = noise_multiplier(self.config, rate, releases, delta)
        self._fold = FoldNoise(noise, rate, delta, cases)
        whole = Releases(noise, rate, releases)
        total = self.ledger.epsilon("case", cases, delta, [whole], without_run=self._run)
        if self.limit is not None and total > self.limit:
            raise ConfigError(
                f"the run would bring epsilon to {total:.2f}; at most {self.limit:g} is allowed here "
                "(privacy.max_epsilon)"
            )
        return NoiseReport(
            hides="case",
            noise=noise,
            releases=releases,
            epsilon=epsilon_of(noise, rate, releases, delta),
            tighter_epsilon=pld_epsilon([whole], delta),
            total_epsilon=total,
            delta=delta,
            parameters=sum(parameter.numel() for parameter in trained_parameters(trainer.network).values()),
            units=rate * len(cases),
        )

    def check_round(self, trainer: nnUNetTrainer, body: TrainRequest) -> None:
        """Refuse a round before it trains that would cost more than the node allows.

        Raises:
            ProtocolError: it would; says how much.
        """
        if self.limit is None:
            return
        fold = self._of_fold()
        before = self.ledger.epsilon("case", fold.cases, fold.delta)
        after = self.ledger.epsilon("case", fold.cases, fold.delta, [self._made(trainer, body)])
        if after > self.limit:
            raise ProtocolError(
                f"round {body.server_round} would bring epsilon from {before:.2f} to {after:.2f}; at most "
                f"{self.limit:g} is allowed here (privacy.max_epsilon)"
            )

    def steps(self, trainer: nnUNetTrainer) -> CaseSteps:
        """The training steps of the fold; ``trainer`` after its ``on_train_start()``."""
        fold = self._of_fold()
        noise = CaseNoise(self.config.clip, fold.noise, fold.rate, self.config.patches)
        return CaseSteps(trainer, noise, derive_seed(self._secret, "case", trainer.fold))

    def spend(self, trainer: nnUNetTrainer, body: TrainRequest) -> None:
        """Write a trained round into the ledger, before its layers leave."""
        fold = self._of_fold()
        made = self._made(trainer, body)
        self.ledger.spend("case", fold.cases, fold.delta, made, self._run, body.fold, body.server_round)

    def _made(self, trainer: nnUNetTrainer, body: TrainRequest) -> Releases:
        fold = self._of_fold()
        return Releases(fold.noise, fold.rate, epochs_of(trainer, body) * trainer.num_iterations_per_epoch)

    def _of_fold(self) -> FoldNoise:
        assert self._fold is not None, "a fold begins when its trainer is built"
        return self._fold


def noise_multiplier(config: CaseNoiseConfig, rate: float, releases: int, delta: float) -> float:
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
        partial = file.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
            new.write(secrets.token_bytes(SEED_BYTES))
        os.replace(partial, file)
    return file.read_bytes()

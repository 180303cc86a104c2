"""What the noise of a run means: said before training, and refused where nothing could be learned."""

from __future__ import annotations

import math

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import NoiseReport
from fednnunet.privacy.accounting import noise_to_signal
from fednnunet.server.session import Session

USELESS = 20.0
"""Noise over signal beyond which a run is refused: at 9 to 17, a phantom's DSC fell by 0.2 to 0.3 already."""
EXPECTED = (
    (1.0, "expect nearly the accuracy without it"),
    (5.0, "expect to lose some accuracy"),
    (USELESS, "expect to lose much accuracy"),
)
"""Largest ratio of noise to signal, and what to expect."""
STRONG, WEAK = 1.0, 10.0
"""Epsilons up to which protection counts as strong, and beyond which as weak (Ponomareva et al. 2023, section 5.2)."""


def check_noise(session: Session) -> None:
    """Tell what the nodes' noise hides, what it costs, and what to expect of training with it.

    Raises:
        ConfigError: more noise than can be of use, unless that is accepted.
    """
    federation = session.federation
    lines = {}
    for node in federation.training:
        report = federation.preprocessed[node].noise
        if report is None:
            continue
        nodes = float(len(federation.training))
        if session.settings.secure_run is None:  # each node adds all of the noise, not its share
            nodes = math.sqrt(nodes)
        ratio = noise_to_signal(report.noise, report.parameters, report.units or nodes)
        name = federation.name(node)
        if ratio > USELESS and not session.settings.accept_useless_noise:
            raise ConfigError(
                f"node {name}: the noise would be {ratio:.0f} times as large as what it hides ({report.parameters:,} "
                f"trained values, {_units(report, session)} in a sum), so that nothing would be learned; train fewer "
                f"layers (trainer.train_layers), fewer epochs, or with a larger epsilon; or set "
                f"privacy.{report.hides}.accept_useless=true"
            )
        said = describe_noise(report, ratio, _units(report, session))
        session.recorder.noise[name] = {**report.model_dump(), "noise_to_signal": ratio, "meaning": said}
        lines[name] = [f"node {name}: {said}"]
    largest = max((noise["epsilon"] for noise in session.recorder.noise.values()), default=0.0)
    session.recorder.on_node_messages(lines, f"{len(lines)} nodes add noise, with epsilon up to {largest:.2f}")


def describe_noise(report: NoiseReport, ratio: float, units: str) -> str:
    """Two sentences: figures, and what to expect.

    Args:
        report: the noise.
        ratio: norm of the noise over that of what it hides.
        units: what is in a sum.
    """
    tighter = "" if report.tighter_epsilon is None else f" ({report.tighter_epsilon:.2f} by PLD)"
    before = report.total_epsilon > report.epsilon * 1.0001
    total = f", {report.total_epsilon:.2f} with earlier runs on the same data" if before else ""
    expect = next((text for limit, text in EXPECTED if ratio <= limit), "expect nothing to be learned")
    grade = "strong" if report.epsilon <= STRONG else "a promise with limits" if report.epsilon <= WEAK else "weak"
    return (
        f"noise hides each {report.hides}: noise multiplier {report.noise:.3g}, {report.releases} noisy sums of "
        f"{units}, epsilon {report.epsilon:.2f}{tighter}{total} at delta {report.delta:.1g} ({grade}). Noise over "
        f"signal is {ratio:.2g} with {report.parameters:,} trained values: {expect}"
    )


def _units(report: NoiseReport, session: Session) -> str:
    return f"{len(session.federation.training)} nodes" if report.units is None else f"{report.units:g} cases"

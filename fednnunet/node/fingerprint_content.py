"""What of its fingerprint a node sends, where the server asks for it and the node's own configuration allows it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from fednnunet.errors import ConfigError, ProtocolError, first_problem
from fednnunet.exchange.messages import FingerprintRequest
from fednnunet.fingerprint.bins import IntensityBins, IntensityRange
from fednnunet.fingerprint.extract import extract_contribution, intensity_ranges
from fednnunet.fingerprint.quantise import quantise_fingerprint, quantise_intensities, quantise_range
from fednnunet.fingerprint.schema import DatasetFingerprint
from fednnunet.fingerprint.window import needed_channels, open_tails, within_window
from fednnunet.node.case_counts import counts_of

if TYPE_CHECKING:
    from fednnunet.node.describe import NodeDataset

LISTS_CASES = ("contribution", "statistics")
"""Contents with sizes of every case."""
HOLDS_INTENSITIES = ("ranges", "contribution", "intensities", "statistics")


def content_of(dataset: NodeDataset, request: FingerprintRequest) -> dict[str, Any]:
    """Fields of the reply; none where nothing was asked for.

    Raises:
        ConfigError: the server asks for more than this node's configuration allows.
        ProtocolError: the request does not fit the dataset.
    """
    _check_allowed(dataset, request)
    match request.content:
        case "ranges":
            return {"intensity_ranges": _ranges(dataset, request)}
        case "contribution" | "intensities":
            return {"fingerprint": _contribution(dataset, request)}
        case "counts":
            return {"counts": counts_of(dataset, request)}
    fingerprint = dataset.fingerprint()  # cached for planning, also where the server does not ask for it
    return {"fingerprint": fingerprint} if request.content == "statistics" else {}


def _check_allowed(dataset: NodeDataset, request: FingerprintRequest) -> None:
    config = dataset.config.fingerprint
    asked = (
        ("geometry", config.geometry, "sums", request.content in LISTS_CASES, "the sizes of every case"),
        (
            "intensities",
            config.intensities,
            "needed",
            request.content in HOLDS_INTENSITIES and not request.needed,
            "the intensities of all channels",
        ),
    )
    for key, own, strict, asks_for_more, what in asked:
        if own == strict and asks_for_more:
            raise ConfigError(
                f"fingerprint.{key}={strict} here, but the server asks for {what}; set fingerprint.{key}={strict} there"
            )
    if config.precision == "quantised" and request.content == "statistics":
        raise ConfigError("fingerprint.precision=quantised here, but the server asks for exact statistics")


# intensities -------------------------------------------------------------------------------------------


def _ranges(dataset: NodeDataset, request: FingerprintRequest) -> dict[str, Any]:
    needed = needed_channels(dataset.channel_names)
    if request.needed and not needed:
        return {}
    found = dataset.cached("intensity_ranges", lambda: _dump(intensity_ranges(dataset.images, dataset.workers)))
    ranges = {channel: IntensityRange(**r) for channel, r in found.items()}
    if request.needed:
        return _dump({channel: within_window(r) for channel, r in ranges.items() if channel in needed})
    if dataset.config.fingerprint.precision == "quantised":
        return _dump({channel: quantise_range(r) for channel, r in ranges.items()})
    return found


def _contribution(dataset: NodeDataset, request: FingerprintRequest) -> dict[str, Any]:
    bins = _bins(dataset, request)
    total = request.total_cases or 0
    key = hashlib.sha256(json.dumps([total, request.bins], sort_keys=True).encode()).hexdigest()[:12]
    found = dataset.cached(
        f"contribution_{key}", lambda: extract_contribution(dataset.images, total, bins, dataset.workers).to_dict()
    )
    contribution = DatasetFingerprint.parse(found, "the cache")
    intensities = contribution.intensities or {}
    if request.needed:
        intensities = {channel: open_tails(of_channel) for channel, of_channel in intensities.items()}
    quantised = dataset.config.fingerprint.precision == "quantised"
    if request.content == "intensities":
        intensities = quantise_intensities(intensities) if quantised and not request.needed else intensities
        return {"intensities": _dump(intensities)}
    contribution = contribution.model_copy(update={"intensities": intensities})
    return (quantise_fingerprint(contribution) if quantised else contribution).to_dict()


def _bins(dataset: NodeDataset, request: FingerprintRequest) -> dict[str, IntensityBins]:
    channels = dataset.channel_names
    if request.total_cases is None or request.total_cases < len(dataset.raw.cases):
        raise ProtocolError(f"the server says that there are {request.total_cases} training cases in all")
    try:
        bins = {channel: IntensityBins.model_validate(b) for channel, b in (request.bins or {}).items()}
    except ValidationError as error:
        raise ProtocolError(f"the server sent malformed bins: {first_problem(error, 'bins')}") from None
    expected = needed_channels(channels) if request.needed else list(channels)
    missing = sorted(set(expected) - set(bins))
    if missing:
        raise ProtocolError(f"the server sent no bins for channel {missing[0]}")
    return {channel: bins[channel] for channel in expected}


def _dump(models: Mapping[str, BaseModel]) -> dict[str, Any]:
    return {name: model.model_dump() for name, model in models.items()}

"""What segmenting needs of ``plans.json`` and ``dataset.json``: this leaves a hospital, and this may come in."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fednnunet.datasets.description import check_description
from fednnunet.errors import DataError, first_problem, one_line
from fednnunet.models.allowed_names import check_names, check_reader
from fednnunet.models.json_file import MOST_BYTES
from fednnunet.models.trained_model import described

INTENSITIES = "foreground_intensity_properties_per_channel"
INTENSITIES_OF = {"CTNormalization": ("mean", "std", "percentile_00_5", "percentile_99_5")}
"""What a normalization reads of the intensities of all cases; others read nothing, and no extreme voxel is needed."""
DIMENSIONS = 3
_LONGEST, _DEEPEST, _LARGEST = 64, 6, 1e5
_MOST_LAYERS = 1000

Name = Annotated[str, Field(max_length=200)]
Size = Annotated[int, Field(ge=1, le=8192)]
Spacing = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Architecture(_Part):
    network_class_name: Name
    arch_kwargs: dict[Name, Any]
    kw_requires_import: list[Name] = Field(alias="_kw_requires_import", max_length=_LONGEST)


class _Configuration(_Part):
    """What nnU-Net reads of a configuration when it segments, or goes on with training."""

    data_identifier: Name
    preprocessor_name: Name
    batch_size: Annotated[int, Field(ge=1, le=100_000)]
    patch_size: list[Size] = Field(min_length=2, max_length=DIMENSIONS)
    spacing: list[Spacing] = Field(min_length=2, max_length=DIMENSIONS)
    normalization_schemes: list[Name] = Field(min_length=1, max_length=1000)
    use_mask_for_norm: list[bool] = Field(min_length=1, max_length=1000)
    resampling_fn_data: Name
    resampling_fn_seg: Name
    resampling_fn_probabilities: Name
    resampling_fn_data_kwargs: dict[Name, Any]
    resampling_fn_seg_kwargs: dict[Name, Any]
    resampling_fn_probabilities_kwargs: dict[Name, Any]
    architecture: _Architecture
    batch_dice: bool
    previous_stage: Name | None = None


class _Plans(_Part):
    dataset_name: Name
    plans_name: Name
    image_reader_writer: Name
    transpose_forward: list[Literal[0, 1, 2]] = Field(min_length=DIMENSIONS, max_length=DIMENSIONS)
    transpose_backward: list[Literal[0, 1, 2]] = Field(min_length=DIMENSIONS, max_length=DIMENSIONS)
    original_median_spacing_after_transp: list[Spacing] = Field(min_length=DIMENSIONS, max_length=DIMENSIONS)
    label_manager: Name = "LabelManager"


def portable_description(dataset_json: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The part of ``dataset.json`` by which nnU-Net segments, checked: no list of cases, no path.

    Raises:
        DataError: nnU-Net would take it for something else; says what.
    """
    found = described(dataset_json)
    if "modality" in found:
        found.setdefault("channel_names", found["modality"])
        del found["modality"]
    _check_size(found, where)
    check_description(found, where)
    check_reader(found.get("overwrite_image_reader_writer"), where)
    return found


def portable_plans(
    plans: Mapping[str, Any], configuration: str, channels: int, where: str, dataset_name: str | None = None
) -> dict[str, Any]:
    """Plans of one configuration, with what it inherits, and of the intensities what its normalization reads.

    Args:
        plans: nnU-Net's plans, of this version or an older one.
        configuration: the one to keep.
        channels: number of channels in ``dataset.json``.
        where: named in errors.
        dataset_name: what ``dataset_name`` becomes; stays as it is if None.

    Raises:
        DataError: plans that nnU-Net cannot segment with, or that name what is none of nnU-Net's own.
    """
    _check_size(plans, where)
    whole = _resolved(plans, configuration, where)
    try:
        top = _Plans.model_validate(_as_json({"original_median_spacing_after_transp": [1.0] * 3, **plans}))
        chosen = _Configuration.model_validate(_as_json(whole))
    except ValidationError as error:
        raise DataError(f"{where}: {first_problem(error, 'the plans')}") from None
    kept = chosen.model_dump(by_alias=True, exclude_none=True)
    kept["architecture"]["_kw_requires_import"] = chosen.architecture.kw_requires_import
    check_names(kept, top.model_dump(), where)
    _check_configuration(chosen, channels, where)
    forward, backward = top.transpose_forward, top.transpose_backward
    if sorted(forward) != [0, 1, 2] or [forward[axis] for axis in backward] != [0, 1, 2]:
        raise DataError(f"{where}: transpose_backward must undo transpose_forward, but they are {backward}, {forward}")
    result = top.model_dump()
    result["dataset_name"] = dataset_name or top.dataset_name
    result["configurations"] = {configuration: kept}
    result[INTENSITIES] = _intensities(plans, chosen.normalization_schemes, where)
    return result


def _resolved(plans: Mapping[str, Any], configuration: str, where: str) -> dict[str, Any]:
    """The configuration with what it inherits; nnU-Net before 2.5 named no architecture, which it makes here."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not all(isinstance(one, dict) for one in configurations.values()):
        raise DataError(f"{where}: configurations must be an object of objects")
    if configuration not in configurations:
        raise DataError(f"{where} has no configuration {configuration}, only {', '.join(map(str, configurations))}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Detected old nnU-Net plans format"
            return dict(PlansManager(dict(plans)).get_configuration(configuration).configuration)
    except (KeyError, ValueError, TypeError, RuntimeError, RecursionError, AttributeError) as error:
        lacks = f"it lacks {error.args[0]}" if isinstance(error, KeyError) and error.args else one_line(str(error))
        raise DataError(f"{where}: nnU-Net cannot take configuration {configuration}: {lacks[:200]}") from None


def _check_configuration(chosen: _Configuration, channels: int, where: str) -> None:
    dimensions = len(chosen.patch_size)
    if len(chosen.spacing) != dimensions:
        raise DataError(f"{where}: patch_size has {dimensions} axes and spacing {len(chosen.spacing)}")
    if math.prod(chosen.patch_size) > 2**28:
        raise DataError(f"{where}: patch_size {chosen.patch_size} is too large")
    for field in ("normalization_schemes", "use_mask_for_norm"):
        if len(getattr(chosen, field)) != channels:
            raise DataError(
                f"{where}: {field} is of {len(getattr(chosen, field))} channels, dataset.json of {channels}"
            )
    arguments = chosen.architecture.arch_kwargs
    _check_bounds(arguments, f"{where}: arch_kwargs")
    for what in ("data", "seg", "probabilities"):
        field = f"resampling_fn_{what}_kwargs"
        _check_bounds(getattr(chosen, field), f"{where}: {field}")
    stages = arguments.get("n_stages")
    if type(stages) is not int or not 1 <= stages <= _LONGEST:
        raise DataError(f"{where}: n_stages must be a number of stages, 1 to {_LONGEST}")
    operator = str(arguments.get("conv_op", ""))
    if not operator.endswith(f"{dimensions}d"):
        raise DataError(f"{where}: conv_op {one_line(operator)[:80]} is not of the {dimensions} axes of patch_size")
    layers = 0
    for field in ("n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder"):
        number = arguments.get(field, 0)
        numbers = number if isinstance(number, list) else [number] * stages
        if any(type(one) is not int or one < 0 for one in numbers):
            raise DataError(f"{where}: {field} must be numbers of layers")
        layers += sum(numbers)
    if layers > _MOST_LAYERS:
        raise DataError(f"{where}: the network has {layers} layers, more than the {_MOST_LAYERS} that it may have")


def _check_bounds(value: Any, where: str, depth: int = 0) -> None:
    """Check that what is handed to nnU-Net's functions is small, so that none of it fills memory or never ends."""
    if isinstance(value, dict | list):
        if len(value) > _LONGEST or depth > _DEEPEST:
            raise DataError(f"{where} is too long, or nested too deeply")
        for one in value.values() if isinstance(value, dict) else value:
            _check_bounds(one, where, depth + 1)
    elif isinstance(value, str) and len(value) > 200:
        raise DataError(f"{where} holds a text of {len(value)} characters")
    elif isinstance(value, int | float) and not abs(value) <= _LARGEST:
        raise DataError(f"{where} holds the number {value:g}, beyond {_LARGEST:g}")


def _intensities(plans: Mapping[str, Any], schemes: list[str], where: str) -> dict[str, dict[str, float]]:
    known = plans.get(INTENSITIES, plans.get("foreground_intensity_properties_by_modality"))
    kept: dict[str, dict[str, float]] = {}
    for channel, scheme in enumerate(schemes):
        needed = INTENSITIES_OF.get(scheme, ())
        values = known.get(str(channel), {}) if isinstance(known, dict) else {}
        kept[str(channel)] = {}
        for name in needed:
            value = values.get(name) if isinstance(values, dict) else None
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise DataError(f"{where}: {INTENSITIES} has no {name} of channel {channel}, which {scheme} needs")
            kept[str(channel)][name] = value
    return kept


def _as_json(value: Any) -> Any:
    """Tuples and numpy's numbers, which ``ConfigurationManager`` may make of older plans, as JSON has them."""
    return json.loads(json.dumps(value, default=lambda one: one.tolist()))


def _check_size(content: Mapping[str, Any], where: str) -> None:
    if len(json.dumps(content, default=str)) > MOST_BYTES:
        raise DataError(f"{where} is larger than the {MOST_BYTES} bytes that it may have")

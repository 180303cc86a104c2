"""What labels mean, in the codes that DICOM segmentations carry.

``codes.json`` maps label names to concepts of SNOMED CT, by their keywords in pydicom's dictionary, so that no code is
typed by hand; a user's file of the same form comes before it. A concept that the dictionary lacks is given as code,
scheme and meaning. A name that neither has is coded as Tissue, as 3D Slicer does; its text is the segment's label.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from fednnunet.dicom.library import require_dicom
from fednnunet.errors import ConfigError, first_problem

Concept = str | tuple[str, str, str]
"""Keyword in pydicom's dictionary of SNOMED CT, or code, scheme and meaning."""


class Meaning(BaseModel):
    """What a label means.

    Attributes:
        category: AnatomicalStructure, MorphologicallyAbnormalStructure … (DICOM CID 7150).
        type: what it is (CID 7151 and others).
        region: where it is; for lesions.
        laterality: Left or Right.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: Concept
    type: Concept
    region: Concept | None = None
    laterality: Concept | None = None

    @property
    def concepts(self) -> list[Concept]:
        """All that are given."""
        given = (self.category, self.type, self.region, self.laterality)
        return [concept for concept in given if concept is not None]


UNKNOWN = Meaning(category="Tissue", type="Tissue")
"""For a label of which nothing is known."""


@dataclass(frozen=True)
class Codes:
    """Meanings of labels by name; upper case, ``_``, ``-`` and spaces are all one.

    Attributes:
        meanings: name as :func:`plain_name` gives it, to what it means.
    """

    meanings: Mapping[str, Meaning]

    def of(self, label: str) -> Meaning:
        """What a label means; :data:`UNKNOWN` for one that is not listed."""
        return self.meanings.get(plain_name(label), UNKNOWN)


def load_codes(own: Path | None = None) -> Codes:
    """The package's table, and what a user's file adds to it or replaces in it.

    Args:
        own: JSON file: label name to its category and type, and region and laterality where they matter.

    Raises:
        ConfigError: the file cannot be read, is something else, or names a concept that is unknown; says which. Or the
            extra ``dicom`` is not installed.
    """
    require_dicom()
    meanings = _parse(files("fednnunet.dicom").joinpath("codes.json").read_bytes(), "codes.json")
    if own is not None:
        try:
            content = own.read_bytes()
        except OSError as error:
            raise ConfigError(f"{own} cannot be read: {error.strerror}") from None
        added = _parse(content, str(own))
        for name, meaning in added.items():
            for concept in meaning.concepts:
                try:
                    coded(concept)
                except ValueError as error:
                    raise ConfigError(f"{own}: {name}: {error}") from None
        meanings |= added
    return Codes(meanings)


def _parse(content: bytes, where: str) -> dict[str, Meaning]:
    try:
        listed = TypeAdapter(dict[str, Meaning]).validate_json(content)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error, 'the file')}") from None
    return {plain_name(name): meaning for name, meaning in listed.items()}


def plain_name(label: str) -> str:
    """A label's name in lower case, with single spaces between its words.

    >>> plain_name("Left_Kidney"), plain_name("leftKidney")
    ('left kidney', 'left kidney')
    """
    return re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)).strip().lower()


def coded(concept: Concept) -> Any:
    """A concept as pydicom's ``Code``.

    Raises:
        ValueError: a keyword that the dictionary lacks, or a code that is empty or too long for DICOM.
    """
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    if not isinstance(concept, str):
        value, scheme, meaning = concept
        if not (0 < len(value) <= 16 and 0 < len(scheme) <= 16 and 0 < len(meaning) <= 64):
            raise ValueError(f"{json.dumps(concept)} is no code of up to 16, scheme of 16 and meaning of 64 letters")
        return Code(value, scheme, meaning)
    try:
        return getattr(codes.SCT, concept)
    except AttributeError:
        raise ValueError(
            f"{concept!r} is no keyword of SNOMED CT in pydicom's dictionary; give code, scheme and meaning instead, "
            'such as ["74281007", "SCT", "Myocardium"]'
        ) from None

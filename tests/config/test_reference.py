"""The configuration reference is what the models say."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from pydantic import BaseModel

from fednnunet.config import groups, node_file, run, shared
from fednnunet.config.reference import PAGE, write_reference

ROOT = Path(__file__).parents[2]
MODELS = [
    model
    for module in (groups, shared, run, node_file)
    for _, model in inspect.getmembers(module, inspect.isclass)
    if issubclass(model, BaseModel) and model.__module__ == module.__name__
]


def test_the_page_is_what_is_generated() -> None:
    assert (ROOT / PAGE).read_text() == write_reference(), "renew it: python -m fednnunet.config.reference"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_described_in_its_class(model: type[BaseModel]) -> None:
    for name in model.__annotations__:
        assert f"\n    {name}: " in inspect.cleandoc(model.__doc__ or ""), f"{model.__name__}.{name}"

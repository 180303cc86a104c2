"""Flower's records: read without leaving their content in memory."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

import fednnunet
from fednnunet.exchange.records import arrays_in, config_in, metrics_in, to_array_record


def content() -> RecordDict:
    arrays = to_array_record({"w": np.ones(3)})
    return RecordDict({"arrays": arrays, "config": ConfigRecord({"body": "{}"}), "metrics": MetricRecord({"n": 1})})


def test_what_is_read_is_what_flower_shows() -> None:
    message = content()
    assert arrays_in(message) is message.array_records["arrays"]
    assert config_in(message) is message.config_records["config"]
    assert metrics_in(message) is message.metric_records["metrics"]


def test_a_record_that_is_missing_or_of_another_kind_is_empty() -> None:
    message = RecordDict({"arrays": ConfigRecord({"body": "{}"}), "metrics": ArrayRecord()})
    assert (dict(arrays_in(message)), dict(config_in(message)), dict(metrics_in(message))) == ({}, {}, {})


def test_content_that_was_read_is_freed_with_its_last_name() -> None:
    message = content()
    freed = weakref.ref(message)
    gc.disable()
    try:
        arrays_in(message), config_in(message), metrics_in(message)
        del message
        assert freed() is None
    finally:
        gc.enable()


def test_no_module_reads_records_by_flowers_views_which_keep_the_content_in_memory() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in Path(fednnunet.__file__).parent.rglob("*.py")}
    views = ("array_records", "config_records", "metric_records")
    assert not [path for path, text in sources.items() if any(view in text for view in views)]

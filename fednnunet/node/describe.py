"""The first stage: read and check a node's images, and describe them to the server."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fednnunet.datasets.image_checks import check_images_once
from fednnunet.datasets.label_names import ANNOTATED, union_of, with_common_names
from fednnunet.datasets.pooled import pool_datasets, pooled_name
from fednnunet.datasets.quality.measure import image_digests
from fednnunet.datasets.raw import RawDataset, read_dataset
from fednnunet.datasets.splits import Split, splits_of, without_held_out
from fednnunet.datasets.staging import cache_of, case_digest, raw_digest, stage_dataset
from fednnunet.datasets.union_channels import fingerprint_of_union, with_union_channels, without_acquired
from fednnunet.datasets.union_labels import with_union_labels
from fednnunet.errors import DataError, ProtocolError
from fednnunet.evaluation.score import HeldOutCase
from fednnunet.exchange.data_notes import DataNote, add_notes
from fednnunet.exchange.digests import DIGESTS_FILE, salted
from fednnunet.exchange.messages import FingerprintReply, FingerprintRequest, Fold
from fednnunet.files import write_atomically
from fednnunet.fingerprint.extract import extract_fingerprint
from fednnunet.node.fingerprint_content import content_of
from fednnunet.node.settings import NodeSettings
from fednnunet.training.checkpoint import intact_rounds

log = logging.getLogger(__name__)

POOLED_DATASET = "Dataset999_Pooled"


class NodeDataset:
    """A node's images as one nnU-Net dataset, read from their raw folders and staged in ``nnUNet_raw``.

    What is computed from the images is cached, under a digest of the raw files.

    Args:
        settings: settings of the node.

    Attributes:
        centres: centre name to its dataset, with the files that nnU-Net is to read; several for the pooled baseline.
        splits: centre name to its folds; empty at an external node.
        notes: what people should know of the images.
        raw: the dataset that nnU-Net works on: the node's own, or that of all centres.
        labels: nnU-Net's ``labels`` of the node by itself; of pooled centres with unlike ones, their union.
        channel_names: nnU-Net's ``channel_names`` of the node by itself.
        images: the node's own images; of them, fingerprint and digests are.

    Raises:
        DataError: a dataset or an image cannot be used, or has not the folds that are to be trained; or a label that is
            to be renamed is not there.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.config = settings.config
        self.workers = settings.config.compute.preprocessing_workers
        self._originals = {
            centre: with_common_names(
                without_acquired(read_dataset(folder, centre, external=settings.external)),
                self.config.task.rename_labels.get(centre, {}),
                centre,
            )
            for centre, folder in settings.datasets.items()
        }
        self.splits = {} if settings.external else self._splits_of(self._originals)
        cache = self.config.paths.cache
        checked = {
            centre: check_images_once(original, centre, settings.image_headers, cache_of(cache, original), self.workers)
            for centre, original in self._originals.items()
        }
        self._as_read: dict[str, RawDataset] = {centre: found.dataset for centre, found in checked.items()}
        self.notes: list[DataNote] = add_notes(note for found in checked.values() for note in found.notes)
        self.centres = self._as_read
        self._all_labels: Mapping[str, int] | None = None
        self._all_channels: Sequence[str] | None = None
        if self.is_pooled and self.config.task.labels == "union":
            self.adopt_labels(union_of({centre: dataset.labels for centre, dataset in self._as_read.items()}))
        else:
            self.raw = self._stage()
        self.labels = self.raw.labels
        self.channel_names = self.raw.channel_names
        self.images = self.raw

    def _stage(self) -> RawDataset:
        """Refer to the centres' files from ``nnUNet_raw``, as one dataset."""
        staged = Path(os.environ["nnUNet_raw"])
        if self.is_pooled:
            return pool_datasets(self.centres, staged, POOLED_DATASET)
        dataset = next(iter(self.centres.values()))
        stage_dataset(dataset, staged)
        return dataset

    def adopt_labels(self, union: Mapping[str, int]) -> None:
        """Have all labels of the federation, in its values, from here on; nothing changes where they are the node's.

        Args:
            union: every label, name to value.

        Raises:
            DataError: a centre has regions, or a label map cannot be read or written.
            ProtocolError: the union lacks a label of a centre that trains.
        """
        self._all_labels = union
        self._adopt()

    def adopt_channels(self, union: Sequence[str]) -> None:
        """Have all channels of the federation, in its order, from here on: zeros where the node lacks one.

        Args:
            union: name of every channel.

        Raises:
            DataError: the channels cannot be told apart by name, or a file cannot be read or written.
            ProtocolError: the union lacks a channel of the node, or several centres are pooled here.
        """
        if self.is_pooled:
            raise ProtocolError("the server names channels of all nodes, but the cases of several centres are here")
        self._all_channels = union
        self._adopt()

    def _adopt(self) -> None:
        """Refer to the centres' files as to those of the federation's labels and channels."""
        cache, workers, external = self.config.paths.cache, self.workers, self.settings.external
        self.centres = dict(self._as_read)
        for centre, dataset in self.centres.items():
            if self._all_labels is not None:
                dataset = with_union_labels(dataset, self._all_labels, centre, cache, workers, external)
            if self._all_channels is not None:
                dataset = with_union_channels(dataset, self._all_channels, centre, cache, workers)
            self.centres[centre] = dataset
        self.raw = self._stage()

    @property
    def annotated(self) -> dict[str, list[str]]:
        """Centre to the labels that it has annotated, for those that have not annotated all of the federation's."""
        return {
            centre: dataset.dataset_json[ANNOTATED]
            for centre, dataset in self.centres.items()
            if ANNOTATED in dataset.dataset_json
        }

    def _splits_of(self, datasets: Mapping[str, RawDataset]) -> dict[str, list[Split]]:
        """Folds of each centre; the log says where none of its cases is held out."""
        splits: dict[str, list[Split]] = {}
        for centre, dataset in datasets.items():
            splits[centre] = splits_of(dataset, centre, self.config.folds)
            for fold in without_held_out(splits[centre], self.config.folds):
                log.warning(
                    "centre %s holds no case out in fold %d: it trains on all of its %d cases there, and is not scored",
                    centre,
                    fold,
                    len(dataset.cases),
                )
        return splits

    @property
    def is_pooled(self) -> bool:
        """Whether the cases of several centres lie here."""
        return len(self.centres) > 1

    def cases(self) -> list[HeldOutCase]:
        """All cases, numbered within their centre."""
        return [
            HeldOutCase(centre, number, pooled_name(centre, case.name) if self.is_pooled else case.name, case)
            for centre, dataset in self.centres.items()
            for number, case in enumerate(dataset.cases)
        ]

    def case_digests(self) -> dict[str, str]:
        """nnU-Net's name of every case to a digest of its own name and the sizes of its images."""
        return {
            pooled_name(centre, case.name) if self.is_pooled else case.name: case_digest(case)
            for centre, dataset in self._originals.items()
            for case in dataset.cases
        }

    def check_present(self) -> None:
        """Check that no file has been removed since the dataset was read.

        Raises:
            DataError: names the first one; a server on another machine is told how many.
        """
        files = self._original_files()
        missing = [path for path in files if not path.exists()]
        if missing:
            count = f"{len(missing)} of {len(files)}"
            raise DataError(
                f"{missing[0]} is not there any more ({count} files of images and labels); put them back, and go on",
                f"{count} of its files of images and labels are not there any more; its own terminal names the first",
            )

    def has_lost_corrections(self) -> bool:
        """Whether corrected files have been removed from the cache."""
        corrected = {path for case in self.raw.cases for path in (*case.images, case.label)} - set(
            self._original_files()
        )
        return not all(path.exists() for path in corrected)

    def _original_files(self) -> list[Path]:
        cases = (case for dataset in self._originals.values() for case in dataset.cases)
        return [path for case in cases for path in (*case.images, case.label)]

    def describe(self, request: FingerprintRequest) -> FingerprintReply:
        """What the server may know of the dataset.

        Raises:
            ConfigError: the server asks for more than this node's configuration allows.
            ProtocolError: the request does not fit the dataset.
        """
        external = self.settings.external
        content = {} if external else content_of(self, request)
        return FingerprintReply(
            node=self.settings.name,
            external=external,
            num_training=0 if external else len(self.raw.cases),
            configuration=self.config.configuration,
            channel_names=self.channel_names,
            labels=self.labels,
            regions_class_order=self.raw.dataset_json.get("regions_class_order"),
            file_ending=self.raw.file_ending,
            held_out={
                centre: {fold: len(splits[fold]["val"]) for fold in self.config.folds if fold != "all"}
                for centre, splits in self.splits.items()
            },
            resume_rounds={} if external else self._resume_rounds(),
            image_digests=self._image_digests(request.salt),
            data_notes=self.notes,
            **content,
        )

    # fingerprint ---------------------------------------------------------------------------------------

    def fingerprint(self) -> dict[str, Any]:
        """nnU-Net's fingerprint of the node; its own channels are where they are among the federation's."""
        found = self.cached("dataset_fingerprint", lambda: extract_fingerprint(self.images, self.workers))
        if self._all_channels is None:
            return found
        return fingerprint_of_union(found, list(self.channel_names.values()), self._all_channels)

    # digests, rounds, cache ----------------------------------------------------------------------------

    def _image_digests(self, salt: str | None) -> list[str] | None:
        """Digests of the images, if this node shares them; which case each belongs to stays here, in a file."""
        if salt is None:
            return None
        if not self.config.fingerprint.find_duplicates:
            log.warning(
                "the server asks for digests of the images; fingerprint.find_duplicates is false here, so none are sent"
            )
            return None
        digests = self.cached("image_digests", lambda: image_digests(self.images, self.settings.name, self.workers))
        cases: dict[str, list[str]] = {}
        for case, digest in digests.items():
            cases.setdefault(salted(digest, salt), []).append(case)
        write_atomically(self.settings.folder / DIGESTS_FILE, json.dumps(dict(sorted(cases.items())), indent=1))
        for copies in cases.values():
            if len(copies) > 1:
                log.warning("the same image: %s", ", ".join(copies))
        return sorted(cases)

    def _resume_rounds(self) -> dict[Fold, list[int]]:
        """Fold to the rounds whose checkpoints are intact."""
        results = Path(os.environ["nnUNet_results"])
        rounds: dict[Fold, list[int]] = {}
        for fold in self.config.folds:
            folders = results.glob(f"*/*__{self.config.configuration}/fold_{fold}")
            rounds[fold] = sorted(finished for folder in folders for finished in intact_rounds(folder))
        return rounds

    def cache_folder(self, digest: str) -> Path:
        """Folder for what is computed from files of this digest."""
        return self.config.paths.cache.resolve() / f"{self.raw.name}_{digest}"

    @property
    def cache_folder_of_images(self) -> Path:
        """Folder for what is computed from the images as they are, and from where their foreground lies."""
        return self.cache_folder(raw_digest(self.images))

    def cached(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``compute`` returns for the images as they are; computed once."""
        cached = self.cache_folder_of_images / f"{name}.json"
        if cached.is_file():
            return json.loads(cached.read_text())
        computed = compute()
        write_atomically(cached, json.dumps(computed))
        return computed

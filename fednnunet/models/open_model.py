"""Open a trained model: of a run, in a results folder of nnU-Net, or in a zip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednnunet.datasets.description import FILE_ENDING
from fednnunet.errors import DataError, one_line
from fednnunet.models.checkpoint_file import mirror_axes_of, read_checkpoint, weights_of
from fednnunet.models.json_file import read_json
from fednnunet.models.model_folder import NEEDED, ModelFolder, choose_folder, choose_folds, find_folders
from fednnunet.models.open_archive import open_archive
from fednnunet.models.postprocessing import POSTPROCESSING_FILE, Postprocessing
from fednnunet.models.trained_model import TrainedModel, described
from fednnunet.training.final_checkpoint import FINAL

if TYPE_CHECKING:
    import torch


def open_model(
    source: Path,
    *,
    node: str | None = None,
    configuration: str | None = None,
    folds: Sequence[str] | None = None,
    personal: bool = False,
) -> TrainedModel:
    """Open a trained model; weights are read when they are asked for.

    What comes in a zip is from outside: it is checked as :mod:`fednnunet.models.open_archive` says. Folders are
    nnU-Net's own results, with plans that nnU-Net has made on this machine.

    Args:
        source: a zip, ours or of ``nnUNetv2_export_model_to_zip``; a run's folder, a node's, or a results folder of
            nnU-Net: of all datasets, of one, or of one model.
        node: which node's; needed where there are several.
        configuration: which of nnU-Net's configurations; needed where there are several.
        folds: folds to use; all that are finished if None, without ``all`` where there are others.
        personal: of a run or a node, the model that is the node's own: fine-tuned, or Ditto's.

    Raises:
        DataError: there is no such model, or more than one; or a file cannot be read, or is not what it should be. In
            one line, with what is there.
    """
    if source.is_file():
        if node is not None:
            raise DataError(f"{source} holds one model, of no node; leave out --node")
        if personal:
            raise DataError(f"{source} holds one model, which --personal cannot choose; leave it out")
        return open_archive(source, configuration, folds)
    found = choose_folder(find_folders(source, personal), source, node, configuration)
    return open_folder(found, choose_folds(found.folds, folds, found.where))


def open_folder(folder: ModelFolder, folds: tuple[str, ...]) -> TrainedModel:
    """Open these folds of a model's folder.

    Raises:
        DataError: a file cannot be read, or nnU-Net cannot take it.
    """
    plans, dataset_json = (read_json(folder.path / name) for name in NEEDED)
    check_readable(plans, dataset_json, folder)

    def read(fold: str, mapped: bool = False) -> dict[str, Any]:
        path = folder.path / f"fold_{fold}" / FINAL
        return read_checkpoint(path, str(path), mapped)

    def read_weights(fold: str) -> dict[str, torch.Tensor]:
        return weights_of(read(fold))

    return TrainedModel(
        plans=plans,
        dataset_json=described(dataset_json),
        configuration=folder.configuration,
        trainer=folder.trainer,
        folds=folds,
        mirror_axes=mirror_axes_of(read(folds[0], mapped=True), 3, folder.where),
        postprocessing=_read_postprocessing(folder.path, dataset_json),
        where=folder.where,
        read_weights=read_weights,
    )


def check_readable(plans: dict[str, Any], dataset_json: dict[str, Any], folder: ModelFolder) -> None:
    """Check that nnU-Net finds in its files what it segments by.

    Args:
        plans: content of ``plans.json``.
        dataset_json: content of ``dataset.json``.
        folder: the model's.

    Raises:
        DataError: it does not; in one line.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        manager = PlansManager(plans)
        _ = manager.image_reader_writer_class
        determine_num_input_channels(manager, manager.get_configuration(folder.configuration), dataset_json)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, AssertionError, RecursionError) as error:
        raise DataError(
            f"{folder.path}: nnU-Net cannot segment by its plans.json and dataset.json, which are not as it wrote "
            f"them: {type(error).__name__}: {one_line(str(error))[:200]}"
        ) from None
    ending = dataset_json.get("file_ending")
    if not isinstance(ending, str) or not FILE_ENDING.fullmatch(ending):
        raise DataError(f"{folder.path / 'dataset.json'}: file_ending must be text such as .nii.gz")


def _read_postprocessing(folder: Path, dataset_json: Mapping[str, Any]) -> Postprocessing | None:
    path = folder / POSTPROCESSING_FILE
    if not path.is_file():
        return None
    found = Postprocessing.read(path)
    found.check_labels(dataset_json.get("labels", {}), str(path))
    return found

"""Candidates that average softmax outputs: a hospital's own model with the federation's, and all hospitals' models.

Outputs come from ``fold_*/validation/*.npz`` (``trainer.save_probabilities=true``) where these are, else a held-out
case is segmented again by the fold's final checkpoint.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from nnunetv2.evaluation.evaluate_predictions import key_to_label_or_region
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from fednnunet.best_configuration.case_scores import dice
from fednnunet.datasets.description import read_description
from fednnunet.datasets.raw import Case, list_cases
from fednnunet.datasets.union_channels import missing_channels
from fednnunet.errors import DataError
from fednnunet.evaluation.predict import Predictor
from fednnunet.evaluation.saved_probabilities import read_probabilities
from fednnunet.models.json_file import read_json
from fednnunet.models.model_folder import ModelFolder
from fednnunet.models.open_model import open_model
from fednnunet.models.shared_model import is_shared
from fednnunet.preprocessing import REFERENCES
from fednnunet.reporting.comparison import DEFAULT_REFERENCE
from fednnunet.reporting.selected import AVERAGED, ENSEMBLED, order_candidates
from fednnunet.run_files import PLANS_FILE
from fednnunet.selection.node_disk import read_scores, read_summary_labels, summaries
from fednnunet.selection.sources import Sources, is_second, scores_of

CASCADE = "cascade"


def with_averages(sources: Sources, ensembles: bool, tell: Callable[[str], None] = lambda _: None) -> Sources:
    """The same with averages as further candidates; all scores are then read from the disk, as cases need their names.

    Args:
        sources: scores and models; each candidate's models of all folds in one folder.
        ensembles: also average the models of all hospitals, where a strategy ends with unlike ones.
        tell: is told what is computed, as this may take long.

    Raises:
        DataError: training alone is no candidate, or models are not on this disk.
    """
    names = order_candidates(list(dict.fromkeys(name for name, _, _ in sources.models)))
    alone = next((name for name in names if name.split(" ")[0] == DEFAULT_REFERENCE), None)
    if alone is None or len(names) < 2:
        raise DataError(
            f"to average with the hospital's own model, {DEFAULT_REFERENCE} and another candidate must be on this disk"
        )
    models: dict[tuple[str, int, str], Sequence[ModelFolder]] = dict(sources.models)
    tables = []
    for seed, node in sorted({(seed, node) for _, seed, node in sources.models}):
        found = {name: _only(sources.models.get((name, seed, node), []), name, node) for name in names}
        held_out = HeldOut(found[alone], list(found.values()))
        members = {f"{alone}{AVERAGED}{name}": [found[alone], found[name]] for name in names if name != alone}
        if ensembles:
            members |= _ensembles(sources, names, seed, found)
        for name in names:
            tables.append(read_scores(found[name]).assign(strategy=name, node=node, seed=seed))
        for name, averaged in members.items():
            tell(f"{node}, seed {seed}: {name}")
            models[name, seed, node] = averaged
            tables.append(averaged_scores(averaged, held_out).assign(strategy=name, node=node, seed=seed))
    scores = scores_of(pd.concat(tables, ignore_index=True))
    return Sources(sources.dataset, scores, sources.training, models)


def _ensembles(
    sources: Sources, names: Sequence[str], seed: int, own: Mapping[str, ModelFolder]
) -> dict[str, list[ModelFolder]]:
    """Name to the models of all hospitals, the hospital's own first, where these are not all the same.

    A strategy that averages all layers of the same network ends with one model for all.
    """
    found = {}
    for name in names:
        if is_second(name, names):
            continue  # it never leaves its hospital
        of_all = [folders[0] for (one, of_seed, _), folders in sources.models.items() if (one, of_seed) == (name, seed)]
        trained_alone = name.split(" ")[0] == DEFAULT_REFERENCE
        if len(of_all) > 1 and (trained_alone or not is_shared(of_all, own[name].folds)):
            found[f"{name} {ENSEMBLED}"] = [own[name], *(models for models in of_all if models != own[name])]
    return found


def _only(folders: Sequence[ModelFolder], name: str, node: str) -> ModelFolder:
    if len(folders) != 1:
        problem = "are not on this disk" if not folders else "of several runs, a fold each, cannot be averaged"
        raise DataError(
            f"the models of {name} at {node} {problem}; leave out --average, or name runs of all folds here"
        )
    return folders[0]


@dataclass(frozen=True)
class HeldOut:
    """The cases of a hospital, and who held them out.

    Attributes:
        models: its models, whose folds hold the cases out; images and references are in the node's folder.
        own: all models of the hospital: outputs that are saved with another one's are of that one's cases, which may
            have the same names.
    """

    models: ModelFolder
    own: Sequence[ModelFolder]

    @property
    def dataset(self) -> str:
        """Name of the dataset's folder."""
        return self.models.path.parent.name

    @cached_property
    def files(self) -> dict[str, Case]:
        """Case to its raw files."""
        raw = list_cases(self.models.node_folder / "nnUNet_raw" / self.dataset, self.models.node_folder.name)
        return {case.name: case for case in raw.cases}

    def reference(self, case: str, ending: str) -> str:
        """File of the reference segmentation, as nnU-Net's summary is computed from it."""
        return str(self.models.node_folder / "nnUNet_preprocessed" / self.dataset / REFERENCES / f"{case}{ending}")


class FoldOutputs:
    """Softmax outputs of one model of one fold, for cases that the fold has not trained on.

    Args:
        models: folder of the model.
        fold: the fold.
        held_out: the cases.
    """

    def __init__(self, models: ModelFolder, fold: str, held_out: HeldOut) -> None:
        self.models, self.fold, self.held_out = models, fold, held_out

    def __call__(self, case: str) -> np.ndarray:
        """Softmax (sigmoid of regions) of a case, (classes, Z, Y, X) in the image's own grid.

        Raises:
            DataError: it is not saved, and the model cannot segment the case by itself; or a file is damaged.
        """
        saved = self.models.path / f"fold_{self.fold}" / "validation" / f"{case}.npz"
        if self.models not in self.held_out.own or not saved.is_file():
            return self._predict(case)
        return read_probabilities(saved)

    def _predict(self, case: str) -> np.ndarray:
        data, properties = self._predictor.load_files([str(path) for path in self.held_out.files[case].images])
        return self._predictor.segment_with_probabilities(self._predictor.logits(data), properties)[1]

    @cached_property
    def _predictor(self) -> Predictor:
        model = open_model(self.models.path, folds=[self.fold])
        if CASCADE in model.configuration:
            raise DataError(
                f"{self.models.path}: a cascade needs the stage before to segment a case again; train with "
                "trainer.save_probabilities=true to average it"
            )
        network = model.build_network()
        model.load(network, self.fold)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        described = read_description(self.models.path, self.models.node_folder.name)
        lacking = list(missing_channels(described))
        arguments = (model.plans, model.configuration, described, model.mirror_axes)
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints that it has no GPU
            return Predictor(network.to(device), *arguments, device, lacking)


def averaged_scores(
    members: Sequence[ModelFolder], held_out: HeldOut, tell: Callable[[str], None] = lambda _: None
) -> pd.DataFrame:
    """Mean DSC over labels of each held-out case, by the average of several models: ``fold``, ``case`` and ``dsc``.

    Each fold's cases are segmented by the members' models of that fold, which none of the members has trained on.

    Args:
        members: models, whose folds are alike; the first gives plans and labels.
        held_out: the cases.
        tell: is told of each fold, as this may take long.

    Raises:
        DataError: members differ in labels, or one lacks a fold or a file.
    """
    first, *others = (read_description(member.path, member.node_folder.name) for member in members)
    for other, described in zip(members[1:], others, strict=True):
        if described["labels"] != first["labels"]:
            raise DataError(f"{members[0].path} and {other.path} have unlike labels: their outputs cannot be averaged")
    plans = PlansManager(read_json(members[0].path / PLANS_FILE))
    labels = plans.get_label_manager(first)
    reader, ending = plans.image_reader_writer_class(), first["file_ending"]
    rows = []
    for fold, path in summaries(held_out.models).items():
        tell(fold)
        outputs = [FoldOutputs(member, fold, held_out) for member in members]
        for file, scored in read_summary_labels(path).items():
            case = file.removesuffix(ending)
            reference = reader.read_seg(held_out.reference(case, ending))[0][0]
            heads = (labels.num_segmentation_heads, *reference.shape)
            total: Any = 0
            for output in outputs:
                probabilities = output(case)
                if probabilities.shape != heads:
                    raise DataError(
                        f"fold {fold} of {output.models.path}: outputs have shape {probabilities.shape}, and {heads} "
                        "belong on the grid of the reference"
                    )
                total = total + probabilities
            segmentation = np.asarray(labels.convert_probabilities_to_segmentation(total / len(outputs)))
            dsc = mean_dsc(segmentation, reference, scored, labels.ignore_label)
            rows.append({"fold": fold, "case": file, "dsc": dsc})
    return pd.DataFrame(rows, columns=["fold", "case", "dsc"])


def mean_dsc(segmentation: np.ndarray, reference: np.ndarray, scored: Sequence[str], ignore: int | None) -> float:
    """Mean DSC over labels or regions, by nnU-Net's counts; 1 where both masks are empty.

    Args:
        segmentation: label map (Z, Y, X).
        reference: label map of the same shape.
        scored: labels or regions, as nnU-Net's ``summary.json`` writes them.
        ignore: label whose voxels do not count.
    """
    found = [dice(segmentation, reference, key_to_label_or_region(key), ignore) for key in scored]
    return math.fsum(1.0 if math.isnan(value) else value for value in found) / len(found)

#!/usr/bin/env bash
# dataset.json whose entries stand in another order, as tools that sort or rewrite JSON leave it.
#
# Versions:  nnunetv2 2.8.1
# Guess:     channels are known by their numbers and regions by their names: two files that hold the same entries mean the
#            same, and regions_class_order must name values that labels has.
# Behaviour: the planner takes the normalisation of image _0000 from the first entry of channel_names, whatever its number:
#            {"1": "MRI", "0": "CT"} normalises the CT as MRI. Regions are painted in the order of labels, so the same
#            regions sorted by name give other label maps; and values that no label has are painted without an error.
# Output:    {"0": "CT", "1": "MRI"}: CTNormalization, ZScoreNormalization; {"1": "MRI", "0": "CT"}: ZScoreNormalization,
#            CTNormalization; voxel of value 1: 1 (whole, core), 2 (core, whole), 5 (regions_class_order [5, 9])
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 nnunetv2==2.8.1
cd "$folder"
venv/bin/python - 2> /dev/null <<'PYTHON'
import json

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.label_handling.label_handling import LabelManager


def normalisation(channel_names):
    planner = ExperimentPlanner.__new__(ExperimentPlanner)  # without the files of a dataset
    planner.dataset_json = {"channel_names": channel_names}
    planner.dataset_fingerprint = {"median_relative_size_after_cropping": 1.0}
    return planner.determine_normalization_scheme_and_whether_mask_is_used_for_norm()[0]


def painted(regions, order):
    """What becomes of a voxel of value 1 where every region is predicted rightly."""
    manager = LabelManager({"background": 0, **regions}, order)
    outputs = [[1.0 if 1 in np.atleast_1d(region) else 0.0] for region in manager.foreground_regions]
    return int(manager.convert_probabilities_to_segmentation(np.array(outputs))[0])


in_order, other = {"0": "CT", "1": "MRI"}, {"1": "MRI", "0": "CT"}
schemes = {json.dumps(names): normalisation(names) for names in (in_order, other)}
regions = {"whole": [1, 2], "core": [2]}
values = painted(regions, [1, 2]), painted(dict(sorted(regions.items())), [1, 2]), painted(regions, [5, 9])
print("; ".join(f"{names}: {', '.join(found)}" for names, found in schemes.items()), end="; ")
print("voxel of value 1: {} (whole, core), {} (core, whole), {} (regions_class_order [5, 9])".format(*values))
assert in_order == other and schemes[json.dumps(in_order)] == schemes[json.dumps(other)][::-1]
assert schemes[json.dumps(in_order)] == ["CTNormalization", "ZScoreNormalization"]
assert values == (1, 2, 5)
PYTHON

"""The files of a run's folder: their names, and the columns of its tables. Who writes and who reads them agree here."""

from __future__ import annotations

from pathlib import Path

RUN_FILE = "run.json"
"""What is known of a run that has finished."""
CONFIG_FILE = "config.json"
"""What its results depend on, key to value."""
RUN_ID_FILE = "run_id"
"""By which nodes on other machines know the run."""
PLANS_FILE = "plans.json"
ROUNDS_FILE = "rounds.csv"
ROUND_MEANS_FILE = "round_means.csv"
"""Where layers are summed securely: figures of a round over all nodes, as nobody knows those of one."""
CASES_FILE = "cases.csv"
DATA_NOTES_FILE = "data_notes.csv"
"""Where a node's images are unusual: how many cases, in which way."""
LABELS_FILE = "labels.csv"
"""With ``task.labels=union``: every label, its value, and a column per node: ``yes`` where it annotates the label."""
CHANNELS_FILE = "channels.csv"
"""With ``task.channels=union``: every channel, its number, and a column per node: ``yes`` where it has the channel."""
SUMMARY_FILE = "summary.csv"
COMPARISONS_FILE = "comparisons.csv"
"""Beside a report of several runs: differences to the reference strategy, and their tests."""
SELECTION_FILE = "selection.csv"
SELECTION_MODELS_FILE = "selection.json"
SELECTION_TABLE_FILE = "selection.md"
"""What hospitals choose: each choice; the final ones with the folders of their models; the table."""
REPORT_FILE = "report.html"
LOG_FILE = "train.log"
ERROR_FILE = "error.txt"
"""Why it failed as a job of a sweep."""
HYDRA_CONFIG_FILE = Path(".hydra") / "config.yaml"
OVERRIDES_FILE = Path(".hydra") / "overrides.yaml"
SWEEP_FILE = "sweep.yaml"
"""In a sweep's folder: its configuration; Hydra's own multirun.yaml is also of commands that were refused."""

ROUND_COLUMNS = (
    *("strategy", "round", "node", "train_loss", "val_loss", "pseudo_dice"),
    *("seconds_train", "seconds_exchange", "bytes_up", "bytes_down", "gpu_memory_gib", "update_norm"),
)
ROUND_MEAN_COLUMNS = ("strategy", "round", "nodes", "train_loss", "val_loss", "pseudo_dice", "update_norm")
DATA_NOTE_COLUMNS = ("node", "kind", "cases", "voxels")
CASE_COLUMNS = (
    *("strategy", "node", "model", "fold", "case", "label"),
    *("dsc", "hd95", "surface_dsc", "volume_error", "empty"),
)
FINE_TUNED, SHARED = "fine-tuned", "shared"
"""Second word of ``strategy`` in ``cases.csv`` for the second model that a run gives each node: the federation's
averages, fine-tuned by the node; with Ditto, whose first is the node's own, the shared one."""
PERSONAL_RESULTS = Path("personal") / "nnUNet_results"
"""In a node's folder: nnU-Net's results folder of the models that are the node's own; they never leave it."""
PREDICTED = "predicted_next_stage"
"""In the folder of a model: nnU-Net's segmentations of held-out cases for the next stage of a cascade."""
SELECTION_COLUMNS = ("node", "seed", "fold", "chosen", "chosen_on", "reason", "n_cases", "dsc", "dsc_alone")
LABEL_COLUMNS = ("label", "value")
"""Of ``labels.csv``, before the nodes; one of these may have the name of a column."""
CHANNEL_COLUMNS = ("channel", "number")
"""Of ``channels.csv``, as those of labels."""
NUM_CASES_COLUMN = "n_cases"
"""Last column of ``cases.csv`` where a node tells means over its cases (as many), or keeps its scores (0)."""

"""Errors of Hydra, Optuna and launchers, told apart by their text, in this project's words.

These libraries have no exception types for what users have to fix, or type it wrongly. Every text that this project
looks for in a message of theirs is here, and ``tests/launch/test_library_errors.py`` raises it in the library.
"""

from __future__ import annotations

import re

NO_PLUGIN = "this launcher or sweeper is not installed: pip install 'fednnunet[sweeps]'"


def format_hydra_error(error: Exception) -> str:
    """Hydra's error in one line, without its advice to append a key that nothing reads."""
    text = " ".join(str(error).split("Config search path")[0].split())
    if "hydra_plugins" in text or "'hydra/sweeper/optuna'" in text:
        return NO_PLUGIN
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return f"unknown key {unknown[1]}; --cfg job shows all keys, --help all groups"
    if missing := re.search(r"Could not find '([^']+)' Available options in '([^']+)': (.+)", text):
        options = [option for option in missing[3].split() if not option.startswith("_")]
        return f"there is no {missing[1]}; options of {missing[2]}: {', '.join(options)}"
    if unnamed := re.search(r"(?:Interpolation key '|Missing mandatory value: )((?:strategy|dataset)\.name)\b", text):
        return f"{unnamed[1]} is not set; options whose names begin with _ are bases of others, not to be chosen"
    return text


def launcher_error(error: Exception) -> str:
    """What went wrong before a job started, or between this process and those of a sweep's jobs; else empty."""
    if str(error).startswith("Config group override must be a string or a list."):  # Hydra's
        return "a group cannot be set to null; leave it out, or choose one of its options (--help lists them)"
    if str(error).startswith("Only one of --run, --multirun, --cfg"):  # Hydra's
        return "--cfg and --info show one run; leave out -m, and name one value per key"
    if str(error).startswith("Unknown plugin class"):  # Hydra's
        return NO_PLUGIN
    if str(error) == "No trials are completed yet.":  # Optuna's
        return "no trial could be scored; each says why above"
    text = next(iter(str(error).strip().splitlines()), "")
    from_launcher = type(error).__module__.startswith(("joblib.", "submitit."))
    return f"the process of a job ended, and the sweep with it: {text.rstrip('.')}" if from_launcher else ""

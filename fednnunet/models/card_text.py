"""The card of a model for people, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fednnunet.errors import one_line
from fednnunet.models.model_card import CentreScore, ModelCard, NetworkFacts


def as_markdown(card: ModelCard) -> str:
    """A card for people."""
    return "\n".join(
        [
            *(f"# {_cell(card.name)}", "", *_training(card), *_networks(card)),
            *(*_together(card), *_scores(card), *_end(card)),
        ]
    )


def _training(card: ModelCard) -> list[str]:
    run = card.run
    rows = [
        ("licence", card.licence or "not stated: ask who gave you this file"),
        ("trained for", run.trained_for),
        ("strategy", run.strategy),
        ("centres that trained", ", ".join(run.names) if run.names else run.centres),
        ("cases, of which each fold holds some out", run.cases),
        ("rounds per fold", run.rounds),
        ("iterations per epoch", run.iterations),
    ]
    known = [(name, value) for name, value in rows if value is not None]
    return _table(("", ""), [(name, _cell(value)) for name, value in known])


def _networks(card: ModelCard) -> list[str]:
    lines = ["## Networks", ""]
    columns = ("configuration", "folds", "spacing", "patch", "batch", "stages", "parameters", "trainer")
    lines += _table(
        columns,
        [
            tuple(
                map(
                    _cell,
                    (
                        network.configuration,
                        ", ".join(network.folds),
                        " x ".join(f"{value:g}" for value in network.spacing),
                        " x ".join(map(str, network.patch_size)),
                        network.batch_size,
                        network.stages,
                        network.parameters,
                        network.trainer,
                    ),
                )
            )
            for network in card.networks
        ],
    )
    first = card.networks[0]
    lines += [
        f"Input, one file per channel in this order: {_cell(', '.join(first.channels))}.",
        "",
        f"Output: {_cell(', '.join(f'{value} {name}' for name, value in first.labels.items()))}.",
        "",
    ]
    for network in card.networks:
        if network.postprocessing:
            steps = "; ".join(", ".join(map(str, step)) for step in network.postprocessing)
            lines += [f"Of {network.configuration}, only the largest component stays of the labels {steps}.", ""]
        if network.previous_stage:
            lines += [f"{network.configuration} also takes segmentations of {network.previous_stage}.", ""]
    return lines


def _together(card: ModelCard) -> list[str]:
    """What makes one segmentation of several networks, here and with nnU-Net's own commands."""
    if len(card.networks) == 1:
        return []
    by_folder = {network.folder: network for network in card.networks}
    selected = [by_folder[folder] for folder in card.averaged if folder in by_folder] or card.networks[:1]
    lines = ["## Together", ""]
    if card.averaged:
        names = " and ".join(f"`{_cell(network.folder)}`" for network in selected)
        lines += [f"An ensemble: the softmax outputs of {names} are averaged, in the grid of the images.", ""]
    for step in card.postprocessing:
        lines += [f"Of the mean, only the largest component stays of the labels {', '.join(map(str, step))}.", ""]
    lines += [
        "`fednnunet predict FILE IMAGES OUTPUT` does all of it. With nnU-Net's commands, in the folder where "
        f"`{_cell(card.name)}` is installed:",
        "",
        *("```bash", *_commands(card, selected), "```", ""),
    ]
    return lines


def _commands(card: ModelCard, selected: Sequence[NetworkFacts]) -> list[str]:
    commands, outputs = [], []
    for number, network in enumerate(selected, 1):
        output, before = (f"OUTPUT_{number}" if card.averaged else "OUTPUT"), ""
        if network.previous_stage:
            stage = next((one for one in card.networks if one.is_stage_before(network)), None)
            if stage is not None:
                commands.append(stage.command(card.name, f"STAGE_{number}"))
            before = f" -prev_stage_predictions STAGE_{number}"
        commands.append(network.command(card.name, output) + before + " --save_probabilities" * bool(card.averaged))
        outputs.append(output)
    if card.averaged:
        commands.append(f"nnUNetv2_ensemble -i {' '.join(outputs)} -o OUTPUT")
    place = next((path for path in card.files if path.endswith("/postprocessing.pkl")), None)
    if place is not None:
        plans = f"{card.name}/{selected[0].folder}/plans.json"
        commands.append(
            f"nnUNetv2_apply_postprocessing -i OUTPUT -o POSTPROCESSED -pp_pkl_file {place} -plans_json {plans}"
        )
    return commands


def _scores(card: ModelCard) -> list[str]:
    if not card.run.scores:
        return []
    rows = [
        (
            _cell(score.centre),
            score.role,
            _cell(score.label or "mean over labels"),
            str(score.dsc.cases if score.dsc else 0),
            str(score.dsc or "–"),
            _of_defined_cases(score),
        )
        for score in card.run.scores
    ]
    return [
        "## Scores on cases that it was not trained on",
        "",
        *_table(("centre", "", "label", "cases", "DSC", f"HD95 ({_cell(card.run.distance_unit)})"), rows),
        "Means over five cases or more, with 95 % bootstrap intervals over them. HD95 is undefined where a mask is "
        "empty: in brackets the number of cases in which it is not."
        + " They are of segmentations before post-processing."
        * bool(card.postprocessing or any(one.postprocessing for one in card.networks)),
        "",
    ]


def _end(card: ModelCard) -> list[str]:
    lines = ["## Limits of use", "", *(f"* {one_line(limit)}" for limit in card.limits), ""]
    if card.run.privacy:
        lines += ["## Privacy in training", "", *(f"* {one_line(told)}" for told in card.run.privacy), ""]
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    lines += ["## Files", "", f"Made with {_cell(versions)}. SHA-256:", ""]
    return [*lines, *(f"* `{path}`: `{digest}`" for path, digest in card.files.items()), ""]


def _of_defined_cases(score: CentreScore) -> str:
    """HD95, with the number of its cases where there are more."""
    if score.hd95 is None:
        return "–"
    is_of_all = score.dsc is None or score.hd95.cases == score.dsc.cases
    return str(score.hd95) + ("" if is_of_all else f" [{score.hd95.cases}]")


def _cell(value: Any) -> str:
    return one_line(str(value)).replace("|", "\\|")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]

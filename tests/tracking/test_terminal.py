"""What the terminal shows: a dozen lines in a log, live lines on a terminal."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from fednnunet.tracking.terminal import PLAIN_ROUND_LINES, RunProgress

NODES = ["ISPY1", "NACT"]
STAGES = ("fingerprint", "plan", "preprocess", "train", "evaluate")


def follow(progress: RunProgress, rounds: int) -> None:
    with progress:
        progress.on_stage("start")
        for stage in STAGES:
            if stage == "train":
                progress.on_fold_start(0, rounds, 0)
            progress.on_stage(stage)
            if stage != "train":
                for node in NODES:
                    progress.on_node_reply(node, 0, {})
                continue
            for number in range(1, rounds + 1):
                for node in NODES:
                    progress.on_node_reply(node, number, {"train_loss": 0.5, "pseudo_dice": number / rounds})
                progress.on_round_end(number, [])


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=120, color_system=None), out


@pytest.mark.parametrize("rounds", [1, 2, 9, 20, 1000])
def test_a_log_gets_about_a_dozen_lines(rounds: int) -> None:
    screen, out = console(terminal=False)
    follow(RunProgress("asym", NODES, screen), rounds)
    lines = out.getvalue().splitlines()
    assert len(lines) <= len(STAGES) + PLAIN_ROUND_LINES + 2
    assert "\x1b" not in out.getvalue()
    (last_round,) = [line for line in lines if f"round {rounds}/{rounds}" in line]
    assert "ISPY1 1.00  NACT 1.00" in last_round


def test_stages_follow_in_order() -> None:
    screen, out = console(terminal=False)
    follow(RunProgress("asym", NODES, screen), 3)
    said = [line.split("  ")[-1] for line in out.getvalue().splitlines() if "round " not in line]
    assert [text.split(":")[0].split(" in ")[0] for text in said] == [
        *("fingerprint", "planning", "preprocessing", "training", "scoring", "done")
    ]


def test_a_terminal_has_one_line_a_node_and_the_round() -> None:
    screen, out = console(terminal=True)
    progress = RunProgress("asym", NODES, screen)
    with progress:
        progress.on_fold_start(0, 4, 0)
        progress.on_stage("train")
        progress.on_node_reply("ISPY1", 1, {"train_loss": 0.25, "pseudo_dice": None})
        shown = io.StringIO()
        Console(file=shown, width=120, color_system=None).print(progress)
        first, second, total = shown.getvalue().splitlines()
        assert first.split() == ["ISPY1", "waiting", "epoch", "1/4", "loss", "0.250", "pseudo-Dice", "–"]
        assert second.split() == ["NACT", "training"]
        assert total.startswith("asym  training")
        progress.on_node_reply("NACT", 1, {"train_loss": 0.5, "pseudo_dice": 0.3})
        progress.on_round_end(1, [])
        progress.on_message("node NACT: slow")
    assert "node NACT: slow" in out.getvalue()
    assert "round 1/4" in out.getvalue()


def test_interrupted_lines_say_stopped() -> None:
    screen, out = console(terminal=True)
    progress = RunProgress("asym", NODES, screen)
    progress.on_stage("train")
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    assert "stopped" in out.getvalue()


def test_nodes_may_answer_from_several_threads() -> None:
    screen, out = console(terminal=False)
    names = [f"node {i}" for i in range(8)]
    with RunProgress("asym", names, screen) as progress:
        progress.on_fold_start(0, 5, 0)
        progress.on_stage("train")
        for number in range(1, 6):
            threads = [
                threading.Thread(target=progress.on_node_reply, args=(name, number, {"pseudo_dice": 0.5}))
                for name in names
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            progress.on_round_end(number, [])
    assert all(f"{name} 0.50" in out.getvalue() for name in names)


def test_external_nodes_wait_while_others_train() -> None:
    screen, _ = console(terminal=True)
    progress = RunProgress("asym", [*NODES, "KAUNO"], screen, external=["KAUNO"])
    with progress:
        progress.on_fold_start(0, 3, 0)
        progress.on_stage("train")
        progress.on_node_reply("NACT", 1, {"train_loss": 0.5})
        progress.on_round_end(1, [])
        measured = Console(width=120, record=True, file=io.StringIO())
        measured.print(progress)
        lines = {line.split()[0]: line for line in measured.export_text().splitlines() if line.strip()}
    assert "waiting" in lines["KAUNO"]
    assert "training" in lines["NACT"]


def many(screen: Console, replied: int) -> RunProgress:
    """A hundred nodes, ten of them external, in their second round."""
    names, external = [f"H{number:03}" for number in range(90)], [f"X{number:02}" for number in range(10)]
    progress = RunProgress("asym", [*names, *external], screen, external=external)
    progress.on_fold_start(0, 4, 0)
    progress.on_stage("train")
    for number in (1, 2):
        for place, name in enumerate(names if number == 1 else names[:replied]):
            progress.on_node_reply(name, number, {"train_loss": -place / 100, "pseudo_dice": place / 100})
        if number == 1:
            rows = [{"node": name, "round": 1, "seconds_train": 10.0 + (name == "H012")} for name in names]
            progress.on_round_end(1, rows)
    return progress


def test_many_nodes_are_counted_and_not_listed() -> None:
    screen, _ = console(terminal=True)
    progress = many(screen, replied=37)
    progress.on_waiting(["H080", "H081"])
    shown = io.StringIO()
    Console(file=shown, width=80, color_system=None).print(progress)
    lines = [" ".join(line.split()) for line in shown.getvalue().splitlines()]
    assert lines[:5] == [
        "nodes 37 of 90 done with training",
        "away 2: H080, H081",
        "loss median -0.180, -0.360 (H036) to 0.000 (H000)",
        "pseudo-Dice median 0.180, 0.000 (H000) to 0.360 (H036)",
        lines[4],
    ]
    assert lines[4].startswith("slowest H012, 0:11 in round 1")
    assert len(lines) == 6
    assert lines[5].startswith("asym round 1/4")


def test_a_log_names_the_ends_of_many_nodes() -> None:
    screen, out = console(terminal=False)
    many(screen, replied=90).on_round_end(2, [])
    line = out.getvalue().splitlines()[-1]
    assert "pseudo-Dice  median 0.45, 0.00 (H000) to 0.89 (H089)" in line
    assert len(line) < 120

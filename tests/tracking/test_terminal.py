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

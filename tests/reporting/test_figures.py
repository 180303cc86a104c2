"""Figures show what the tables say."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from PIL import Image

from fednnunet.errors import DataError
from fednnunet.evaluation.statistics import mean_interval
from fednnunet.reporting import figures
from fednnunet.reporting.run_folder import Run, merge, read_run
from fednnunet.reporting.tables.results_table import case_means
from fednnunet.run_files import CASE_COLUMNS
from tests.support.run_folders import many_nodes

MakeRun = Callable[..., Path]


def test_curves_draw_the_values_of_rounds_csv(make_run: MakeRun) -> None:
    run = read_run(make_run("asym"))
    figure = figures.learning_curves(run.rounds, ["ISPY1", "ISPY2", "DUKE", "NACT"])
    assert [axes.get_title() for axes in figure.axes] == ["training loss", "validation loss", "pseudo-Dice"]
    expected = run.rounds[run.rounds["node"] == "ISPY1"]["train_loss"].to_numpy()
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), expected)


def test_curves_of_several_set_ups_stand_in_columns_and_seeds_become_a_band(make_run: MakeRun) -> None:
    runs = [read_run(make_run(name, seed=seed)) for name in ("ffe", "local") for seed in (0, 1)]
    rounds = merge([run.rounds for run in runs])
    figure = figures.learning_curves(rounds, ["ISPY1", "ISPY2", "DUKE", "NACT"])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["local", "ffe"]
    assert len(figure.axes) == 6
    line = figure.axes[0].lines[0]
    chosen = rounds[(rounds["strategy"] == "local") & (rounds["node"] == "ISPY1")]
    np.testing.assert_allclose(line.get_ydata(), chosen.groupby("round")["train_loss"].mean())
    assert len(figure.axes[0].collections) == 4


def test_boxes_means_and_dots_are_those_of_the_cases(make_run: MakeRun) -> None:
    scores = case_means(read_run(make_run("asym")).cases)
    few = scores[(scores["node"] != "NACT") | (scores["case"] < 3)]
    figure = figures.case_scores(few, ["ISPY1", "ISPY2", "DUKE", "NACT"], ["KAUNO"], "mm")
    lines = figure.axes[0].lines
    dots = [line for line in lines if line.get_label() == "case"]
    assert [len(line.get_ydata()) for line in dots] == [6, 6, 6, 3, 6]
    means = [float(line.get_ydata()[0]) for line in lines if line.get_label() == "mean"]
    np.testing.assert_allclose(means, few.groupby("node", sort=False)["dsc"].mean())
    boxes = [patch.get_path().vertices[:, 1] for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]
    quartiles = few.groupby("node", sort=False)["dsc"].quantile([0.25, 0.75]).unstack().drop("NACT")  # three cases
    np.testing.assert_allclose([(box.min(), box.max()) for box in boxes], quartiles)


def test_a_set_up_has_one_colour_everywhere() -> None:
    assert figures.strategy_colours(["asym", "mine"])["asym"] == figures.strategy_colours(["local", "asym"])["asym"]
    colours = figures.strategy_colours(["local", "asym", "ffe", "centralized", *(f"s{i}" for i in range(6))])
    assert len({to_hex(colour) for colour in colours.values()}) == 10


def test_overlay_respects_spacing_and_names_node_case_and_score(make_run: MakeRun) -> None:
    overlay = figures.read_overlay(read_run(make_run("asym", overlays=True)).overlays["NACT"][0])
    figure = figures.overlay_grid("NACT", {"best": {"asym": overlay, "ffe": overlay}, "worst": {"ffe": overlay}})
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == [
        f"NACT · {name}\nDSC {overlay.dsc:.3f}" for name in ("best · asym", "best · ffe", "worst · ffe")
    ]
    assert shown[0].get_aspect() == pytest.approx(1.2)


def test_an_empty_prediction_is_marked_in_the_picture(make_run: MakeRun) -> None:
    overlay = figures.read_overlay(read_run(make_run("asym", overlays=True)).overlays["NACT"][0])
    nothing = replace(overlay, prediction=0 * overlay.prediction, dsc=float("nan"))
    (axes,) = figures.overlay_grid("NACT", {"best": {"asym": nothing}}).axes
    assert axes.get_title().endswith("DSC not defined")
    assert [text.get_text() for text in axes.texts] == ["nothing predicted in this slice"]


def test_a_panel_shows_both_contours_in_their_colours(make_run: MakeRun) -> None:
    overlay = figures.read_overlay(read_run(make_run("asym", overlays=True)).overlays["NACT"][0])

    def colours(panel: bytes) -> set[str]:
        with Image.open(io.BytesIO(panel)) as picture:
            assert picture.size[0] == 320
            return {to_hex(np.array(pixel) / 255) for _, pixel in picture.convert("RGB").getcolors(1 << 20)}

    assert {"#56b4e9", "#f0b400"} <= colours(figures.overlay_panel(overlay))
    nothing = replace(overlay, prediction=0 * overlay.prediction)
    assert "#f0b400" not in colours(figures.overlay_panel(nothing))


def test_a_report_of_eight_centres_and_four_set_ups_stays_small() -> None:
    noise = np.random.default_rng(0).normal(size=(512, 512))  # what compresses worst
    mask = np.zeros((512, 512), np.uint8)
    panel = figures.overlay_panel(figures.Overlay(noise, mask, mask, np.ones(2), 0.5))
    assert 8 * 4 * 3 * len(figures.as_data_uri(panel, "image/png")) < 9e6


def test_a_broken_overlay_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "A__0.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(DataError, match=r"A__0\.npz"):
        figures.read_overlay(tmp_path / "A__0.npz")


def test_costs_are_the_slowest_node_and_the_sum_of_traffic() -> None:
    rounds = pd.DataFrame(
        {
            "strategy": "asym",
            "round": [1, 1],
            "node": ["A", "B"],
            "seconds_train": [2.0, 5.0],
            "seconds_exchange": [0.5, 0.1],
            "bytes_up": [1e6, 2e6],
            "bytes_down": [3e6, 3e6],
        }
    )
    folds = pd.concat([rounds.assign(fold="0"), rounds.assign(fold="1", seconds_train=[2.0, 7.0])])
    (train, _), (up, _) = (axes.lines for axes in figures.round_costs(folds).axes)
    assert [float(line.get_ydata()[0]) for line in (train, up)] == [6.0, 3.0], "mean over folds, not their sum"
    time_axes, bytes_axes = figures.round_costs(rounds).axes
    assert [float(line.get_ydata()[0]) for line in time_axes.lines] == [5.0, 0.5]
    assert [float(line.get_ydata()[0]) for line in bytes_axes.lines] == [3.0, 6.0]


def test_saved_as_png_and_svg(tmp_path: Path, make_run: MakeRun) -> None:
    figures.save_figure(figures.round_costs(read_run(make_run()).rounds), tmp_path / "figures", "costs")
    assert (tmp_path / "figures" / "costs.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "figures" / "costs.svg").read_bytes()


def test_forest_has_one_row_per_strategy_with_all_its_seeds() -> None:
    values = {"asym": [0.5, 0.6, 0.7], "centralized steps": [0.6, 0.7, 0.8]}
    intervals = {name: {name: mean_interval(seeds)} for name, seeds in values.items()}
    colours = dict.fromkeys(values, "#000000")
    (axes,) = figures.forest(intervals, "DSC", colours, values).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(values)
    drawn = [list(map(float, line.get_xdata())) for line in axes.lines]
    for name in values:
        interval = intervals[name][name]
        assert values[name] in drawn
        assert [interval.low, interval.high] in drawn


def test_forest_of_several_set_ups_keeps_them_apart_within_a_row() -> None:
    interval = mean_interval([0.1, 0.2])
    figure = figures.forest({"A": {"ffe": interval, "asym": interval}}, "DSC", {"ffe": "#111111", "asym": "#222222"})
    (axes,) = figure.axes
    assert len({float(line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "D"}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ffe", "asym"]


def test_cross_centre_matrix_shows_each_model_at_each_centre() -> None:
    rows = [
        ("asym", node, model, 0, case, "x", value + 0.1 * case, 1.0, 0.5, 0.0, "")
        for node, model, value in (("A", "A", 0.6), ("A", "B", 0.1), ("B", "A", 0.3), ("B", "B", 0.7), ("X", "A", 0.2))
        for case in range(2)
    ]
    cases = pd.DataFrame(rows, columns=list(CASE_COLUMNS))
    figure = figures.cross_centre(cases, ["A", "B"], ["X"])
    assert figure is not None
    (axes,) = figure.axes
    (shown,) = axes.images
    np.testing.assert_allclose(shown.get_array(), [[0.65, 0.35, 0.25], [0.15, 0.75, np.nan]])
    assert [text.get_text() for text in axes.texts] == ["0.65", "0.35", "0.25", "0.15", "0.75", "–"]
    only_own = cases[(cases["node"] == cases["model"]) | (cases["node"] == "X")]
    assert figures.cross_centre(only_own, ["A", "B"], ["X"]) is None


def hundred_nodes(make_run: MakeRun, **options: object) -> tuple[list[str], list[str], Run]:
    nodes, external = many_nodes()
    run = read_run(make_run("asym", nodes=nodes, external=external, held_out=None, labels=("tumour",), **options))
    return list(nodes), external, run


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_curves_of_many_nodes_are_their_median_and_quantiles(make_run: MakeRun) -> None:
    nodes, _, run = hundred_nodes(make_run)
    rounds = run.rounds.copy()
    rounds.loc[(rounds["node"] == "H012") & (rounds["round"] > 6), "train_loss"] = 0.9
    figure = figures.learning_curves(rounds, nodes)
    assert legend_texts(figure) == ["median of the nodes", "middle half of the nodes", "nine in ten nodes"]
    axes = figure.axes[0]
    by_round = rounds.groupby("round")["train_loss"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), by_round.median())
    edges = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.max() == pytest.approx(by_round.quantile(0.75).max())
    assert edges.min() == pytest.approx(by_round.quantile(0.25).min())
    assert "H012" in {text.get_text() for text in axes.texts}, "it ends far from the others"
    assert all(len(axes.texts) <= 2 for axes in figure.axes)


def test_scores_of_many_nodes_are_sorted_and_set_against_their_size(make_run: MakeRun) -> None:
    nodes, external, run = hundred_nodes(make_run)
    scores = case_means(run.cases)
    figure = figures.score_distributions(scores, nodes, external, "mm", run.info["num_training"])
    assert legend_texts(figure) == ["asym"]
    by_rank, by_size = figure.axes[:2]
    means = scores.groupby("node")["dsc"].mean()
    np.testing.assert_allclose(by_rank.lines[0].get_ydata(), np.sort(means[nodes]))
    np.testing.assert_allclose(by_rank.lines[1].get_ydata(), np.sort(means[external]))
    assert [text.get_text() for text in by_rank.texts] == [means[nodes].idxmin()]
    assert sorted(by_size.lines[0].get_xdata()) == sorted(run.info["num_training"].values())
    assert len(figure.axes) == 4
    assert len(figures.score_distributions(scores, nodes, external, "mm").axes) == 2, "sizes are not known"


def test_a_matrix_of_many_nodes_has_colours_and_few_names(make_run: MakeRun) -> None:
    nodes, external, run = hundred_nodes(make_run, crossed=True)
    figure = figures.cross_centre(run.cases, nodes, external)
    assert figure is not None
    axes = figure.axes[0]
    means = run.cases.groupby(["model", "node"])["dsc"].mean().unstack()
    elsewhere = means.loc[nodes, nodes].mask(np.eye(len(nodes), dtype=bool)).mean(axis=1)
    order = list(elsewhere.sort_values(ascending=False).index)
    np.testing.assert_allclose(axes.images[0].get_array(), means.loc[order, [*order, *external]])
    assert not list(axes.texts)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) <= 10
    assert (labels[0], labels[-1]) == (order[0], order[-1])


def test_differences_of_many_nodes_are_sorted_and_the_ends_named() -> None:
    intervals = {f"H{place:02}": {"ffe": mean_interval([place, place + 2])} for place in range(30)}
    intervals["all centres"] = {"ffe": mean_interval([15, 17])}
    figure = figures.sorted_differences(intervals, "all centres", ["H07"], "points", {"ffe": "#111111"})
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [float(line.get_xdata()[0]) for line in dots] == [place + 1.0 for place in range(30)]
    assert [line.get_markerfacecolor() == "white" for line in dots].index(True) == 7
    assert {text.get_text() for text in axes.texts} == {"H00", "H29"}

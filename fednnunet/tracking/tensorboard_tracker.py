"""TensorBoard: event files in the run's folder, without torch or TensorFlow."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednnunet.errors import ConfigError
from fednnunet.exchange.messages import Fold
from fednnunet.reporting.run_folder import read_run
from fednnunet.tracking.base import (
    Tracker,
    fold_prefix,
    has_many_nodes,
    node_metrics,
    overlay_images,
    round_metrics,
    scores_of,
    summarised_scores,
)

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

SERVER = "server"
"""Folder of the figures of all nodes together."""
_RGBA = 4


class TensorBoardTracker(Tracker):
    """Curves, scores and pictures for ``tensorboard --logdir <folder>``: a subfolder per node, and ``server``.

    Of more than :data:`~fednnunet.listing.MOST_NODES` nodes there is ``server`` alone, so that a chart has a line per
    run: means and spreads over nodes; ``rounds.csv`` and the report have each node.

    Args:
        folder: the run's; its subfolder ``tensorboard`` takes the files.
        pictures: also write the overlays of held-out cases.
    """

    def __init__(self, folder: str | Path, pictures: bool = True) -> None:
        self._run_folder = Path(folder)
        self.folder = self._run_folder / "tensorboard"
        self.pictures = pictures
        self._metadata: Mapping[str, Any] = {}
        self._many = False
        self._prefix = ""
        self._round = 0
        self._writers: dict[str, EventFileWriter] = {}

    def on_run_start(self, metadata: Mapping[str, Any]) -> None:
        """Check that the library is installed.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        try:
            import tensorboard  # noqa: F401
        except ModuleNotFoundError:
            raise ConfigError("logger=tensorboard needs TensorBoard: pip install 'fednnunet[tracking]'") from None
        self._metadata = metadata
        self._many = has_many_nodes(self._run_folder)

    def on_plans(self, plans: Mapping[str, Mapping[str, Any]]) -> None:
        """Count the nodes, which a federation across machines need not have named before."""
        self._many = has_many_nodes(self._run_folder, plans)

    def on_fold_start(self, fold: Fold, rounds: int, finished: int) -> None:
        """Name the curves that follow."""
        self._prefix = fold_prefix(self._metadata, fold)

    def on_round_end(self, server_round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A node's figures to its folder; means, slowest node and traffic to the server's."""
        if not rows:
            return
        self._round = server_round
        for row in () if self._many else rows:
            self._write_numbers(str(row["node"]), node_metrics(row), self._prefix)
        self._write_numbers(SERVER, round_metrics(rows, self.round_means, self._many), self._prefix)
        for writer in self._writers.values():
            writer.flush()

    def on_result(self, run_folder: Path) -> None:
        """Final scores, and one picture per node; of many nodes, of some.

        Raises:
            DataError: a file of the run cannot be read; names it.
        """
        run = read_run(run_folder)
        for metric, by_node in (summarised_scores if self._many else scores_of)(run).items():
            self._write_numbers(SERVER, {f"{metric}/{node}": value for node, value in by_node.items()})
        for centre, _, png in overlay_images(run) if self.pictures else ():
            name, tag = (SERVER, f"held-out case of {centre}") if self._many else (centre, "held-out case")
            self._write_picture(name, tag, png)

    def on_run_end(self, error: BaseException | None = None) -> None:
        """Close all files."""
        while self._writers:
            _, writer = self._writers.popitem()
            writer.close()

    def _write_numbers(self, name: str, numbers: Mapping[str, float], prefix: str = "") -> None:
        self._write(name, [{"tag": f"{prefix}{key}", "simple_value": value} for key, value in numbers.items()])

    def _write_picture(self, name: str, tag: str, png: bytes) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(io.BytesIO(png)) as picture:
            width, height = picture.size
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=_RGBA)
        self._write(name, [{"tag": tag, "image": image}])

    def _write(self, name: str, values: Sequence[Mapping[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if name not in self._writers:
            self._writers[name] = EventFileWriter(str(self.folder / name))
        summary = Summary(value=[Summary.Value(**value) for value in values])
        self._writers[name].add_event(Event(wall_time=time.time(), step=self._round, summary=summary))

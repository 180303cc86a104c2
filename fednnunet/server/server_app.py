"""The server: the phases of a federated run, in order.

It runs on any Flower grid: the local :class:`~fednnunet.server.local_grid.LocalGrid` or a SuperLink. It never
sees an image. An average can be requested from the nodes again; what it cannot get back from them (rounding residuals,
momenta) it writes to the run's folder after each round (:mod:`~fednnunet.server.strategy.checkpoint`).
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fednnunet.server.local_grid import NodeGrid
from fednnunet.server.node_client import NodeClient
from fednnunet.server.phases.channels import unite_node_channels
from fednnunet.server.phases.evaluate import evaluate_external_centres, evaluate_nodes
from fednnunet.server.phases.labels import unite_labels
from fednnunet.server.phases.noise import check_noise
from fednnunet.server.phases.prepare import match_networks, plan_networks, preprocess_images
from fednnunet.server.phases.register import check_agreement, check_folds, register_nodes
from fednnunet.server.phases.train import is_finished, train_rounds
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import ServerSettings, Session
from fednnunet.server.strategy.base import Strategy


def build_server_app(settings: ServerSettings, strategy: Strategy, recorder: RunRecorder) -> ServerApp:
    """A Flower ServerApp that runs the whole federation."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        assert isinstance(grid, NodeGrid), "the local one, or that of a SuperLink"
        session = Session(NodeClient(grid, recorder, settings.wait_for_nodes), settings, strategy, recorder)
        register_nodes(session)
        check_agreement(session)
        unite_labels(session)
        unite_node_channels(session)
        check_folds(session)
        plan_networks(session)
        preprocess_images(session)
        check_noise(session)
        match_networks(session)
        for fold in settings.folds:
            if not is_finished(session, fold):
                arrays = train_rounds(session, fold)
                evaluate_nodes(session, fold, arrays)
        evaluate_external_centres(session)

    return app

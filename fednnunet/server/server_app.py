"""The server: what happens in a federation, phase by phase.

It runs on any Flower grid: the embedded :class:`~fednnunet.server.local_grid.LocalGrid` or a SuperLink. It never
sees an image; what it keeps of a round can be asked of the nodes again, so it has no state of its own to lose.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fednnunet.exchange.messages import Fold
from fednnunet.server.local_grid import NodeGrid
from fednnunet.server.node_client import NodeClient
from fednnunet.server.phases.evaluate import evaluate_nodes, score_external_centres
from fednnunet.server.phases.prepare import plan_networks, preprocess_images
from fednnunet.server.phases.register import check_agreement, describe_nodes
from fednnunet.server.phases.train import train_rounds
from fednnunet.server.run_recorder import RunRecorder
from fednnunet.server.session import ServerSettings
from fednnunet.server.strategy.asym_fedavg import AsymFedAvg, NoExchange


def build_server_app(settings: ServerSettings, strategy: AsymFedAvg | NoExchange, journal: RunRecorder) -> ServerApp:
    """A Flower ServerApp that runs the whole federation."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        assert isinstance(grid, NodeGrid), "the embedded one, or that of a SuperLink"
        contact = NodeClient(grid, journal, settings.patient)
        federation = describe_nodes(contact, settings, journal)
        check_agreement(federation, settings.heterogeneous_tasks)
        journal.num_training = {federation.name(n): federation.described[n].num_training for n in federation.training}
        plan_networks(contact, federation, settings, journal)
        preprocess_images(contact, federation, settings, journal)
        strategy.prepare(
            {node: federation.planned[node].layers for node in federation.training},
            {node: federation.name(node) for node in federation.training},
            settings.dtype,
        )
        finished: dict[Fold, list[int]] = {}
        for fold in settings.folds:
            before = journal.models_of(fold)
            if before:
                finished[fold] = [node for node in federation.training if federation.name(node) in before]
            else:
                arrays = train_rounds(contact, federation, strategy, fold, settings, journal)
                finished[fold] = evaluate_nodes(contact, federation, strategy, fold, arrays, settings, journal)
        score_external_centres(contact, federation, strategy, finished, settings, journal)

    return app

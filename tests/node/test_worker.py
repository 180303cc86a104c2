"""A real node worker, asked by hand: repeated, stale, broken and abandoned requests."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fednnunet.config.run import RunConfig
from fednnunet.exchange.channel import WorkerFailure, call_worker
from fednnunet.exchange.messages import (
    EvaluateReply,
    EvaluateRequest,
    ExchangeDtype,
    FingerprintReply,
    Fold,
    Kind,
    Model,
    PlanReply,
    PreprocessReply,
    ScoreModelsRequest,
    SendModelReply,
    SendModelRequest,
    TrainReply,
    TrainRequest,
)
from fednnunet.node.launcher import NodeProcesses
from fednnunet.node.resource_errors import explain_out_of_memory
from fednnunet.node.settings import NodeSettings, WorkerPlan
from tests.conftest import write_boxes
from tests.support.raw_datasets import change_description, rewrite

pytestmark = pytest.mark.integration
Arrays = dict[str, np.ndarray]


def run_config(folder: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "seed": 0,
            "fold": 0,
            "configuration": "2d",
            "dataset": {
                "name": "boxes",
                "raw_folder": None,
                "centres": [{"name": "Oslo", "dataset": 101}],
            },
            "strategy": {"name": "asym", "plan_from": "own", "aggregation": {}},
            "fingerprint": {"intensity": "histogram"},
            "privacy": {},
            "exchange": {"dtype": "float32"},
            "evaluation": {"cross_centre": False},
            "trainer": {
                "class": "nnUNetTrainer",
                "epochs": 3,
                "iterations": 2,
                "val_iterations": 1,
                "initial_lr": 0.01,
                "weight_decay": 0,
                "oversample_foreground": 0.33,
            },
            "model": {
                "planner": "ExperimentPlanner",
                "overrides": {"UNet_base_num_features": 4, "UNet_max_features_2d": 8},
            },
            "gpu_memory": {"gb": 8},
            "compute": {"device": "cpu", "threads": 1},
            "init": {},
            "federation": {"grid": "single_machine", "workers": 1},
            "logger": {},
            "paths": {"data": folder, "cache": folder / "cache", "run": folder / "run"},
        }
    )


class Server:
    """Asks the worker what a server would."""

    def __init__(self, address: str, key: bytes) -> None:
        self.address, self.key = address, key

    def ask(self, kind: Kind, body: str = "{}", arrays: Arrays | None = None) -> tuple[bytes, Arrays]:
        reply, shared = call_worker(self.address, self.key, kind, body, arrays)
        if shared is None:
            return reply, {}
        received = {name: array.copy() for name, array in shared.views().items()}
        return reply, received

    def train(
        self,
        server_round: int,
        layers: list[str],
        arrays: Arrays | None = None,
        dtype: ExchangeDtype = "float32",
        trained: int = 0,
        epochs: int = 1,
    ) -> tuple[TrainReply, Arrays]:
        body = TrainRequest(server_round=server_round, trained=trained, epochs=epochs, layers=layers, dtype=dtype)
        reply, received = self.ask(Kind.TRAIN, body.model_dump_json(), arrays)
        return TrainReply.model_validate_json(reply), received

    def evaluate(self, arrays: Arrays | None = None, server_round: int = 0, trained: int = 0) -> EvaluateReply:
        body = EvaluateRequest(server_round=server_round, trained=trained)
        reply, _ = self.ask(Kind.EVALUATE, body.model_dump_json(), arrays)
        return EvaluateReply.model_validate_json(reply)

    def send_model(self, layers: list[str]) -> tuple[SendModelReply, Arrays]:
        reply, received = self.ask(Kind.SEND_MODEL, SendModelRequest(fold=0, layers=layers).model_dump_json())
        return SendModelReply.model_validate_json(reply), received

    def keep_model(self, model: Model, arrays: Arrays) -> None:
        self.ask(Kind.KEEP_MODEL, model.model_dump_json(), arrays)

    def score_models(self, **models: list[Fold]) -> EvaluateReply:
        reply, _ = self.ask(Kind.SCORE_MODELS, ScoreModelsRequest(fold=0, models=models).model_dump_json())
        return EvaluateReply.model_validate_json(reply)


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    folder = tmp_path / "raw" / "Dataset101_Boxes"
    return NodeSettings("Oslo", tmp_path / "Oslo", {"Oslo": folder}, False, run_config(tmp_path), 1, False)


@contextlib.contextmanager
def serving(settings: NodeSettings) -> Iterator[Server]:
    with NodeProcesses([WorkerPlan({1: settings})]) as processes:
        address = processes.addresses[1]
        yield Server(address["socket"], Path(address["key-file"]).read_bytes())


@pytest.fixture
def server(settings: NodeSettings, tmp_path: Path) -> Iterator[Server]:
    write_boxes(tmp_path / "raw")
    with serving(settings) as server:
        yield server


def test_a_fold_that_holds_no_case_out_is_trained_and_not_scored(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw", cases=3)
    few = dataclasses.replace(settings, config=settings.config.model_copy(update={"fold": 3}))
    with serving(few) as server:
        described = FingerprintReply.model_validate_json(server.ask(Kind.FINGERPRINT)[0])
        assert described.held_out == {"Oslo": {3: 0}}
        server.ask(Kind.PLAN, '{"fingerprint": null}')
        prepared = PreprocessReply.model_validate_json(server.ask(Kind.PREPROCESS, '{"fold": 3}')[0])
        assert (prepared.num_training, prepared.num_validation) == (3, 0)
        body = TrainRequest(fold=3, server_round=1, epochs=3, layers=[])
        trained = TrainReply.model_validate_json(server.ask(Kind.TRAIN, body.model_dump_json())[0])
        assert trained.num_examples == 3
        assert trained.val_loss is not None
        finished = EvaluateRequest(fold=3, server_round=1, trained=1)
        assert EvaluateReply.model_validate_json(server.ask(Kind.EVALUATE, finished.model_dump_json())[0]).cases == []


def test_an_error_of_a_node_is_none_of_those_that_share_its_worker(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    damaged = write_boxes(tmp_path / "raw", "Dataset102_Damaged")
    (damaged / "dataset.json").write_text("{")
    other = replace(settings, name="Porto", folder=tmp_path / "Porto", datasets={"Porto": damaged}, same_machine=True)
    with NodeProcesses([WorkerPlan({1: settings, 2: other})]) as processes:
        oslo, porto = (
            Server(address["socket"], Path(address["key-file"]).read_bytes())
            for _, address in sorted(processes.addresses.items())
        )
        assert len(processes._processes) == 1
        for _ in range(2):
            with pytest.raises(WorkerFailure, match=r"^node Porto: .*dataset\.json"):
                porto.ask(Kind.FINGERPRINT)
            assert FingerprintReply.model_validate_json(oslo.ask(Kind.FINGERPRINT)[0]).node == "Oslo"
        oslo.ask(Kind.PLAN, '{"fingerprint": null}')
    assert "dataset.json" in (tmp_path / "Porto" / "node.log").read_text()
    assert "Damaged" not in (tmp_path / "Oslo" / "node.log").read_text()


@pytest.mark.parametrize("channel", ["MR", "CT"])
def test_a_centre_without_foreground_trains_unless_it_normalises_by_that(
    settings: NodeSettings, tmp_path: Path, channel: str
) -> None:
    folder = write_boxes(tmp_path / "raw", cases=5)
    change_description(folder, channel_names={"0": channel})
    for label in (folder / "labelsTr").iterdir():
        rewrite(label, lambda voxels: voxels * 0)
    with serving(settings) as server:
        server.ask(Kind.FINGERPRINT)
        if channel == "CT":
            problem = r"^node Oslo: no case has foreground, and channel 0 \(CT\) is normalised by CTNormalization"
            with pytest.raises(WorkerFailure, match=problem):
                server.ask(Kind.PLAN, '{"fingerprint": null}')
            return
        server.ask(Kind.PLAN, '{"fingerprint": null}')
        server.ask(Kind.PREPROCESS)
        trained, _ = server.train(1, [], epochs=3)
        assert trained.train_loss is not None
        (case,) = server.evaluate(server_round=1, trained=1).cases
        assert case.empty in ("reference", "both")


def test_a_node_through_all_its_stages(server: Server) -> None:
    with pytest.raises(WorkerFailure, match="training was asked for before preprocessing"):
        server.train(1, [])
    described = FingerprintReply.model_validate_json(server.ask(Kind.FINGERPRINT)[0])
    assert (described.node, described.num_training, described.resume_rounds) == ("Oslo", 6, {0: []})
    planned = PlanReply.model_validate_json(server.ask(Kind.PLAN, '{"fingerprint": null}')[0])
    assert planned.num_parameters == sum(int(np.prod(shape)) for shape in planned.layers.values())
    # Whatever the node's plans say of its data, no case name and no path leaves it.
    everything = described.model_dump_json() + planned.model_dump_json()
    assert "case_0" not in everything
    assert "raw/" not in everything
    server.ask(Kind.PREPROCESS)
    layers = list(planned.layers)
    first, *_ = layers

    initial, state = server.train(0, layers)
    assert initial.train_loss is None
    assert {name: list(array.shape) for name, array in state.items()} == planned.layers

    once, after = server.train(1, layers, state)
    again, repeated = server.train(1, layers)
    assert once.train_loss == again.train_loss
    assert all(np.array_equal(after[name], repeated[name]) for name in layers)
    assert not np.array_equal(after[first], state[first])

    with pytest.raises(WorkerFailure, match="round 9 was asked for; there are 3 epochs"):
        server.train(9, layers)
    with pytest.raises(WorkerFailure, match=f"layer {first} with values that are not finite"):
        server.train(2, layers, {first: np.full_like(after[first], np.nan)})
    with pytest.raises(WorkerFailure, match=f"layer {first} was received with shape"):
        server.train(2, layers, {first: np.zeros(3, dtype=np.float32)})
    with pytest.raises(WorkerFailure, match=r"layer no\.such\.layer was"):
        server.train(2, ["no.such.layer"])

    # A relay that dies in the middle of the epoch: the next one gets what was trained.
    with Client(server.address, family="AF_UNIX", authkey=server.key) as relay:
        relay.send_bytes(b'{"kind": "train", "arrays": false}')
        relay.send_bytes(TrainRequest(server_round=2, layers=layers).model_dump_json().encode())
        relay._handle, handle = None, relay._handle  # type: ignore[attr-defined]  close without a goodbye
        socket.socket(fileno=handle).close()
    second, _ = server.train(2, layers)
    assert second.server_round == 2
    third, last = server.train(3, layers)
    assert third.learning_rate is not None
    assert second.learning_rate is not None
    assert third.learning_rate < second.learning_rate
    with pytest.raises(WorkerFailure, match="round 2 was asked for after round 3"):
        server.train(2, layers, trained=9)  # it has no checkpoint of that round to go back to

    ones = {first: np.ones_like(last[first])}
    with pytest.raises(WorkerFailure, match="model of fold 0 was asked for before the fold was finished"):
        server.send_model(layers)
    reply = server.evaluate(ones, server_round=3)
    sent, final = server.send_model(layers)
    assert sent.mirror_axes == [0, 1]
    scores = reply.cases
    assert [(score.centre, score.label) for score in scores] == [("Oslo", "tumour")] * 2
    assert np.array_equal(final[first], ones[first]), "the last aggregate is what is scored and saved"
    assert server.evaluate(server_round=3) == reply

    # The same model, as if another node had sent it, gets the same scores on the held-out cases.
    plans = PlanReply.model_validate_json(server.ask(Kind.PLAN, '{"fingerprint": null}')[0]).plans
    model = Model(node="Porto", fold=0, plans=plans, mirror_axes=sent.mirror_axes)
    without = {name: array for name, array in final.items() if name != first}
    with pytest.raises(WorkerFailure, match=f"a model without its layer {first}"):
        server.keep_model(model, without)
    server.keep_model(model, final)
    with pytest.raises(WorkerFailure, match="no model of node Porto for fold 1"):
        server.score_models(Porto=[0, 1])
    elsewhere = server.score_models(Porto=[0])
    assert elsewhere.cases == [score.model_copy(update={"model": "Porto"}) for score in scores]
    with pytest.raises(WorkerFailure, match="no model of node Porto for fold 0"):
        server.score_models(Porto=[0])


def test_a_server_that_has_lost_a_round_finds_it_again(server: Server, tmp_path: Path) -> None:
    """The node lives on, and its fit is at a later round."""
    layers = layers_of(server)
    _, state = server.train(0, layers)
    _, first = server.train(1, layers, state)
    told, second = server.train(2, layers, first)
    again = server.train(1, layers, trained=1)
    assert again[0].server_round == 1
    assert same(first, again[1])
    repeated, after = server.train(2, layers, first, trained=1)
    assert same(second, after)
    assert (repeated.train_loss, repeated.val_loss) == (told.train_loss, told.val_loss)
    shutil.rmtree(tmp_path / "cache")  # it is made again, and training goes on from the checkpoint
    _, third = server.train(3, layers, second, trained=2)
    assert list((tmp_path / "cache").glob("*/*/*/nnUNetPlans_2d/*.pkl"))
    # The fit is over; and the server goes back once more.
    assert same(second, server.train(2, layers, trained=2)[1])
    assert same(third, server.train(3, layers, second, trained=2)[1])
    # It has lost all of them, and begins anew: as at first, and nothing of later rounds stays.
    assert same(state, server.train(0, layers)[1])
    assert same(first, server.train(1, layers, state)[1])
    assert FingerprintReply.model_validate_json(server.ask(Kind.FINGERPRINT)[0]).resume_rounds == {0: [1]}


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_server_that_is_started_again_finds_the_round_as_it_was(server: Server, rounds: int) -> None:
    """It asks for all stages anew, while the node's fit waits between two rounds."""
    layers = layers_of(server)
    _, state = server.train(0, layers)
    sent = {0: state}
    for server_round in range(1, rounds + 1):
        _, sent[server_round] = server.train(server_round, layers, sent[server_round - 1], trained=server_round - 1)
    assert layers_of(server) == layers
    assert same(sent[1], server.train(1, layers, trained=1)[1])
    _, second = server.train(2, layers, sent[1], trained=1)
    assert same(second, sent.get(2, second))
    assert not same(second, sent[1])


def test_other_plans_end_the_training_of_before(settings: NodeSettings, server: Server) -> None:
    layers = layers_of(server)
    server.train(1, layers, server.train(0, layers)[1])
    server.ask(Kind.PLAN, '{"fingerprint": null, "num_training": 100}')
    with pytest.raises(WorkerFailure, match="training was asked for before preprocessing"):
        server.train(2, layers, trained=1)
    server.ask(Kind.PREPROCESS)
    assert server.train(1, layers, server.train(0, layers)[1])[0].server_round == 1


@pytest.mark.parametrize("damage", ["a bit flipped", "the end missing"])
def test_a_damaged_checkpoint_is_not_resumed_from(settings: NodeSettings, tmp_path: Path, damage: str) -> None:
    write_boxes(tmp_path / "raw")
    with serving(settings) as server:
        layers = layers_of(server)
        _, state = server.train(0, layers)
        _, first = server.train(1, layers, state)
        _, second = server.train(2, layers, first)
    (checkpoint,) = (tmp_path / "Oslo").glob("nnUNet_results/*/*/fold_0/checkpoint_round_2.pth")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content if damage == "a bit flipped" else content[:-100])
    with serving(settings) as server:
        described = FingerprintReply.model_validate_json(server.ask(Kind.FINGERPRINT)[0])
        assert described.resume_rounds == {0: [1]}
        assert layers_of(server) == layers
        assert same(first, server.train(1, layers, trained=1)[1])
        assert same(second, server.train(2, layers, first, trained=1)[1])
    assert "checkpoint_round_2.pth is damaged" in (tmp_path / "Oslo" / "node.log").read_text()


def test_changed_data_are_noticed_on_resume(settings: NodeSettings, tmp_path: Path) -> None:
    write_boxes(tmp_path / "raw")
    with serving(settings) as server:
        layers = layers_of(server)
        server.train(1, layers, server.train(0, layers)[1])
    labels = tmp_path / "raw" / "Dataset101_Boxes" / "labelsTr"
    shutil.copyfile(labels / "case_001.nii.gz", labels / "case_002.nii.gz")
    with serving(settings) as server:
        assert layers_of(server) == layers
        with pytest.raises(WorkerFailure, match=r"node Oslo: .* is of another dataset: .*; start a new run") as caught:
            server.train(2, layers, trained=1)
    assert caught.value.failure.error == "config"


def final_checkpoint(folder: Path) -> dict[str, Any]:
    """nnU-Net's, of the one fold that was trained."""
    (path,) = folder.glob("nnUNet_results/*/*/fold_0/checkpoint_final.pth")
    return torch.load(path, weights_only=False)


def test_several_epochs_per_round(server: Server, tmp_path: Path) -> None:
    """Three epochs, two per round: the second round is of one epoch."""
    layers = layers_of(server)
    _, state = server.train(0, layers)
    _, first = server.train(1, layers, state, epochs=2)
    _, second = server.train(2, layers, first, epochs=2)
    server.evaluate(second, server_round=2)
    final = final_checkpoint(tmp_path / "Oslo")
    assert final["current_epoch"] == 3
    assert len(final["logging"]["train_losses"]) == 3


def test_rounds_that_a_node_was_not_in_count_as_over(server: Server, tmp_path: Path) -> None:
    """Its schedule follows the rounds; of those that it was not in, nothing is logged."""
    layers = layers_of(server)
    first, state = server.train(1, layers, server.train(0, layers)[1])
    third, after = server.train(3, layers, state, trained=1)
    assert first.learning_rate == pytest.approx(0.01)
    assert third.learning_rate == pytest.approx(0.01 * (1 - 2 / 3) ** 0.9)
    server.evaluate(after, server_round=3, trained=3)
    final = final_checkpoint(tmp_path / "Oslo")
    logged = final["logging"]
    assert final["current_epoch"] == 3
    assert {len(values) for values in logged.values()} == {3}
    assert np.isnan(logged["train_losses"]).tolist() == [False, True, False]
    assert not np.isnan(logged["ema_fg_dice"]).any()


def layers_of(server: Server) -> list[str]:
    """Bring a node to where it can train; its layers."""
    server.ask(Kind.FINGERPRINT)
    planned = PlanReply.model_validate_json(server.ask(Kind.PLAN, '{"fingerprint": null}')[0])
    server.ask(Kind.PREPROCESS)
    return list(planned.layers)


def same(ours: Arrays, theirs: Arrays) -> bool:
    return all(ours[name].tobytes() == array.tobytes() for name, array in theirs.items()) and len(ours) == len(theirs)


def test_a_rounded_round_is_answered_with_the_same_bytes_also_after_a_new_start(
    settings: NodeSettings, tmp_path: Path
) -> None:
    write_boxes(tmp_path / "raw")
    with serving(settings) as server:
        layers = layers_of(server)
        _, state = server.train(0, layers, dtype="bfloat16")
        assert {array.dtype.name for array in state.values()} == {"float32"}, "the first values are not rounded"
        _, first = server.train(1, layers, state, "bfloat16")
        assert {array.dtype.name for array in first.values()} == {"bfloat16"}
        with pytest.raises(WorkerFailure, match="sent before with other layers"):
            server.train(1, layers[:-1], dtype="bfloat16")
        _, second = server.train(2, layers, first, "bfloat16")
        assert same(second, server.train(2, layers, dtype="bfloat16")[1])
        _, third = server.train(3, layers, second, "bfloat16")
        server.evaluate(third, server_round=3)
        _, final = server.send_model(layers)
        assert all(np.array_equal(final[name], third[name].astype(np.float32)) for name in layers)
        assert same(third, server.train(3, layers, dtype="bfloat16")[1])
    with serving(settings) as server:
        assert layers_of(server) == layers
        assert same(second, server.train(2, layers, dtype="bfloat16", trained=2)[1])
        assert same(third, server.train(3, layers, second, "bfloat16")[1])
    with serving(settings) as server:
        assert layers_of(server) == layers
        assert same(third, server.train(3, layers, second, "bfloat16", trained=2)[1])


def allocate_too_much() -> None:
    torch.empty(2**50)


def lose_an_augmentation_process() -> None:
    raise RuntimeError("One or more background workers are no longer alive. Exiting.")  # words of batchgenerators


def multiply_out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")  # only a GPU can run out of its memory for real


@pytest.mark.parametrize(
    ("fail", "here", "at_a_hospital"),
    [
        (
            allocate_too_much,
            "out of main memory; lower federation.workers, compute.preprocessing_workers or "
            "+gpu_memory.per_node.Oslo; ",
            "out of main memory; lower compute.preprocessing_workers or gpu_memory.gb in its node.yaml; ",
        ),
        (
            lose_an_augmentation_process,
            "lack of memory; lower compute.augmentation_workers",
            "lack of memory; lower compute.augmentation_workers in its node.yaml",
        ),
        (
            multiply_out_of_memory,
            "out of GPU memory with plans for 8 GB; continue with more of it (gpu_memory.cap=false, "
            "federation.workers=1, other programs off the GPU), or start a new run with a lower target: "
            "+gpu_memory.per_node.Oslo=…, or",
            "out of GPU memory with plans for 8 GB; continue with more of it (gpu_memory.cap=false, other programs off "
            "the GPU), or start a new run with a lower target: gpu_memory.gb in its node.yaml, or",
        ),
    ],
)
def test_lack_of_memory_says_what_to_lower_and_where(
    settings: NodeSettings, fail: Callable[[], None], here: str, at_a_hospital: str
) -> None:
    with pytest.raises(RuntimeError) as caught:
        fail()
    for same_machine, part in ((True, here), (False, at_a_hospital)):
        reason = explain_out_of_memory(caught.value, replace(settings, same_machine=same_machine))
        assert reason is not None
        assert part in reason
        assert ("node.yaml" in reason) is not same_machine
    assert explain_out_of_memory(RuntimeError("anything else"), settings) is None


def test_errors_of_the_data_stay_at_a_node_of_another_machine(server: Server, tmp_path: Path) -> None:
    (tmp_path / "raw" / "Dataset101_Boxes" / "labelsTr" / "case_002.nii.gz").unlink()
    with pytest.raises(WorkerFailure) as caught:
        server.ask(Kind.FINGERPRINT)
    assert "case_002" not in str(caught.value)
    assert "case_002" in (tmp_path / "Oslo" / "node.log").read_text()

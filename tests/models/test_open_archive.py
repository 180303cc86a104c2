"""A model's zip from outside: the model that is in it, or one line; nothing is imported, unpickled or extracted."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.model_sharing.model_export import export_pretrained_model

from fednnunet.errors import DataError
from fednnunet.models.ensemble import Ensemble
from fednnunet.models.export_zip import Handover, export_zip
from fednnunet.models.model_card import RunFacts
from fednnunet.models.open_model import open_model
from fednnunet.models.postprocessing import Postprocessing
from tests.support.model_zips import changed_zip
from tests.support.trained_models import TrainedFolders

Change = Callable[[bytes], bytes]
BASE = "Dataset007_X/nnUNetTrainer__nnUNetPlans__2d"


@pytest.fixture(scope="module")
def ours(trained_folders: TrainedFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("zip") / "model.zip"
    export_zip(Handover(Ensemble.of_one(open_model(trained_folders.model("2d"))), "Dataset007_X", RunFacts()), target)
    return target


@pytest.fixture(scope="module")
def nnunets(trained_folders: TrainedFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``nnUNetv2_export_model_to_zip`` writes of the same model."""
    target = tmp_path_factory.mktemp("nnunet") / "model.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(trained_folders.results))
        patch.setenv("nnUNet_raw", str(trained_folders.raw.parent))
        patch.setenv("nnUNet_preprocessed", str(trained_folders.raw.parent))
        export_pretrained_model("Dataset101_Boxes", str(target), ("2d",), folds=(0, 1))
    return target


def directory_of(path: Path) -> int:
    """Where a zip's list of files starts."""
    with zipfile.ZipFile(path) as archive:
        return archive.start_dir


def same_weights(one: Path, other: Path) -> bool:
    weights, others = (open_model(path).weights("1") for path in (one, other))
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_zip_without_what_its_card_is_about_is_refused(
    trained_folders: TrainedFolders, ours: Path, tmp_path: Path
) -> None:
    fewer = changed_zip(ours, tmp_path / "fewer.zip", {"fold_1/checkpoint_final.pth": None})
    with pytest.raises(DataError, match=r"lacks .*fold_1/checkpoint_final.pth, which model_card.json is about"):
        open_model(fewer)
    whole = dataclasses.replace(open_model(trained_folders.model("2d")), postprocessing=Postprocessing.of([(1,)]))
    export_zip(Handover(Ensemble.of_one(whole), "Dataset007_X", RunFacts()), tmp_path / "model.zip")
    without = changed_zip(tmp_path / "model.zip", tmp_path / "without.zip", {"postprocessing.json": None})
    with pytest.raises(DataError, match=r"lacks .*/postprocessing.json, which"):
        open_model(without)


def test_both_kinds_of_zip_hold_the_model(trained_folders: TrainedFolders, ours: Path, nnunets: Path) -> None:
    folder = trained_folders.model("2d")
    for source in (ours, nnunets):
        model = open_model(source)
        assert (model.configuration, model.folds) == ("2d", ("0", "1"))
        assert model.mirror_axes == open_model(folder).mirror_axes
        assert same_weights(source, folder)
        model.load(model.build_network(), "0")


def test_nnunets_zip_holds_what_must_not_leave_and_none_of_it_is_read(nnunets: Path) -> None:
    with zipfile.ZipFile(nnunets) as archive:
        assert b"hostname" in archive.read("Dataset101_Boxes/nnUNetTrainer__nnUNetPlans__2d/fold_0/debug.json")
    assert "dataset" not in open_model(nnunets).dataset_json


def json_change(change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(content: bytes) -> bytes:
        parsed = json.loads(content)
        change(parsed)
        return json.dumps(parsed).encode()

    return apply


def plans(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    return {"model_card.json": None, "plans.json": json_change(lambda whole: change(whole["configurations"]["2d"]))}


def described(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    return {"model_card.json": None, "dataset.json": json_change(change)}


def checkpoint(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    def apply(content: bytes) -> bytes:
        parsed = torch.load(io.BytesIO(content), weights_only=True)
        change(parsed)
        file = io.BytesIO()
        torch.save(parsed, file)
        return file.getvalue()

    return {"model_card.json": None, "fold_1/checkpoint_final.pth": apply}


def first_layer(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    def apply(content: dict[str, Any]) -> None:
        name, tensor = next(iter(content["network_weights"].items()))
        content["network_weights"][name] = change(tensor)

    return checkpoint(apply)


def shared(content: dict[str, Any]) -> None:
    """All layers in one memory: a file that is smaller than its network."""
    layers = content["network_weights"]
    memory = torch.zeros(max(tensor.numel() for tensor in layers.values()))
    for name, tensor in layers.items():
        layers[name] = memory[: tensor.numel()].view(tensor.shape)


class Executed:
    """Does what pickles do that are up to something, if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was unpickled",)


def deflated(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as copy:
        for entry in archive.infolist():
            copy.writestr(entry.filename, archive.read(entry))
    return file.getvalue()


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    # names
    "parent folder": ({"../x": b""}, "outside of the model's folder"),
    "parent folder within": ({f"{BASE}/../../../x": b""}, "outside of the model's folder"),
    "absolute": ({"/etc/x": b""}, "outside of the model's folder"),
    "backslash": ({f"{BASE}\\x": b""}, "outside of the model's folder"),
    "code": ({f"{BASE}/fold_0/trainer.py": b""}, "is no file of a model"),
    "top level": ({"README.txt": b""}, "is no file of a model"),
    "same name in capitals": ({f"{BASE}/PLANS.json": b"{}"}, r"is no file of a model|comes twice"),
    # the card
    "changed after export": ({"dataset.json": lambda content: content + b" "}, "another SHA-256"),
    "not on the card": ({f"{BASE}/fold_2/checkpoint_final.pth": b"x"}, "another SHA-256"),
    "card of another form": ({"model_card.json": b'{"card": 2}'}, r"model_card.json: card: must be 1"),
    "lacking plans": ({"plans.json": None}, "holds no model"),
    "lacking dataset.json": ({"dataset.json": None}, "lacks .*dataset.json"),
    # names that would be imported
    "network": (
        plans(lambda c: c["architecture"].update(network_class_name="os.system")),
        "network_class_name is os.system",
    ),
    "layer": (
        plans(lambda c: c["architecture"]["arch_kwargs"].update(nonlin="os.system")),
        "arch_kwargs.nonlin is os.system",
    ),
    "layers": (
        plans(lambda c: c["architecture"]["_kw_requires_import"].append("strides")),
        "_kw_requires_import is strides",
    ),
    "preprocessor": (plans(lambda c: c.update(preprocessor_name="Popen")), "preprocessor_name is Popen"),
    "normalization": (plans(lambda c: c.update(normalization_schemes=["Popen"])), "normalization_schemes is Popen"),
    "resampling": (
        plans(lambda c: c.update(resampling_fn_seg="resize_segmentation")),
        "resampling_fn_seg is resize_seg",
    ),
    "argument": (
        plans(lambda c: c["resampling_fn_data_kwargs"].update(num_threads=1)),
        "resampling_fn_data_kwargs is num",
    ),
    "reader": (
        {"model_card.json": None, "plans.json": json_change(lambda p: p.update(image_reader_writer="subprocess"))},
        "image_reader_writer is subprocess",
    ),
    "reader of the dataset": (
        described(lambda d: d.update(overwrite_image_reader_writer="os")),
        "overwrite_image_reader_writer is os",
    ),
    # plans
    "stages": (plans(lambda c: c["architecture"]["arch_kwargs"].update(n_stages=10**6)), "beyond"),
    "features": (plans(lambda c: c["architecture"]["arch_kwargs"].update(features_per_stage=[9] * 99)), "too long"),
    "blocks": (plans(lambda c: c["architecture"]["arch_kwargs"].update(n_conv_per_stage=[999] * 4)), "999|layers"),
    "patch": (plans(lambda c: c.update(patch_size=[10**9, 1])), "patch_size.0: must be less than"),
    "spacing": (plans(lambda c: c.update(spacing=[0, 1])), "spacing.0: must be greater than 0"),
    "dimensions": (plans(lambda c: c.update(patch_size=[8, 8, 8])), "3 axes and spacing 2"),
    "text": (plans(lambda c: c.update(batch_size="8")), "batch_size: must be a valid integer"),
    "no JSON": ({"model_card.json": None, "plans.json": b"{"}, "is not JSON"),
    "nested": ({"model_card.json": None, "plans.json": b"[" * 50_000}, "is not JSON"),
    "NaN": ({"model_card.json": None, "plans.json": b'{"configurations": NaN}'}, "holds NaN"),
    "network of other layers": (
        plans(lambda c: c["architecture"]["arch_kwargs"].update(n_conv_per_stage=[1, 2, 2, 2])),
        "is not in the network",
    ),
    # dataset.json
    "labels": (described(lambda d: d["labels"].update(more=2)), r"has the shape \(2, .*, and by plans .* \(3, "),
    "channels": (described(lambda d: d["channel_names"].update({"1": "PET"})), "of 1 channels, dataset.json of 2"),
    "regions": (
        described(lambda d: d.update(labels={"background": 0, "a": [1, 2]})),
        "label values|regions_class_order",
    ),
    # weights
    "infinite": (first_layer(lambda layer: layer / 0), "holds NaN or infinity"),
    "repeated": (
        first_layer(lambda layer: layer.flatten()[:1].expand(layer.numel()).view(layer.shape)),
        "not hold all",
    ),
    "shared": (checkpoint(shared), "layers share numbers"),
    "sparse": (first_layer(lambda layer: layer.to_sparse()), "no plain tensor|cannot be read"),
    "complex": (first_layer(lambda layer: layer + 0j), "complex"),
    "integers": (first_layer(lambda layer: layer.long()), "is torch.int64"),
    "no tensor": (checkpoint(lambda c: c["network_weights"].update({next(iter(c["network_weights"])): 1})), "no plain"),
    "a layer less": (checkpoint(lambda c: c["network_weights"].popitem()), "is missing"),
    "other configuration": (
        checkpoint(lambda c: c["init_args"].update(configuration="3d_fullres")),
        "is of configuration 3d",
    ),
    "other trainer": (checkpoint(lambda c: c.update(trainer_name="nnUNetTrainerBN")), "was trained by nnUNetTrainerBN"),
    "axes": (checkpoint(lambda c: c.update(inference_allowed_mirroring_axes=(0, 5))), "are no axes"),
    "unlike axes": (checkpoint(lambda c: c.update(inference_allowed_mirroring_axes=(0,))), "differ in"),
    "objects": (checkpoint(lambda c: c.update(more=Path("x"))), "cannot be read as a checkpoint"),
    "code in it": (checkpoint(lambda c: c.update(more=Executed())), "cannot be read as a checkpoint"),
    "pickle": (
        {"model_card.json": None, "fold_1/checkpoint_final.pth": pickle.dumps(Executed())},
        "no checkpoint of torch",
    ),
    "compressed inside": ({"model_card.json": None, "fold_1/checkpoint_final.pth": deflated}, "compressed inside"),
    "cut off": (
        {"model_card.json": None, "fold_1/checkpoint_final.pth": lambda c: c[:20_000]},
        "no checkpoint of torch",
    ),
    "postprocessing": (
        {"model_card.json": None, f"{BASE}/postprocessing.json": b'{"largest_component": [{"labels": [7]}]}'},
        "label value 7",
    ),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_is_not_a_sound_model_is_refused_in_one_line(ours: Path, tmp_path: Path, kind: str) -> None:
    changes, said = CHANGED[kind]
    changed = changed_zip(ours, tmp_path / "changed.zip", changes)
    with pytest.raises(DataError, match=said) as error:
        open_model(changed)
    assert "\n" not in str(error.value)
    assert str(changed) in str(error.value)


def test_pickled_postprocessing_is_never_read(ours: Path, tmp_path: Path) -> None:
    content = pickle.dumps(Executed())
    changed = changed_zip(
        ours, tmp_path / "changed.zip", {"model_card.json": None, f"{BASE}/postprocessing.pkl": content}
    )
    assert open_model(changed).postprocessing is None


@pytest.mark.filterwarnings("ignore:Duplicate name")  # which is what it is about
def test_links_doubles_and_encrypted_files_are_refused(ours: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.zip"

    def appended(change: Callable[[zipfile.ZipInfo], None], name: str) -> None:
        target.write_bytes(ours.read_bytes())
        with zipfile.ZipFile(target, "a") as archive:
            entry = zipfile.ZipInfo(name)
            change(entry)
            archive.writestr(entry, b"{}")

    for change, name, said in (
        (lambda entry: setattr(entry, "external_attr", 0o120777 << 16), f"{BASE}/plans.json", "is a link"),
        (lambda entry: None, f"{BASE}/plans.json", "comes twice"),
        (
            lambda entry: setattr(entry, "compress_type", zipfile.ZIP_LZMA),
            f"{BASE}/fold_3/checkpoint_final.pth",
            "zip it anew",
        ),
    ):
        appended(change, name)
        with pytest.raises(DataError, match=said):
            open_model(target)
    encrypted = bytearray(ours.read_bytes())
    central = directory_of(ours)
    encrypted[central + 8] |= 1  # general purpose flag, bit 0, of the first file
    target.write_bytes(encrypted)
    with pytest.raises(DataError, match="is encrypted"):
        open_model(target)


def test_sizes_are_what_is_announced_and_bounded(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{BASE}/plans.json", b" " * 2**21)
    with pytest.raises(DataError, match="grows from"):
        open_model(target)
    changed = bytearray(ours.read_bytes())
    central = directory_of(ours)
    announced = int.from_bytes(changed[central + 24 : central + 28], "little")
    for size, said in ((announced - 10, "damaged|another SHA"), (announced + 10, "damaged|announces")):
        changed[central + 24 : central + 28] = size.to_bytes(4, "little")
        target.write_bytes(changed)
        with pytest.raises(DataError, match=said):
            open_model(target)
    monkeypatch.setattr("fednnunet.models.archive.MOST_FILES", 3)
    with pytest.raises(DataError, match="more than the 3"):
        open_model(ours)
    monkeypatch.undo()
    monkeypatch.setattr("fednnunet.models.archive.MOST_BYTES", 10_000)
    with pytest.raises(DataError, match="more than the 10000"):
        open_model(ours)


def test_what_is_no_zip_or_an_empty_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="cannot be read as a zip"):
        open_model(tmp_path / "x.zip")
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    with pytest.raises(DataError, match="nnU-Net's own export leaves an empty zip where it fails"):
        open_model(tmp_path / "empty.zip")


def test_zip_that_changes_after_it_was_opened_is_checked_again(ours: Path, tmp_path: Path) -> None:
    target = changed_zip(ours, tmp_path / "x.zip", {"model_card.json": None})
    model = open_model(target)
    changed_zip(
        target,
        tmp_path / "z.zip",
        {"fold_1/checkpoint_final.pth": first_layer(lambda x: x / 0)["fold_1/checkpoint_final.pth"]},
    )
    (tmp_path / "z.zip").rename(target)
    with pytest.raises(DataError, match=r"NaN or infinity|damaged"):
        model.weights("1")


def test_plans_of_nnunet_before_2_5_are_taken(ours: Path, tmp_path: Path) -> None:
    """They name no architecture, and ``dataset.json`` may call channels ``modality``."""

    def older(whole: dict[str, Any]) -> None:
        configuration = whole["configurations"]["2d"]
        arguments = configuration.pop("architecture")["arch_kwargs"]
        configuration.update(
            UNet_class_name="PlainConvUNet",
            UNet_base_num_features=4,
            unet_max_num_features=8,
            n_conv_per_stage_encoder=arguments["n_conv_per_stage"],
            n_conv_per_stage_decoder=arguments["n_conv_per_stage_decoder"],
            num_pool_per_axis=[3, 3],
            pool_op_kernel_sizes=arguments["strides"],
            conv_kernel_sizes=arguments["kernel_sizes"],
        )

    def renamed(description: dict[str, Any]) -> None:
        description["modality"] = description.pop("channel_names")

    changes = {"model_card.json": None, "plans.json": json_change(older), "dataset.json": json_change(renamed)}
    assert same_weights(changed_zip(ours, tmp_path / "older.zip", changes), ours)

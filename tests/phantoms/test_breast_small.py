"""The phantom: reproducible, whole or absent, true to its description."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from omegaconf import OmegaConf

from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import read_dataset
from fednnunet.errors import DataError
from fednnunet.phantoms import breast_small as phantom
from fednnunet.phantoms.breast_small import make_small_phantom

EXPECTED_SUMS = {
    "ISPY1": (5273667, 1006),
    "ISPY2": (5592927, 715),
    "DUKE": (48946826, 4197),
    "NACT": (4814266, 712),
    "KAUNO": (9863533, 1365),
}
"""Of a centre's first image and label, when experiments/phantom was run; a platform may round a voxel otherwise."""
CONF = Path(__file__).parents[2] / "conf" / "dataset" / "phantom.yaml"


@pytest.fixture(scope="module")
def centres() -> dict[str, Any]:
    config = OmegaConf.load(CONF)
    centres: dict[str, Any] = OmegaConf.to_container(config.dataset.generator.centres)  # type: ignore[assignment]
    return {name: {**centre, "cases": 5} for name, centre in centres.items()}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_same_seed_gives_the_same_bytes_and_another_seed_others(centres: dict[str, Any], tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        make_small_phantom(tmp_path / name, centres, seed)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    image = "Dataset101_PhantomISPY1/imagesTr/ISPY1_000_0000.nii.gz"
    assert digests(tmp_path / "one")[image] != digests(tmp_path / "other")[image]


def test_images_are_those_that_published_results_were_trained_on(centres: dict[str, Any], tmp_path: Path) -> None:
    make_small_phantom(tmp_path, {name: centre | {"cases": 1} for name, centre in centres.items()}, 1234)
    for name, (voxels, labelled) in EXPECTED_SUMS.items():
        dataset, part = centres[name]["dataset"], "Ts" if centres[name].get("external") else "Tr"
        image, label = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / dataset / f"{kind}{part}" / f"{name}_000{suffix}")))
            for kind, suffix in (("images", "_0000.nii.gz"), ("labels", ".nii.gz"))
        )
        assert image.sum(dtype=int) == pytest.approx(voxels, rel=1e-6)
        assert label.sum(dtype=int) == pytest.approx(labelled, abs=1)


def test_a_case_does_not_depend_on_the_others(centres: dict[str, Any], tmp_path: Path) -> None:
    make_small_phantom(tmp_path / "all", centres, 1)
    make_small_phantom(tmp_path / "few", {"DUKE": {**centres["DUKE"], "cases": 2}}, 1)
    few = {name: value for name, value in digests(tmp_path / "few").items() if name.endswith(".nii.gz")}
    assert few.items() <= digests(tmp_path / "all").items()


def test_datasets_are_valid_and_as_described(centres: dict[str, Any], tmp_path: Path) -> None:
    for name, folder in zip(centres, make_small_phantom(tmp_path, centres, 1), strict=True):
        external = centres[name].get("external", False)
        dataset = read_dataset(folder, name, external=external)
        check_images(dataset, name)
        assert (folder / "imagesTr").exists() is not external
        for case in dataset.cases:
            image, label = sitk.ReadImage(str(case.images[0])), sitk.ReadImage(str(case.label))
            np.testing.assert_allclose(image.GetSpacing()[::-1], centres[name]["spacing"], rtol=0.031)
            assert 0.001 < sitk.GetArrayFromImage(label).mean() < 0.2
            assert sitk.GetArrayFromImage(image).std() > 0


def test_existing_datasets_stay_and_other_parameters_replace_them(centres: dict[str, Any], tmp_path: Path) -> None:
    one = {"NACT": centres["NACT"]}
    (folder,) = make_small_phantom(tmp_path, one, 1)
    before = (folder / "dataset.json").stat().st_mtime_ns
    make_small_phantom(tmp_path, one, 1)
    assert (folder / "dataset.json").stat().st_mtime_ns == before
    make_small_phantom(tmp_path, {"NACT": {**centres["NACT"], "cases": 6}}, 1)
    assert len(read_dataset(folder, "NACT").cases) == 6


def test_folder_that_is_no_phantom_is_left_alone(centres: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / centres["NACT"]["dataset"] / "imagesTr" / "own.nii.gz"
    own.parent.mkdir(parents=True)
    own.write_text("a patient's scan")
    with pytest.raises(DataError, match=r"centre NACT: .* is not a phantom"):
        make_small_phantom(tmp_path, {"NACT": centres["NACT"]}, 1)
    assert own.read_text() == "a patient's scan"
    assert [path.name for path in tmp_path.iterdir()] == [centres["NACT"]["dataset"]]


def test_dataset_that_another_run_has_just_made_is_kept(
    centres: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, real, times = {"NACT": centres["NACT"]}, phantom.make_case, []

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(phantom, "make_case", real)
        (folder,) = make_small_phantom(tmp_path, one, 1)
        times.append((folder / "dataset.json").stat().st_mtime_ns)
        return real(*arguments)

    monkeypatch.setattr(phantom, "make_case", overtaken)
    (folder,) = make_small_phantom(tmp_path, one, 1)
    assert [(folder / "dataset.json").stat().st_mtime_ns] == times
    assert list(tmp_path.iterdir()) == [folder]


def test_interruption_leaves_nothing_behind(
    centres: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = phantom.make_case, []

    def interrupted(*arguments: Any) -> Any:
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(phantom, "make_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_small_phantom(tmp_path, centres, 1)
    assert list(tmp_path.iterdir()) == []

"""Phantoms of the paper's collections: centres at full size are the paper's, and so are the plans made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from fednnunet.config.groups import ModelConfig
from fednnunet.config.run import RunConfig, read_config
from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import read_dataset
from fednnunet.datasets.splits import FOLDS, splits_of
from fednnunet.errors import ConfigError
from fednnunet.launch.settings import prepare_centres
from fednnunet.phantoms.breast import BreastCentre
from fednnunet.phantoms.collection import Centre, Grid, MriCentre, Scale, draw_volume, read_centres
from fednnunet.phantoms.ultrasound import UltrasoundCentre, draw_resolution
from fednnunet.phantoms.writer import case_rng
from fednnunet.planning.plans import make_plans
from fednnunet.reporting.paper_comparison import paper_tables

ROOT = Path(__file__).parents[2]
PAPER = json.loads((ROOT / "tests/golden/paper_collections.json").read_text())
COLLECTIONS: dict[str, type[Centre]] = {"mamamia": BreastCentre, "mnms": MriCentre, "aimix": UltrasoundCentre}
SMALLEST = ("dataset.generator.scale=0.1", "dataset.generator.case_fraction=0.01")


def composed(folder: Path, collection: str, *overrides: str) -> RunConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        keys = [f"dataset=phantom_{collection}", f"paths.run={folder}", f"paths.data={folder}", *overrides]
        return read_config(compose("config", overrides=keys))


def generator(collection: str) -> dict[str, Any]:
    made = composed(Path("nowhere"), collection).dataset.generator
    assert made is not None
    return made


def full_size(collection: str) -> dict[str, Centre]:
    return dict(read_centres(generator(collection)["centres"], COLLECTIONS[collection]))


def of_the_paper(collection: str) -> list[dict[str, Any]]:
    """What its tables say of each centre, in the order of the configuration."""
    described = PAPER["centres"][collection]
    return [*described["training"].values(), *described["external"]["centres"].values()]


# the configuration -------------------------------------------------------------------------------------


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_centres_are_those_of_the_real_configuration(tmp_path: Path, collection: str) -> None:
    composed_phantom = composed(tmp_path, collection)
    phantom = composed_phantom.dataset
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed_real = read_config(compose("config", overrides=[f"dataset={collection}", f"paths.run={tmp_path}"]))
    real = composed_real.dataset
    assert [(c.name, c.external) for c in phantom.centres] == [(c.name, c.external) for c in real.centres]
    assert composed_phantom.configuration == composed_real.configuration
    assert composed_phantom.evaluation == composed_real.evaluation
    centres = full_size(collection)
    assert [(name, c.dataset, c.external) for name, c in centres.items()] == [
        (c.name, c.dataset, c.external) for c in phantom.centres
    ]


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_studies_are_the_papers(collection: str) -> None:
    table = paper_tables()[collection]
    studies = {name: centre.studies for name, centre in full_size(collection).items()}
    assert studies == table.training | table.external
    assert list(studies.values()) == [centre["studies"] for centre in of_the_paper(collection)]


def test_dataset_numbers_are_used_once(tmp_path: Path) -> None:
    datasets = [
        str(centre.dataset)[:10]
        for name in (
            "phantom_mamamia",
            "phantom_mnms",
            "phantom_aimix",
            "phantom_many",
            "phantom_organs",
            "phantom",
            "mamamia",
            "mnms",
            "aimix",
        )
        for centre in composed(tmp_path, "mnms", f"dataset={name}").dataset.centres
    ]
    assert len(set(datasets)) == len(datasets)


def test_breast_centres_are_those_of_tables_1_3_and_4() -> None:
    centres = full_size("mamamia")
    for name, paper in PAPER["centres"]["mamamia"]["training"].items():
        centre = centres[name]
        assert isinstance(centre, BreastCentre)
        assert list(centre.slices) == paper["slices"]
        assert list(centre.slice_thickness) == paper["slice_thickness_mm"]
        assert [centre.pixel_spacing] * 2 == PAPER["table1_mamamia_2d_plans"][name]["spacing"]
        assert (centre.vendors, centre.field_3t) == (paper["vendors"], paper["field_T"]["3.0"])
    for name, paper in PAPER["centres"]["mamamia"]["external"]["centres"].items():
        centre = centres[name]
        assert isinstance(centre, BreastCentre)
        thinnest, thickest = map(float, paper["slice_thickness_mm"].split(" ")[0].split("-"))
        assert list(centre.slice_thickness[1:]) == [thinnest, thickest]
        smallest, largest = map(float, paper["pixel_spacing_mm"].split(" ")[0].split("-"))
        assert smallest <= centre.pixel_spacing <= largest
        assert (centre.vendors, centre.field_3t) == (paper["vendors"], paper["field_T"].get("3.0", 0.0))
        assert centre.sagittal == 0, "EuCanImage is axial"


def test_cardiac_centres_are_those_of_table_5() -> None:
    for centre, paper in zip(full_size("mnms").values(), of_the_paper("mnms"), strict=True):
        assert isinstance(centre, MriCentre)
        if "vendor" in paper:  # the paper gives ACDC's number of studies alone
            assert dict(centre.vendors) == {paper["vendor"]: 1.0}
            assert (centre.slices[0], centre.slice_thickness[0]) == (paper["slices"], paper["slice_thickness_mm"])


def test_ultrasound_centres_are_those_of_table_6() -> None:
    for (name, centre), paper in zip(full_size("aimix").items(), of_the_paper("aimix"), strict=True):
        assert isinstance(centre, UltrasoundCentre)
        assert list(centre.resolution) == paper["resolution_hw"]
        drawn = [draw_resolution(centre, case_rng(1234, name, number)) for number in range(centre.studies)]
        np.testing.assert_allclose(np.mean(drawn, 0), paper["resolution_hw"], rtol=0.05)


# geometry ----------------------------------------------------------------------------------------------


def drawn(name: str, centre: MriCentre) -> list[Grid]:
    """Geometry of all of a centre's studies, at full size."""
    return [draw_volume(centre, case_rng(1234, name, number)) for number in range(centre.studies)]


@pytest.mark.parametrize("collection", ["mamamia", "mnms"])
def test_drawn_volumes_are_usually_as_the_centre_is_described(collection: str) -> None:
    for name, centre in full_size(collection).items():
        assert isinstance(centre, MriCentre)
        grids = drawn(name, centre)
        slices = [grid.shape[0] for grid in grids]
        thickness = [grid.spacing[0] for grid in grids]
        for values, (usual, least, most) in ((slices, centre.slices), (thickness, centre.slice_thickness)):
            assert np.median(values) == pytest.approx(usual, rel=0.02)
            assert least <= min(values) <= max(values) <= most
        assert tuple(np.median([grid.shape[1:] for grid in grids], 0)) == centre.pixels
        assert np.median([grid.spacing[1:] for grid in grids]) == pytest.approx(centre.pixel_spacing)


def test_scaling_keeps_the_field_of_view_and_relative_sizes() -> None:
    full = Grid((64, 256, 200), (2.4, 0.78, 0.78))
    small = Scale(0.25, 0.5).apply(full)
    assert small.shape == (32, 64, 50)
    np.testing.assert_allclose(np.multiply(small.shape, small.spacing), np.multiply(full.shape, full.spacing))
    assert Scale(1.0).apply(full) == full
    assert [Scale(1, case_fraction=0.1).studies(number) for number in (980, 64, 3)] == [98, 6, 3]
    assert Scale(1, case_fraction=0.01).studies(64) == FOLDS


def fingerprint_of(grids: list[Grid]) -> dict[str, Any]:
    """nnU-Net's, of images that fill their volume; intensities don't matter to plans of MRI."""
    names = ("mean", "median", "std", "min", "max", "percentile_99_5", "percentile_00_5")
    return {
        "spacings": [list(grid.spacing) for grid in grids],
        "shapes_after_crop": [list(grid.shape) for grid in grids],
        "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(names, 1.0)},
        "median_relative_size_after_cropping": 1.0,
    }


def nnunet_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(root / variable))


@pytest.mark.parametrize("name", PAPER["table1_mamamia_2d_plans"])
def test_full_size_centres_get_the_plans_of_table_1(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    centre = full_size("mamamia")[name]
    assert isinstance(centre, MriCentre)
    grids = drawn(name, centre)
    nnunet_folders(tmp_path, monkeypatch)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": len(grids),
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",  # planning opens no image
        "dataset": {"case": {"images": ["case_0000.nii.gz"], "label": "case.nii.gz"}},
    }
    raw = tmp_path / "nnUNet_raw" / centre.dataset
    raw.mkdir(parents=True)
    (raw / "dataset.json").write_text(json.dumps(description))
    with torch.device("meta"):  # networks without memory for weights
        plans = make_plans(centre.dataset, fingerprint_of(grids), ModelConfig(planner="ExperimentPlanner"), 8.0)
    plan, table = plans["configurations"]["2d"], PAPER["table1_mamamia_2d_plans"][name]
    network = plan["architecture"]["arch_kwargs"]
    assert plan["batch_size"] == table["batch_size"]
    assert plan["patch_size"] == table["patch_size"]
    assert network["n_stages"] == table["n_stages"]
    assert [network["features_per_stage"][0], network["features_per_stage"][-1]] == table["features_per_stage"]
    np.testing.assert_allclose(plan["spacing"], table["spacing"], atol=0.005)


# the datasets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_datasets_are_valid_and_have_a_fold_for_every_patient(tmp_path: Path, collection: str) -> None:
    config = composed(tmp_path, collection, *SMALLEST)
    folders = prepare_centres(config)
    for centre in config.dataset.centres:
        dataset = read_dataset(folders[centre.name], centre.name, external=centre.external)
        check_images(dataset, centre.name)
        assert len(dataset.cases) >= FOLDS
        if not centre.external:
            for fold in splits_of(dataset, centre.name, range(FOLDS)):
                of = [{case.rsplit("_E", 1)[0] for case in fold[part]} for part in ("train", "val")]
                assert of[0].isdisjoint(of[1])


@pytest.mark.parametrize("collection", ["mamamia", "mnms"])
def test_images_have_the_geometry_that_is_drawn_without_them(tmp_path: Path, collection: str) -> None:
    config = composed(tmp_path, collection, *SMALLEST)
    assert config.dataset.generator is not None
    scale = Scale(*(config.dataset.generator[key] for key in ("scale", "slice_scale", "case_fraction")))
    folders = prepare_centres(config)
    for name, centre in full_size(collection).items():
        assert isinstance(centre, MriCentre)
        grids = [scale.apply(grid) for grid in drawn(name, centre)[: scale.studies(centre.studies)]]
        cases = read_dataset(folders[name], name, external=centre.external).cases
        phases = len(cases) // len(grids)  # ED and ES of one heart
        for number, case in enumerate(cases):
            image, properties = SimpleITKIO().read_images([str(path) for path in case.images])
            cropped, _, _ = crop_to_nonzero(image)
            assert cropped.shape[1:] == grids[number // phases].shape, "nnU-Net crops nothing away"
            np.testing.assert_allclose(properties["spacing"], grids[number // phases].spacing, rtol=1e-5)


def test_a_wrong_scale_or_vendor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.generator.scale=1.5: must be above 0 and at most 1"):
        prepare_centres(composed(tmp_path, "aimix", "dataset.generator.scale=1.5"))
    unknown = "+dataset.generator.centres.NACT.vendors.Hitachi=1.0"
    with pytest.raises(ConfigError, match=r"centres.NACT.vendors: Hitachi is none of .*GE, Siemens, Philips"):
        prepare_centres(composed(tmp_path, "mamamia", unknown))


def test_an_unknown_collection_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.generator.collection=acdc: must be one of mamamia, mnms, aimix"):
        prepare_centres(composed(tmp_path, "aimix", "dataset.generator.collection=acdc"))


def test_slices_are_scaled_with_the_pixels_only_where_there_are_many(tmp_path: Path) -> None:
    breast, heart = (composed(tmp_path, name, "dataset.generator.scale=0.3") for name in ("mamamia", "mnms"))
    assert breast.dataset.generator is not None
    assert heart.dataset.generator is not None
    assert (breast.dataset.generator["slice_scale"], heart.dataset.generator["slice_scale"]) == (0.3, 1.0)


def test_existing_datasets_stay_until_the_scale_changes(tmp_path: Path) -> None:
    made = generator("aimix") | {"scale": 0.1, "case_fraction": 0.01, "folder": tmp_path}
    (folder, *_) = instantiate(made, _convert_="all")
    before = (folder / "dataset.json").stat().st_mtime_ns
    instantiate(made, _convert_="all")
    assert (folder / "dataset.json").stat().st_mtime_ns == before
    instantiate(made | {"scale": 0.15}, _convert_="all")
    assert (folder / "dataset.json").stat().st_mtime_ns != before

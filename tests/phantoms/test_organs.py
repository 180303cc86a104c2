"""``dataset=phantom_organs``: the same images whatever is annotated, and the full truth beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy.ndimage import binary_dilation

from fednnunet.config.run import read_config
from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import read_dataset
from fednnunet.errors import ConfigError
from fednnunet.launch.settings import prepare_centres
from fednnunet.phantoms.organs import ORGANS, TRUTH_LABELS, OrganCentre, make_case, make_organ_phantom
from fednnunet.phantoms.writer import TRUTH_FOLDER

ROOT = Path(__file__).parents[2]
OWN = {"Oslo": "liver", "Porto": "spleen", "Turin": "kidney"}
CONF = ROOT / "conf" / "dataset" / "phantom_organs.yaml"


def made(
    folder: Path, annotated: Any = None, unannotated: Any = "unknown", seed: int = 1234, channels: Any = None
) -> dict[str, Path]:
    """Two cases of every centre."""
    generator: Any = OmegaConf.to_container(OmegaConf.load(CONF).dataset.generator)
    centres = {name: centre | {"cases": 2} for name, centre in generator["centres"].items()}
    annotated = generator["annotated"] if annotated is None else annotated
    folders = make_organ_phantom(folder, centres, annotated, unannotated, seed, channels)
    return dict(zip(centres, folders, strict=True))


def voxels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def labels(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "dataset.json").read_text())["labels"])


UNLIKE = {"Oslo": ["T1", "T2"], "Porto": ["T1"], "Turin": ["T2"]}


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hospitals with unlike channels; Ghent, which is not named, has both."""
    return made(tmp_path_factory.mktemp("unlike"), channels=UNLIKE)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return made(tmp_path_factory.mktemp("own"))


def test_datasets_are_valid_and_their_cases_are_those_of_the_images_alone(own: dict[str, Path]) -> None:
    for name, folder in own.items():
        dataset = read_dataset(folder, name, external=name == "Ghent")
        check_images(dataset, name)
        assert len(dataset.cases) == 2
        assert not [file for case in dataset.cases for file in case.files if file.parent.name == TRUTH_FOLDER]


def test_a_centre_draws_its_own_organ_and_calls_it_1(own: dict[str, Path]) -> None:
    for name, organ in OWN.items():
        assert labels(own[name]) == {"background": 0, organ: 1}
        for file in (own[name] / TRUTH_FOLDER).iterdir():
            truth = voxels(file)
            assert set(np.unique(truth)) == {0, *TRUTH_LABELS.values()}
            np.testing.assert_array_equal(voxels(own[name] / "labelsTr" / file.name), truth == TRUTH_LABELS[organ])


def test_the_external_centre_draws_all(own: dict[str, Path]) -> None:
    assert labels(own["Ghent"]) == TRUTH_LABELS
    for file in (own["Ghent"] / TRUTH_FOLDER).iterdir():
        np.testing.assert_array_equal(voxels(own["Ghent"] / "labelsTs" / file.name), voxels(file))


@pytest.mark.parametrize(
    ("settings", "turin", "drawn"),
    [
        ({"annotated": "all"}, {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}, set(ORGANS)),
        (
            {"annotated": {"Turin": ["kidney", "liver"]}},
            {"background": 0, "kidney": 1, "liver": 2},
            {"liver", "kidney"},
        ),
        ({"unannotated": "background"}, {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}, {"kidney"}),
    ],
)
def test_images_and_truth_do_not_depend_on_what_is_annotated(
    own: dict[str, Path], tmp_path: Path, settings: dict[str, Any], turin: dict[str, int], drawn: set[str]
) -> None:
    other = made(tmp_path, **settings)
    before, after = digests(own["Turin"].parent), digests(other["Turin"].parent)
    assert before.keys() == after.keys()
    assert all(after[name] == before[name] for name in before if "images" in name or TRUTH_FOLDER in name)
    assert labels(other["Turin"]) == turin
    for file in (other["Turin"] / TRUTH_FOLDER).iterdir():
        truth = voxels(file)
        expected = sum((truth == TRUTH_LABELS[organ]) * turin[organ] for organ in drawn)
        np.testing.assert_array_equal(voxels(other["Turin"] / "labelsTr" / file.name), expected)


def test_another_annotation_replaces_the_dataset_and_the_same_leaves_it(tmp_path: Path) -> None:
    first = made(tmp_path)["Oslo"] / "dataset.json"
    written = first.stat().st_mtime_ns
    assert made(tmp_path)["Oslo"] / "dataset.json" == first
    assert first.stat().st_mtime_ns == written
    made(tmp_path, "all")
    assert labels(first.parent) == TRUTH_LABELS


def test_the_same_seed_gives_the_same_bytes_and_another_other_images(own: dict[str, Path], tmp_path: Path) -> None:
    folder = own["Oslo"].parent
    assert digests(made(tmp_path / "same")["Oslo"].parent) == digests(folder)
    other = digests(made(tmp_path / "other", seed=1)["Oslo"].parent)
    assert other.keys() == digests(folder).keys()
    assert not [name for name, value in digests(folder).items() if "images" in name and other[name] == value]


def test_no_intensity_tells_an_organ_from_what_is_around_it(own: dict[str, Path]) -> None:
    for folder in own.values():
        (images,) = folder.glob("images*")
        for file in (folder / TRUTH_FOLDER).iterdir():
            truth, image = voxels(file), voxels(images / file.name.replace(".nii.gz", "_0000.nii.gz"))
            for organ in ORGANS:
                mask = truth == TRUTH_LABELS[organ]
                low, high = np.percentile(image[mask], [5, 95])
                as_bright = (image >= low) & (image <= high) & ~mask
                assert as_bright.sum() > mask.sum()


def test_centres_have_the_channels_that_they_are_given(unlike: dict[str, Path]) -> None:
    for name, channels in (UNLIKE | {"Ghent": ["T1", "T2"]}).items():
        dataset = read_dataset(unlike[name], name, external=name == "Ghent")
        check_images(dataset, name)
        description = json.loads((unlike[name] / "dataset.json").read_text())
        assert list(description["channel_names"].values()) == channels
        assert [len(case.images) for case in dataset.cases] == [len(channels)] * 2


def test_t1_is_the_image_without_channels_and_t2_does_not_depend_on_who_has_t1(
    own: dict[str, Path], unlike: dict[str, Path], tmp_path: Path
) -> None:
    before = digests(own["Oslo"].parent)
    after = digests(unlike["Oslo"].parent)
    t1 = [name for name in before if "images" in name and "Turin" not in name]
    assert all(after[name] == before[name] for name in t1)
    assert all(after[name] == before[name] for name in before if "labels" in name)
    other = digests(made(tmp_path, channels={"Oslo": ["T2", "T1"], "Turin": ["T1", "T2"]})["Oslo"].parent)
    for case in ("Turin_000", "Turin_001"):
        image = f"Dataset163_OrgansTurin/imagesTr/{case}"
        assert other[f"{image}_0000.nii.gz"] == before[f"{image}_0000.nii.gz"]
        assert other[f"{image}_0001.nii.gz"] == after[f"{image}_0000.nii.gz"]
    image = "Dataset161_OrgansOslo/imagesTr/Oslo_000"
    assert other[f"{image}_0000.nii.gz"] == after[f"{image}_0001.nii.gz"]


def test_livers_are_seen_better_in_t1_and_spleens_in_t2() -> None:
    scanner = {"gain": 1, "gamma": 1, "bias": 0, "noise": 0}
    centre = OrganCentre("Dataset001_X", 1, (5, 64, 64), (6, 2.5, 2.5), **scanner)
    contrast: dict[tuple[str, str], list[float]] = {}
    for number in range(4):
        images, truth, _ = make_case(centre, np.random.default_rng(number))
        for organ in ("liver", "spleen"):
            mask = truth == TRUTH_LABELS[organ]
            around = binary_dilation(mask, np.ones((1, 7, 7))) & (truth == 0)
            for channel, image in images.items():
                difference = abs(np.median(image[mask]) - np.median(image[around])) / np.median(image[around])
                contrast.setdefault((organ, channel), []).append(difference)
    means = {key: np.mean(values) for key, values in contrast.items()}
    assert means["liver", "T1"] > 2 * means["liver", "T2"]
    assert means["spleen", "T2"] > 1.5 * means["spleen", "T1"]


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ("T1", r"generator.channels=T1: must be null, or list channels by centre: \{Oslo: \[T1\]\}"),
        ({"Bern": ["T1"]}, "channels.Bern: there is no such centre"),
        ({"Oslo": ["FLAIR"]}, "channels.Oslo=.*FLAIR.*: must be some of T1, T2, each once"),
    ],
)
def test_channels_that_cannot_be_are_an_error(tmp_path: Path, channels: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, channels=channels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("annotated", "message"),
    [
        ("some", "annotated=some: must be all"),
        ({"Bern": ["liver"]}, "annotated.Bern: there is no such centre, only Oslo, Porto, Turin, Ghent"),
        ({"Oslo": ["lung"]}, "annotated.Oslo=.*lung.*: must be some of liver, spleen, kidney"),
        ({"Oslo": ["liver", "liver"]}, "each once"),
        ({"Oslo": []}, "one or more"),
        ({"Oslo": "liver"}, "must be a list"),
    ],
)
def test_what_cannot_be_annotated_is_an_error(tmp_path: Path, annotated: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, annotated)
    with pytest.raises(ConfigError, match="unannotated=ignored: must be unknown or background"):
        made(tmp_path, unannotated="ignored")
    assert not list(tmp_path.iterdir())


def test_what_is_annotated_is_chosen_on_the_command_line(tmp_path: Path) -> None:
    few = [f"dataset.generator.centres.{name}.cases=5" for name in (*OWN, "Ghent")]
    keys = ["dataset=phantom_organs", f"paths.run={tmp_path}", f"paths.data={tmp_path}", *few]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = read_config(compose("config", overrides=[*keys, "dataset.generator.annotated=all"]))
    assert {labels(folder)["kidney"] for folder in prepare_centres(config).values()} == {3}


def test_channels_are_chosen_on_the_command_line(tmp_path: Path) -> None:
    few = [f"dataset.generator.centres.{name}.cases=5" for name in (*OWN, "Ghent")]
    keys = ["dataset=phantom_organs", f"paths.run={tmp_path}", f"paths.data={tmp_path}", *few]
    unlike = "dataset.generator.channels={Oslo: [T1, T2], Porto: [T1], Turin: [T2]}"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = read_config(compose("config", overrides=[*keys, unlike]))
    found = {name: len(list((folder / "imagesTr").glob("*_0001*"))) for name, folder in prepare_centres(config).items()}
    assert found == {"Oslo": 5, "Porto": 0, "Turin": 0, "Ghent": 0}

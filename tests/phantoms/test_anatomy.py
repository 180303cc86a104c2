"""What is drawn in the phantoms of the paper's collections: shapes that the labels name, in images that show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from hydra.utils import instantiate
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from scipy.ndimage import binary_dilation, label

CONF = Path(__file__).parents[2] / "conf" / "dataset"
LV, MYO, RV = 1, 2, 3


def made(collection: str, folder: Path, centres: list[str], **parameters: Any) -> dict[str, Path]:
    """Some centres of a collection, five studies each."""
    generator = yaml.safe_load((CONF / f"phantom_{collection}.yaml").read_text())["dataset"]["generator"]
    generator["centres"] = {name: generator["centres"][name] for name in centres}
    folders = instantiate(generator | {"case_fraction": 0.001, "folder": folder} | parameters, _convert_="all")
    return dict(zip(centres, folders, strict=True))


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def cases(folder: Path, part: str = "Tr") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Case to image and label map."""
    ending = json.loads((folder / "dataset.json").read_text())["file_ending"]
    return {
        path.name.removesuffix(ending): (
            read(folder / f"images{part}" / path.name.replace(ending, f"_0000{ending}")),
            read(path),
        )
        for path in sorted((folder / f"labels{part}").iterdir())
    }


# heart -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder = made("mnms", tmp_path_factory.mktemp("mnms"), ["Dexeus"], scale=0.35)["Dexeus"]
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
    return cases(folder)


def test_myocardium_is_a_ring_around_the_left_ventricle(hearts: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for _, labels in hearts.values():
        assert set(np.unique(labels)) == {0, LV, MYO, RV}
        for section in labels:
            if (section == LV).any():
                beside = binary_dilation(section == LV) & (section != LV)
                assert set(section[beside]) == {MYO}
                background, _ = label(section != MYO)
                inside = set(background[section == LV])
                assert inside.isdisjoint(set(background[section == 0])), "the ring is closed"


def test_a_patients_heart_is_smaller_at_end_systole_with_as_much_muscle(
    hearts: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    for patient in {name[:-3] for name in hearts}:
        (_, diastole), (_, systole) = (hearts[f"{patient}_{phase}"] for phase in ("ED", "ES"))
        assert diastole.shape == systole.shape
        ejected = 1 - (systole == LV).sum() / (diastole == LV).sum()
        assert 0.1 < ejected < 0.8
        assert (systole == RV).sum() < (diastole == RV).sum()
        assert (systole == MYO).sum() == pytest.approx((diastole == MYO).sum(), rel=0.3)


def test_blood_is_brighter_than_muscle(hearts: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for image, labels in hearts.values():
        muscle = np.median(image[labels == MYO])
        assert np.median(image[labels == LV]) > 1.3 * muscle
        assert np.median(image[labels == RV]) > 1.3 * muscle


def test_slices_are_few_and_thick(hearts: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    assert {len(image) for image, _ in hearts.values()} <= set(range(8, 17))
    assert all(sum(section.any() for section in labels) >= 3 for _, labels in hearts.values())


# ultrasound --------------------------------------------------------------------------------------------


def test_ultrasound_is_a_png_that_nnunet_reads_with_a_black_surround_and_an_ellipse(tmp_path: Path) -> None:
    folder = made("aimix", tmp_path, ["Algeria"], scale=0.4)["Algeria"]
    for name in cases(folder):
        image, properties = NaturalImage2DIO().read_images([str(folder / "imagesTr" / f"{name}_0000.png")])
        mask, _ = NaturalImage2DIO().read_seg(str(folder / "labelsTr" / f"{name}.png"))
        assert properties["spacing"] == (999, 1, 1)
        image, mask = image[0, 0], mask[0, 0] > 0
        height, width = image.shape
        assert height / width == pytest.approx(418 / 500, rel=0.03)
        assert not image[0, [0, -1]].any(), "outside the fan"
        assert 0.2 < (image == 0).mean() < 0.7
        assert (image[mask] > 0).mean() > 0.95, "the abdomen is in the fan"
        rows, columns = np.nonzero(mask)
        axes = 4 * np.sqrt(np.linalg.eigvalsh(np.cov(rows, columns)))  # those of an ellipse with these moments
        assert mask.sum() == pytest.approx(np.pi / 4 * axes.prod(), rel=0.02)


def test_speckle_follows_rayleighs_law(tmp_path: Path) -> None:
    """Echoes of even tissue: the amplitude's mean is 1.91 standard deviations, before the logarithm."""
    smooth = {"gain": -10.0, "dynamic_range": 70.0, "attenuation": 0.0}
    centre = yaml.safe_load((CONF / "phantom_aimix.yaml").read_text())["dataset"]["generator"]["centres"]["Spain"]
    target = "fednnunet.phantoms.generate.make_phantom"
    (folder,) = instantiate(
        {
            "_target_": target,
            "collection": "aimix",
            "folder": tmp_path,
            "seed": 1,
            "scale": 0.25,
            "case_fraction": 0.001,
        },
        centres={"Even": centre | smooth},
        _convert_="all",
    )
    ratios = []
    for image, mask in cases(folder).values():
        inside = image[mask > 0].astype(float)
        inside = inside[(inside > np.percentile(inside, 10)) & (inside < np.percentile(inside, 97))]
        amplitude = 10 ** ((inside / 255 - 1) * 70 / 20)
        ratios.append(amplitude.mean() / amplitude.std())
    assert 1.3 < np.median(ratios) < 3.0


# breast ------------------------------------------------------------------------------------------------


def test_a_breast_has_one_tumour_that_enhances(tmp_path: Path) -> None:
    folders = made("mamamia", tmp_path, ["NACT", "KAUNO"], scale=0.15, slice_scale=0.15)
    contrasts = []
    for name, part in (("NACT", "Tr"), ("KAUNO", "Ts")):
        for image, mask in cases(folders[name], part).values():
            assert label(mask)[1] == 1
            around = binary_dilation(mask, iterations=2) & (mask == 0) & (image > np.percentile(image, 40))
            contrasts.append(np.mean(image[mask > 0]) / np.mean(image[around]))
    assert np.median(contrasts) > 1.3


def test_sagittal_volumes_have_a_sagittal_header(tmp_path: Path) -> None:
    folders = made("mamamia", tmp_path, ["NACT", "GUMED"], scale=0.1, slice_scale=0.1)
    for name, file, slices_along in (
        ("NACT", "imagesTr/NACT_000_0000.nii.gz", 0),
        ("GUMED", "imagesTs/GUMED_000_0000.nii.gz", 2),
    ):
        direction = np.reshape(sitk.ReadImage(str(folders[name] / file)).GetDirection(), (3, 3))
        assert np.linalg.det(direction) == pytest.approx(1), "not mirrored"
        assert np.argmax(np.abs(direction[:, 2])) == slices_along, "0: left to right, 2: foot to head"


def test_vendors_differ_in_what_their_scanners_make_of_tissue(tmp_path: Path) -> None:
    generator = yaml.safe_load((CONF / "phantom_mnms.yaml").read_text())["dataset"]["generator"]
    same = generator["centres"]["Dexeus"]
    centres = {
        vendor: same | {"vendors": {vendor: 1.0}, "dataset": f"Dataset70{n}_{vendor}"}
        for n, vendor in enumerate(("Siemens", "Canon"))
    }
    folders = instantiate(
        generator | {"centres": centres, "scale": 0.15, "case_fraction": 0.001, "folder": tmp_path}, _convert_="all"
    )
    siemens, canon = (np.mean([image[m == LV].mean() for image, m in cases(folder).values()]) for folder in folders)
    assert canon / siemens == pytest.approx(2.0 / 0.4, rel=0.25), "as their gains"

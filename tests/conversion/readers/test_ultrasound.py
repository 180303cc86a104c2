"""Readers of fetal ultrasound, on miniature trees in the published layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import SimpleITK as sitk
from omegaconf import OmegaConf

from fednnunet.conversion.readers.acouslic import read_acouslic
from fednnunet.conversion.readers.aimix import read_aimix
from fednnunet.conversion.study import ConversionIssue, ScanResult, Source, SourceCase
from fednnunet.errors import DataError

ROOT = Path(__file__).parents[3]
CODES = {"Algeria": "DZA", "Egypt": "EGY", "Ghana": "GHA", "Malawi": "MWI"}
AFRICAN = ("Algeria", "Egypt", "Malawi")
PLANES = ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax")


def draw(path: Path, seed: int, rgb: bool = False) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3) if rgb else (6, 8)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=rgb), str(path))


def draw_mask(path: Path, value: int = 255) -> None:
    values = np.zeros((6, 8), dtype=np.uint8)
    values[2:4, 2:6] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))


def published(country: str, patient: int, plane: int) -> str:
    return f"patient{patient:03d}_{CODES[country]}_plane{plane}"


@pytest.fixture
def aimix(tmp_path: Path) -> Path:
    """Two patients a country with four planes each, two Spanish images, and masks of the abdomens."""
    source = tmp_path / "aimix"
    african = source / "Zenodo_dataset"
    lines, seed = ["Patient_num,Plane,Train,Center,Filename"], 0
    for country in CODES:
        for patient in (1, 2):
            for number, plane in enumerate(PLANES):
                name, seed = published(country, patient, number), seed + 1
                lines.append(f"{patient},{plane},{patient - 1},{country},{name}")
                draw(african / country / f"{name}.png", seed)
            if country != "Ghana":
                draw_mask(source / "masks" / country / f"{published(country, patient, 0)}.png")
    (african / "African_planes_database.csv").write_text("\n".join(lines))
    for number in (1, 2):
        draw(source / "Spain" / f"HCB {number}.png", 100 + number, rgb=True)
        draw_mask(source / "masks" / "Spain" / f"HCB {number}_mask.png", value=1)
    return source


def edit(table: Path, change: Callable[[str], str]) -> None:
    table.write_text(change(table.read_text()))


def african_table(source: Path) -> Path:
    return source / "Zenodo_dataset" / "African_planes_database.csv"


def cases(survey: ScanResult, centre: str | None = None) -> list[str]:
    return [study.case for study in survey.studies if centre in (None, study.centre)]


def test_aimix_takes_the_abdominal_planes_with_masks(aimix: Path) -> None:
    survey = read_aimix(aimix)
    assert survey.channel_names == ("ultrasound",)
    assert survey.file_ending == ".png"
    assert survey.problems == ()
    assert {centre: cases(survey, centre) for centre in (*AFRICAN, "Spain")} == {
        "Algeria": ["patient001_DZA_plane0", "patient002_DZA_plane0"],
        "Egypt": ["patient001_EGY_plane0", "patient002_EGY_plane0"],
        "Malawi": ["patient001_MWI_plane0", "patient002_MWI_plane0"],
        "Spain": ["HCB_1", "HCB_2"],
    }
    assert len(survey.studies) == 8
    assert survey.studies[0] == SourceCase(
        case="patient001_DZA_plane0",
        centre="Algeria",
        channels=(Source(aimix / "Zenodo_dataset" / "Algeria" / "patient001_DZA_plane0.png"),),
        label=Source(aimix / "masks" / "Algeria" / "patient001_DZA_plane0.png"),
        label_values={1: "abdomen", 255: "abdomen"},
        patient="Algeria_1",
    )
    spanish = [study for study in survey.studies if study.centre == "Spain"]
    assert [study.label.path.name for study in spanish] == ["HCB 1_mask.png", "HCB 2_mask.png"]
    assert len({study.patient for study in survey.studies}) == 8, "patients are numbered per country"


def test_other_planes_and_countries_are_left_out_by_number(aimix: Path) -> None:
    left_out = {(remark.centre, remark.reason) for remark in read_aimix(aimix).left_out}
    assert left_out == {
        *(
            (centre, f"2 images of the plane {plane}")
            for centre in ("Algeria", "Egypt", "Malawi")
            for plane in PLANES[1:]
        ),
        ("", "8 images of Ghana, not in the paper"),
    }


def test_centres_are_those_of_the_configuration(aimix: Path, tmp_path: Path) -> None:
    configured = OmegaConf.load(ROOT / "conf" / "dataset" / "aimix.yaml").centres
    internal = {centre.name for centre in configured if not centre.get("external")}
    external = {centre.name for centre in configured if centre.get("external")}
    assert {study.centre for study in read_aimix(aimix).studies} == internal
    assert {study.centre for study in read_acouslic(make_acouslic(tmp_path / "b", {"a": {0: 1}})).studies} == external


def test_image_without_mask_is_left_out_and_mask_without_image_a_problem(aimix: Path) -> None:
    (aimix / "masks" / "Egypt" / "patient002_EGY_plane0.png").unlink()
    draw_mask(aimix / "masks" / "Malawi" / "patient077_MWI_plane0.png")
    draw_mask(aimix / "masks" / "Malawi" / "patient001_MWI_plane1.png")  # of a brain that the table lists
    survey = read_aimix(aimix)
    assert cases(survey, "Egypt") == ["patient001_EGY_plane0"]
    assert (
        ConversionIssue(
            "Zenodo_dataset/Egypt/patient002_EGY_plane0.png", f"it has no mask in {aimix / 'masks'}", "Egypt"
        )
        in survey.left_out
    )
    assert survey.problems == (
        ConversionIssue("Malawi/patient077_MWI_plane0.png", f"mask without an image in {aimix}", "Malawi"),
    )


def test_listed_image_that_is_not_there_is_a_problem(aimix: Path) -> None:
    (aimix / "Zenodo_dataset" / "Algeria" / "patient001_DZA_plane0.png").unlink()
    survey = read_aimix(aimix)
    assert cases(survey, "Algeria") == ["patient002_DZA_plane0"]
    (problem,) = survey.problems
    assert problem.study == "African_planes_database.csv line 2: patient001_DZA_plane0"
    assert problem.centre == "Algeria"
    assert "no image patient001_DZA_plane0.png" in problem.reason


def test_unknown_country_and_empty_fields_are_problems(aimix: Path) -> None:
    edit(
        african_table(aimix),
        lambda text: (
            text.replace("1,Fetal abdomen,0,Egypt", "1,Fetal abdomen,0,Atlantis")
            + "\n3,,0,Egypt,patient003_EGY_plane0\n4,Fetal abdomen\n\n"
        ),
    )
    survey = read_aimix(aimix)
    assert [(remark.study, remark.reason) for remark in survey.problems] == [
        (
            "African_planes_database.csv line 10: patient001_EGY_plane0",
            "Center 'Atlantis' is no centre of AIMIX",
        ),
        ("African_planes_database.csv line 34: patient003_EGY_plane0", "Filename or Plane is empty"),
        ("African_planes_database.csv line 35: no name", "Filename or Plane is empty"),
    ]


def test_endings_in_capital_letters_and_hidden_files_of_a_mac_are_understood(aimix: Path) -> None:
    folder = aimix / "Zenodo_dataset" / "Malawi"
    (folder / "patient001_MWI_plane0.png").rename(folder / "patient001_MWI_plane0.PNG")
    (aimix / "Spain" / "._HCB 1.png").write_bytes(b"Mac OS X")
    mask = aimix / "masks" / "Spain" / "HCB 2_mask.png"
    mask.rename(mask.with_name("HCB 2_mask.PNG"))
    survey = read_aimix(aimix)
    assert survey.problems == ()
    assert len(survey.studies) == 8
    (study,) = (study for study in survey.studies if study.case == "patient001_MWI_plane0")
    assert study.channels[0].path.name == "patient001_MWI_plane0.PNG"


def test_same_image_under_two_patient_numbers_is_one_patient(aimix: Path) -> None:
    folder = aimix / "Zenodo_dataset" / "Malawi"
    (folder / "patient002_MWI_plane0.png").write_bytes((folder / "patient001_MWI_plane0.png").read_bytes())
    kept = read_aimix(aimix)
    malawi = [study for study in kept.studies if study.centre == "Malawi"]
    assert [study.patient for study in malawi] == ["Malawi_1", "Malawi_1"]
    assert len({study.patient for study in kept.studies}) == 7
    dropped = read_aimix(aimix, duplicates="drop")
    assert cases(dropped, "Malawi") == ["patient001_MWI_plane0"]
    assert (
        ConversionIssue("patient002_MWI_plane0", "the same image as patient001_MWI_plane0", "Malawi")
        in dropped.left_out
    )


def test_same_images_join_all_numbers_of_a_patient(aimix: Path) -> None:
    for number, original in ((3, "HCB 1"), (4, "HCB 2")):  # HCB 3 and 4 are of one patient by the table
        (aimix / "Spain" / f"HCB {number}.png").write_bytes((aimix / "Spain" / f"{original}.png").read_bytes())
    rows = [
        f"Spain/HCB {n}.png,masks/Spain/HCB {m}_mask.png,ESP,{p}"
        for n, m, p in ((1, 1, 7), (2, 2, 8), (3, 1, 9), (4, 2, 9))
    ]
    table = aimix / "own.csv"
    table.write_text("\n".join(["image,mask,centre,patient", *rows]))
    assert len({study.patient for study in read_aimix(aimix, table=table).studies}) == 1


def test_several_images_of_a_patient_share_it(aimix: Path) -> None:
    edit(african_table(aimix), lambda text: text.replace("2,Fetal abdomen,1,Algeria", "1,Fetal abdomen,1,Algeria"))
    survey = read_aimix(aimix)
    assert [study.patient for study in survey.studies if study.centre == "Algeria"] == ["Algeria_1", "Algeria_1"]


def test_fetal_planes_db_is_spain(aimix: Path) -> None:
    folder = aimix / "FETAL_PLANES_ZENODO"
    (folder / "Images").mkdir(parents=True)
    (folder / "FETAL_PLANES_DB_data.csv").write_text(
        "\ufeffImage_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"
        "Patient00001_Plane3_1_of_2;1;Fetal abdomen;Not A Brain;Op. 1;Aloka;1\n"
        "Patient00001_Plane3_2_of_2;1;Fetal abdomen;Not A Brain;Op. 1;Aloka;1\n"
        "Patient00001_Plane1_1_of_1;1;Other;Not A Brain;Op. 1;Aloka;1\n",
        encoding="utf-8",
    )
    for number in (1, 2):
        name = f"Patient00001_Plane3_{number}_of_2"
        draw(folder / "Images" / f"{name}.png", 200 + number)
        draw_mask(aimix / "masks" / f"{name}.png")
    survey = read_aimix(aimix)
    assert survey.problems == ()
    new = [study for study in survey.studies if study.case.startswith("Patient0")]
    assert [(study.centre, study.patient) for study in new] == [("Spain", "Spain_1"), ("Spain", "Spain_1")]
    assert ConversionIssue("FETAL_PLANES_DB_data.csv", "1 images of the plane Other", "Spain") in survey.left_out


def test_masks_may_lie_elsewhere_and_beside_the_images(aimix: Path, tmp_path: Path) -> None:
    usual = read_aimix(aimix)
    (aimix / "masks").rename(tmp_path / "drawn")
    elsewhere = read_aimix(aimix, masks=tmp_path / "drawn")
    assert cases(elsewhere) == cases(usual)
    (tmp_path / "drawn").rename(aimix / "labels")
    assert cases(read_aimix(aimix, masks=aimix / "labels")) == cases(usual)
    for mask in sorted((aimix / "labels").rglob("*.png")):
        centre = mask.parent.name
        beside = aimix / centre if centre == "Spain" else aimix / "Zenodo_dataset" / centre
        mask.rename(beside / f"{mask.stem.removesuffix('_mask')}_mask.png")
    survey = read_aimix(aimix, masks=aimix)
    assert cases(survey) == cases(usual)
    assert survey.problems == ()
    assert all(study.label.path.stem.endswith("_mask") for study in survey.studies)


def test_second_mask_and_second_image_of_a_name_are_problems(aimix: Path) -> None:
    draw_mask(aimix / "masks" / "Spain" / "HCB 1.png")
    draw(aimix / "Spain" / "HCB_2.png", 7)
    draw_mask(aimix / "masks" / "Spain" / "HCB_2.png")
    survey = read_aimix(aimix)
    assert cases(survey, "Spain") == ["HCB_1", "HCB_2"]
    assert [remark.reason for remark in survey.problems] == [
        "a second mask beside Spain/HCB 1.png",
        f"it has the case name HCB_2 of {aimix / 'Spain' / 'HCB 2.png'}",
    ]


def test_mask_that_could_be_of_two_images_is_a_problem(aimix: Path) -> None:
    for centre in ("Malawi", "Spain"):
        draw(aimix / centre / "scan.png", len(centre))
    draw_mask(aimix / "masks" / "scan.png")
    survey = read_aimix(aimix)
    assert [(remark.study, remark.reason) for remark in survey.problems] == [
        (f"{centre}/scan.png", "the mask scan.png could be of 2 images") for centre in ("Malawi", "Spain")
    ]
    (aimix / "masks" / "scan.png").rename(aimix / "masks" / "Spain" / "scan.png")
    survey = read_aimix(aimix)
    assert survey.problems == ()
    assert cases(survey, "Spain")[-1] == "scan"
    assert "scan" not in cases(survey, "Malawi")


def test_own_table_replaces_the_published_ones(aimix: Path) -> None:
    draw(aimix / "more" / "x.png", 300)
    draw_mask(aimix / "more" / "y.png")
    table = aimix / "images.csv"
    table.write_text(
        "image;mask;centre;patient;plane\n"
        "more/x.png;more/y.png;DZA;12;Fetal abdomen\n"
        "Spain/HCB 1.png;masks/Spain/HCB 1_mask.png;spain;;\n"
        "Spain/HCB 2.png;;Spain;5;abdomen\n"
        "Spain/HCB 2.png;masks/Spain/HCB 2_mask.png;Spain;5;Fetal brain\n"
        "Spain/HCB 2.png;masks/none.png;Spain;5;\n"
        ";masks/none.png;Spain;5;\n"
        "more/x.png;more/y.png;Peru;1;\n"
    )
    survey = read_aimix(aimix, table=table)
    assert [(study.case, study.centre, study.patient) for study in survey.studies] == [
        ("x", "Algeria", "Algeria_12"),
        ("HCB_1", "Spain", "Spain_HCB_1"),
    ]
    assert [remark.reason for remark in survey.left_out] == ["it has no mask", "image of the plane Fetal brain"]
    assert [remark.study for remark in survey.problems] == [
        "images.csv line 6: Spain/HCB 2.png",
        "images.csv line 7: no image",
        "images.csv line 8: more/x.png",
    ]
    table.write_text("image,label\n")
    with pytest.raises(DataError, match="has no column mask: it needs image, mask, centre, and has image, label"):
        read_aimix(aimix, table=table)


def test_wrong_downloads_of_aimix_say_what_is_missing(aimix: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        read_aimix(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images of AIMIX.*African_planes_database\.csv.*zenodo"):
        read_aimix(tmp_path / "empty")
    (aimix / "masks").rename(tmp_path / "drawn")
    with pytest.raises(DataError, match=r"no folder .*masks: .*published without masks"):
        read_aimix(aimix)
    (aimix / "masks").mkdir()
    with pytest.raises(DataError, match=r"none of the 8 abdominal images .* would be .*_mask\.png"):
        read_aimix(aimix)
    edit(african_table(aimix), lambda text: text.replace("Center", "Site"))
    with pytest.raises(DataError, match=r"has no column Center: .* and has Patient_num"):
        read_aimix(aimix)


# ---------------------------------------------------------------- ACOUSLIC-AI

FRAMES = 12
Painted = dict[int, int | tuple[int, int]]
"""Frame to the value in its mask, or to value and number of rows."""


def write_stack(path: Path, values: np.ndarray) -> None:
    image = sitk.GetImageFromArray(values.astype(np.uint8))
    image.SetSpacing((0.28, 0.28, 0.28))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)


def write_mask_stack(path: Path, painted: Painted, frames: int = FRAMES) -> None:
    values = np.zeros((frames, 6, 8))
    for frame, what in painted.items():
        value, rows = what if isinstance(what, tuple) else (what, 2)
        values[frame, :rows, 2:6] = value
    write_stack(path, values)


def make_acouslic(folder: Path, masks: dict[str, Painted], subjects: Sequence[str] = ()) -> Path:
    root = folder / "acouslic-ai-train-set"
    for uuid, painted in masks.items():
        write_stack(root / "images/stacked_fetal_ultrasound" / f"{uuid}.mha", np.ones((FRAMES, 6, 8)))
        write_mask_stack(root / "masks/stacked_fetal_abdomen" / f"{uuid}.mha", painted)
    sweeps = [f"sweep_{number}_ac_mm" for number in range(1, 7)]
    rows: Iterable[str] = (
        f"{uuid},{subjects[number] if subjects else f's{number}'},231.7,,,,," for number, uuid in enumerate(masks)
    )
    table = root / "circumferences" / "fetal_abdominal_circumferences_per_sweep.csv"
    table.parent.mkdir(parents=True)
    table.write_text("\n".join([",".join(["uuid", "subject_id", *sweeps]), *rows]))
    return folder


def frames(survey: ScanResult) -> dict[str, int | None]:
    return {study.case: study.label.frame for study in survey.studies}


BOTH = "046ed03e-4b35-4519-bb5f-cd4b0474a060"
ONLY_SUBOPTIMAL = "02d3a9bc-63e2-4deb-9dc1-dba17e7d54c1"
EMPTY = "1b3db504-c1fe-45f0-96dc-3cfb851d5bca"


@pytest.fixture
def acouslic(tmp_path: Path) -> Path:
    both: Painted = {1: (2, 5), 4: 1, 6: (1, 3), 7: (1, 3), 9: (2, 4)}
    return make_acouslic(tmp_path / "acouslic", {BOTH: both, ONLY_SUBOPTIMAL: {2: (2, 1), 3: (2, 4)}, EMPTY: {}})


def root_of(source: Path) -> Path:
    return source / "acouslic-ai-train-set"


def test_largest_mask_of_the_optimal_plane_is_the_case(acouslic: Path) -> None:
    survey = read_acouslic(acouslic)
    root = root_of(acouslic)
    assert survey.studies == (
        SourceCase(
            case=BOTH,
            centre="Sierra Leone",
            channels=(Source(root / "images/stacked_fetal_ultrasound" / f"{BOTH}.mha", frame=6),),
            label=Source(root / "masks/stacked_fetal_abdomen" / f"{BOTH}.mha", frame=6),
            label_values={1: "abdomen", 2: "abdomen"},
            patient="s0",
        ),
    )
    assert survey.left_out == (
        ConversionIssue(ONLY_SUBOPTIMAL, "no frame is annotated as the optimal plane", "Sierra Leone"),
        ConversionIssue(EMPTY, "no frame is annotated", "Sierra Leone"),
    )
    assert survey.problems == ()
    assert survey.file_ending == ".png"


def test_frames_are_chosen_as_the_option_says(acouslic: Path) -> None:
    assert frames(read_acouslic(acouslic, planes="optimal-first")) == {BOTH: 6, ONLY_SUBOPTIMAL: 3}
    largest = read_acouslic(acouslic, planes="largest")
    assert frames(largest) == {BOTH: 1, ONLY_SUBOPTIMAL: 3}
    assert [remark.study for remark in largest.left_out] == [EMPTY]


def test_the_frame_is_the_one_that_the_engine_cuts_out(acouslic: Path) -> None:
    (study,) = read_acouslic(acouslic).studies
    stack = sitk.ReadImage(str(study.label.path))
    assert study.label.frame is not None
    frame = sitk.GetArrayFromImage(stack[:, :, study.label.frame])
    assert np.unique(frame).tolist() == [0, 1]
    assert (frame == 1).sum() == 3 * 4


def test_listed_cases_are_the_ones_taken(acouslic: Path, tmp_path: Path) -> None:
    (tmp_path / "cases.txt").write_text(f"{ONLY_SUBOPTIMAL}\n\nunheard-of\n")
    survey = read_acouslic(acouslic, planes="optimal-first", cases=tmp_path / "cases.txt")
    assert list(frames(survey)) == [ONLY_SUBOPTIMAL]
    assert [remark.study for remark in survey.left_out] == [BOTH, EMPTY]
    assert [remark.study for remark in survey.problems] == ["unheard-of"]
    with pytest.raises(DataError, match=r"cases: .* cannot be read"):
        read_acouslic(acouslic, cases=tmp_path / "none.txt")


def test_the_best_frame_of_a_subject_is_its_case(tmp_path: Path) -> None:
    masks: dict[str, Painted] = {
        "a": {0: (1, 2)},
        "b": {5: (1, 3), 6: (2, 5)},
        "c": {0: (2, 4)},
        "d": {0: (1, 1)},  # not in the table as anybody's
    }
    source = make_acouslic(tmp_path, masks, subjects=("007", "007", "007", ""))
    assert frames(read_acouslic(source)) == {"b": 5, "d": 0}
    assert frames(read_acouslic(source, planes="largest")) == {"b": 6, "d": 0}
    first = read_acouslic(source, planes="optimal-first")
    assert frames(first) == {"b": 5, "d": 0}, "a larger suboptimal plane is no better"
    assert [(remark.study, remark.reason) for remark in first.left_out] == [
        ("a", "subject 007 has a better frame in b"),
        ("c", "subject 007 has a better frame in b"),
    ]
    every = read_acouslic(source, planes="optimal-first", one_per="case")
    assert [(study.case, study.patient) for study in every.studies] == [
        ("a", "007"),
        ("b", "007"),
        ("c", "007"),
        ("d", "d"),
    ]


def test_stack_without_partner_is_a_problem(acouslic: Path) -> None:
    root = root_of(acouslic)
    (root / "masks/stacked_fetal_abdomen" / f"{BOTH}.mha").unlink()
    (root / "images/stacked_fetal_ultrasound" / f"{ONLY_SUBOPTIMAL}.mha").unlink()
    (root / "images/stacked_fetal_ultrasound" / f"{EMPTY}.mha").unlink()
    (root / "masks/stacked_fetal_abdomen" / f"{EMPTY}.mha").unlink()
    write_mask_stack(root / "masks/stacked_fetal_abdomen" / "extra.mha", {0: 1})
    write_stack(root / "images/stacked_fetal_ultrasound" / "extra.mha", np.ones((FRAMES, 6, 8)))
    survey = read_acouslic(acouslic)
    assert {remark.study: remark.reason for remark in survey.problems} == {
        BOTH: f"there is no {BOTH}.mha in masks/stacked_fetal_abdomen",
        ONLY_SUBOPTIMAL: f"there is no {ONLY_SUBOPTIMAL}.mha in images/stacked_fetal_ultrasound",
        EMPTY: f"there is no {EMPTY}.mha in images/stacked_fetal_ultrasound and masks/stacked_fetal_abdomen",
    }
    assert [(study.case, study.patient) for study in survey.studies] == [("extra", "extra")], "not in the table"


def test_stacks_of_other_length_or_damaged_are_problems(tmp_path: Path) -> None:
    source = make_acouslic(tmp_path, {name: {0: 1} for name in ("short", "flat", "cut", "torn", "fine")})
    images, masks = (
        root_of(source) / part for part in ("images/stacked_fetal_ultrasound", "masks/stacked_fetal_abdomen")
    )
    write_mask_stack(masks / "short.mha", {0: 1}, frames=FRAMES - 1)
    for folder in (images, masks):
        sitk.WriteImage(sitk.GetImageFromArray(np.ones((6, 8), dtype=np.uint8)), str(folder / "flat.mha"))
    whole = (masks / "cut.mha").read_bytes()
    (masks / "cut.mha").write_bytes(whole[: len(whole) - 20])
    (images / "torn.mha").write_bytes(b"")
    survey = read_acouslic(source)
    assert list(frames(survey)) == ["fine"]
    problems = {remark.study: remark.reason for remark in survey.problems}
    assert list(problems) == ["cut", "flat", "short", "torn"]
    assert "they have 8 x 6 x 12 and 8 x 6 x 11 (X, Y, frames)" in problems["short"]
    assert "they have 8 x 6 and 8 x 6 (X, Y, frames)" in problems["flat"]
    assert f"{masks / 'cut.mha'} cannot be read" in problems["cut"]
    assert f"{images / 'torn.mha'} cannot be read" in problems["torn"]


def test_hyphens_and_the_folder_itself_are_understood(acouslic: Path) -> None:
    root = root_of(acouslic)
    (root / "images/stacked_fetal_ultrasound").rename(root / "images/stacked-fetal-ultrasound")
    assert frames(read_acouslic(root)) == {BOTH: 6}


def test_ending_that_no_reader_knows_is_a_problem(acouslic: Path) -> None:
    image = root_of(acouslic) / "images/stacked_fetal_ultrasound" / f"{BOTH}.mha"
    image.rename(image.with_suffix(".MHA"))
    (problem,) = read_acouslic(acouslic).problems
    assert problem.study == BOTH
    assert f"{BOTH}.MHA must be renamed" in problem.reason


def test_wrong_downloads_of_acouslic_say_what_is_missing(acouslic: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stacked_fetal_ultrasound is missing: .*acouslic-ai-train-set\.zip"):
        read_acouslic(tmp_path / "nowhere")
    root = root_of(acouslic)
    table = root / "circumferences" / "fetal_abdominal_circumferences_per_sweep.csv"
    text = table.read_text()
    table.unlink()
    with pytest.raises(DataError, match=r"circumferences_per_sweep\.csv is missing"):
        read_acouslic(acouslic)
    table.write_text(text.replace("subject_id", "subject"))
    with pytest.raises(DataError, match="has no column subject_id"):
        read_acouslic(acouslic)
    for mask in (root / "masks/stacked_fetal_abdomen").iterdir():
        mask.unlink()
    with pytest.raises(DataError, match=r"stacked_fetal_abdomen holds no \.mha"):
        read_acouslic(acouslic)
    (root / "masks/stacked_fetal_abdomen").rmdir()
    with pytest.raises(DataError, match="stacked_fetal_abdomen is missing"):
        read_acouslic(acouslic)


@pytest.mark.parametrize("read", [read_aimix, read_acouslic])
def test_options_explain_themselves(read: Callable[..., ScanResult]) -> None:
    hints = get_type_hints(read, include_extras=True)
    options = set(read.__kwdefaults__ or {})
    assert options
    assert all(hints[option].__metadata__[0] for option in options)

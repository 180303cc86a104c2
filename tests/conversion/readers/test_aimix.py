"""Reader of AIMIX, on miniatures of the published downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fednnunet.config.hydra_datasets import configured_dataset
from fednnunet.conversion.readers.acouslic import read_acouslic
from fednnunet.conversion.readers.aimix import read_aimix
from fednnunet.conversion.scan_result import ConversionIssue, ScanResult, SourceCase, SourceImage
from fednnunet.errors import DataError
from tests.support.ultrasound_downloads import PLANES, draw, draw_mask, make_acouslic

AFRICAN = ("Algeria", "Egypt", "Malawi")


def edit(table: Path, change: Callable[[str], str]) -> None:
    table.write_text(change(table.read_text()))


def african_table(source: Path) -> Path:
    return source / "Zenodo_dataset" / "African_planes_database.csv"


def case_names(scan: ScanResult, centre: str | None = None) -> list[str]:
    return [case.name for case in scan.cases if centre in (None, case.centre)]


def test_aimix_takes_the_abdominal_planes_with_masks(aimix: Path) -> None:
    scan = read_aimix(aimix)
    assert scan.channel_names == ("ultrasound",)
    assert scan.file_ending == ".png"
    assert scan.problems == ()
    assert {centre: case_names(scan, centre) for centre in (*AFRICAN, "Spain")} == {
        "Algeria": ["patient001_DZA_plane0", "patient002_DZA_plane0"],
        "Egypt": ["patient001_EGY_plane0", "patient002_EGY_plane0"],
        "Malawi": ["patient001_MWI_plane0", "patient002_MWI_plane0"],
        "Spain": ["HCB_1", "HCB_2"],
    }
    assert len(scan.cases) == 8
    assert scan.cases[0] == SourceCase(
        name="patient001_DZA_plane0",
        centre="Algeria",
        channels=(SourceImage(aimix / "Zenodo_dataset" / "Algeria" / "patient001_DZA_plane0.png"),),
        label=SourceImage(aimix / "masks" / "Algeria" / "patient001_DZA_plane0.png"),
        label_values={1: "abdomen", 255: "abdomen"},
        patient="Algeria_1",
    )
    spanish = [case for case in scan.cases if case.centre == "Spain"]
    assert [case.label.path.name for case in spanish] == ["HCB 1_mask.png", "HCB 2_mask.png"]
    assert len({case.patient for case in scan.cases}) == 8, "patients are numbered per country"


def test_other_planes_and_countries_are_left_out_by_number(aimix: Path) -> None:
    left_out = {(issue.centre, issue.reason) for issue in read_aimix(aimix).left_out}
    assert left_out == {
        *(
            (centre, f"2 images of the plane {plane}")
            for centre in ("Algeria", "Egypt", "Malawi")
            for plane in PLANES[1:]
        ),
        ("", "8 images of Ghana, not in the paper"),
    }


def test_centres_are_those_of_the_configuration(aimix: Path, tmp_path: Path) -> None:
    configured = configured_dataset("aimix").centres
    internal = {centre.name for centre in configured if not centre.external}
    external = {centre.name for centre in configured if centre.external}
    assert {case.centre for case in read_aimix(aimix).cases} == internal
    assert {case.centre for case in read_acouslic(make_acouslic(tmp_path / "b", {"a": {0: 1}})).cases} == external


def test_image_without_mask_is_left_out_and_mask_without_image_a_problem(aimix: Path) -> None:
    (aimix / "masks" / "Egypt" / "patient002_EGY_plane0.png").unlink()
    draw_mask(aimix / "masks" / "Malawi" / "patient077_MWI_plane0.png")
    draw_mask(aimix / "masks" / "Malawi" / "patient001_MWI_plane1.png")  # of a brain that the table lists
    scan = read_aimix(aimix)
    assert case_names(scan, "Egypt") == ["patient001_EGY_plane0"]
    assert (
        ConversionIssue(
            "Zenodo_dataset/Egypt/patient002_EGY_plane0.png", f"it has no mask in {aimix / 'masks'}", "Egypt"
        )
        in scan.left_out
    )
    assert scan.problems == (
        ConversionIssue("Malawi/patient077_MWI_plane0.png", f"mask without an image in {aimix}", "Malawi"),
    )


def test_listed_image_that_is_missing_is_a_problem(aimix: Path) -> None:
    (aimix / "Zenodo_dataset" / "Algeria" / "patient001_DZA_plane0.png").unlink()
    scan = read_aimix(aimix)
    assert case_names(scan, "Algeria") == ["patient002_DZA_plane0"]
    (problem,) = scan.problems
    assert problem.name == "African_planes_database.csv line 2: patient001_DZA_plane0"
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
    scan = read_aimix(aimix)
    assert [(issue.name, issue.reason) for issue in scan.problems] == [
        (
            "African_planes_database.csv line 10: patient001_EGY_plane0",
            "Center 'Atlantis' is not a centre of AIMIX",
        ),
        ("African_planes_database.csv line 34: patient003_EGY_plane0", "Filename or Plane is empty"),
        ("African_planes_database.csv line 35: no name", "Filename or Plane is empty"),
    ]


def test_upper_case_endings_are_read_and_hidden_files_of_macos_ignored(aimix: Path) -> None:
    folder = aimix / "Zenodo_dataset" / "Malawi"
    (folder / "patient001_MWI_plane0.png").rename(folder / "patient001_MWI_plane0.PNG")
    (aimix / "Spain" / "._HCB 1.png").write_bytes(b"Mac OS X")
    mask = aimix / "masks" / "Spain" / "HCB 2_mask.png"
    mask.rename(mask.with_name("HCB 2_mask.PNG"))
    scan = read_aimix(aimix)
    assert scan.problems == ()
    assert len(scan.cases) == 8
    (case,) = (case for case in scan.cases if case.name == "patient001_MWI_plane0")
    assert case.channels[0].path.name == "patient001_MWI_plane0.PNG"


def test_same_image_under_two_patient_numbers_is_one_patient(aimix: Path) -> None:
    folder = aimix / "Zenodo_dataset" / "Malawi"
    (folder / "patient002_MWI_plane0.png").write_bytes((folder / "patient001_MWI_plane0.png").read_bytes())
    kept = read_aimix(aimix)
    malawi = [case for case in kept.cases if case.centre == "Malawi"]
    assert [case.patient for case in malawi] == ["Malawi_1", "Malawi_1"]
    assert len({case.patient for case in kept.cases}) == 7
    dropped = read_aimix(aimix, duplicates="drop")
    assert case_names(dropped, "Malawi") == ["patient001_MWI_plane0"]
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
    assert len({case.patient for case in read_aimix(aimix, table=table).cases}) == 1


def test_several_images_of_a_patient_share_it(aimix: Path) -> None:
    edit(african_table(aimix), lambda text: text.replace("2,Fetal abdomen,1,Algeria", "1,Fetal abdomen,1,Algeria"))
    scan = read_aimix(aimix)
    assert [case.patient for case in scan.cases if case.centre == "Algeria"] == ["Algeria_1", "Algeria_1"]


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
    scan = read_aimix(aimix)
    assert scan.problems == ()
    new = [case for case in scan.cases if case.name.startswith("Patient0")]
    assert [(case.centre, case.patient) for case in new] == [("Spain", "Spain_1"), ("Spain", "Spain_1")]
    assert ConversionIssue("FETAL_PLANES_DB_data.csv", "1 images of the plane Other", "Spain") in scan.left_out


def test_masks_may_be_elsewhere_or_beside_the_images(aimix: Path, tmp_path: Path) -> None:
    usual = read_aimix(aimix)
    (aimix / "masks").rename(tmp_path / "drawn")
    elsewhere = read_aimix(aimix, masks=tmp_path / "drawn")
    assert case_names(elsewhere) == case_names(usual)
    (tmp_path / "drawn").rename(aimix / "labels")
    assert case_names(read_aimix(aimix, masks=aimix / "labels")) == case_names(usual)
    for mask in sorted((aimix / "labels").rglob("*.png")):
        centre = mask.parent.name
        beside = aimix / centre if centre == "Spain" else aimix / "Zenodo_dataset" / centre
        mask.rename(beside / f"{mask.stem.removesuffix('_mask')}_mask.png")
    scan = read_aimix(aimix, masks=aimix)
    assert case_names(scan) == case_names(usual)
    assert scan.problems == ()
    assert all(case.label.path.stem.endswith("_mask") for case in scan.cases)


def test_second_mask_and_second_image_of_a_name_are_problems(aimix: Path) -> None:
    draw_mask(aimix / "masks" / "Spain" / "HCB 1.png")
    draw(aimix / "Spain" / "HCB_2.png", 7)
    draw_mask(aimix / "masks" / "Spain" / "HCB_2.png")
    scan = read_aimix(aimix)
    assert case_names(scan, "Spain") == ["HCB_1", "HCB_2"]
    assert [issue.reason for issue in scan.problems] == [
        "a second mask beside Spain/HCB 1.png",
        f"it has the case name HCB_2 of {aimix / 'Spain' / 'HCB 2.png'}",
    ]


def test_mask_that_could_be_of_two_images_is_a_problem(aimix: Path) -> None:
    for centre in ("Malawi", "Spain"):
        draw(aimix / centre / "scan.png", len(centre))
    draw_mask(aimix / "masks" / "scan.png")
    scan = read_aimix(aimix)
    assert [(issue.name, issue.reason) for issue in scan.problems] == [
        (f"{centre}/scan.png", "the mask scan.png could be of 2 images") for centre in ("Malawi", "Spain")
    ]
    (aimix / "masks" / "scan.png").rename(aimix / "masks" / "Spain" / "scan.png")
    scan = read_aimix(aimix)
    assert scan.problems == ()
    assert case_names(scan, "Spain")[-1] == "scan"
    assert "scan" not in case_names(scan, "Malawi")


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
    scan = read_aimix(aimix, table=table)
    assert [(case.name, case.centre, case.patient) for case in scan.cases] == [
        ("x", "Algeria", "Algeria_12"),
        ("HCB_1", "Spain", "Spain_HCB_1"),
    ]
    assert [issue.reason for issue in scan.left_out] == ["it has no mask", "image of the plane Fetal brain"]
    assert [issue.name for issue in scan.problems] == [
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

"""BIDS datasets, with the oddities of the standard and of published datasets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fednnunet.conversion.readers.bids.reader import read_bids
from fednnunet.conversion.scan_result import ConversionIssue, SourceCase, SourceImage
from fednnunet.errors import ConfigError, DataError

LOOKUP = "index\tname\tabbreviation\n0\tBackground\tBG\n100\tGray Matter\tGM\n102\tBrainstem\tBS\n"
PARTICIPANTS = "participant_id\tage\tsite\nsub-01\t34\tOslo\nsub-02\t12\tBergen\nsub-03\t33\tOslo\n"


def touch(root: Path, *files: str) -> Path:
    """A dataset of empty files: the reader opens no image."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = touch(
        tmp_path / "ds000001",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii",
        "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz",
        "sub-02/ses-2/anat/sub-02_ses-2_T1w.nii.gz",
        "sub-02/ses-2/anat/sub-02_ses-2_T2w.nii.gz",
        "sub-03/anat/sub-03_T1w.nii.gz",
        "derivatives/manual/sub-01/anat/sub-01_space-orig_dseg.nii.gz",
        "derivatives/manual/sub-01/anat/sub-01_dseg.dlabel.nii",
        "derivatives/manual/sub-02/ses-1/anat/sub-02_ses-1_dseg.nii.gz",
        "derivatives/manual/sub-02/ses-2/anat/sub-02_ses-2_dseg.nii.gz",
        "derivatives/masks/sub-01/anat/sub-01_label-tumor_mask.nii.gz",
    )
    (root / "derivatives" / "manual" / "dseg.tsv").write_text(LOOKUP)
    (root / "participants.tsv").write_text(PARTICIPANTS)
    return root


def test_label_maps_meet_their_images_centres_and_names(dataset: Path) -> None:
    scan = read_bids(dataset, channels="T1w,T2w")
    manual, values = dataset / "derivatives" / "manual", {100: "Gray Matter", 102: "Brainstem"}

    def expected(name: str, centre: str, session: str, ending: str, label: str) -> SourceCase:
        anat = Path(*session.split("_")) / "anat"
        channels = tuple(SourceImage(dataset / anat / f"{name}_{end}") for end in (f"T1w{ending}", "T2w.nii.gz"))
        label_map = SourceImage(manual / anat / f"{name}_{label}.nii.gz")
        return SourceCase(name, centre, channels, label_map, values, name.split("_")[0])

    assert scan.cases == (
        expected("sub-01", "Oslo", "sub-01", ".nii.gz", "space-orig_dseg"),
        expected("sub-02_ses-1", "Bergen", "sub-02_ses-1", ".nii", "dseg"),
        expected("sub-02_ses-2", "Bergen", "sub-02_ses-2", ".nii.gz", "dseg"),
    )
    assert scan.channel_names == ("T1w", "T2w")
    assert scan.labels == {"background": 0, "Gray Matter": 1, "Brainstem": 2}
    assert scan.left_out == (ConversionIssue("sub-03_T1w.nii.gz", "no annotation: there is no *_dseg of it", "Oslo"),)
    assert scan.problems == ()


def test_a_mask_has_the_name_of_its_label(dataset: Path) -> None:
    scan = read_bids(dataset, label_maps="label-tumor_mask")
    assert [(case.name, case.label_values) for case in scan.cases] == [("sub-01", {1: "tumor"})]
    assert scan.labels == {"background": 0, "tumor": 1}
    assert len(scan.left_out) == 3


def test_the_nearest_lookup_table_names_the_values(dataset: Path) -> None:
    folder = dataset / "derivatives" / "manual"
    (folder / "sub-02" / "ses-2_dseg.tsv").write_text("index\tname\n1\tlesion\n")
    beside = folder / "sub-02" / "ses-1" / "anat" / "sub-02_ses-1_dseg.tsv"
    beside.write_text("index\tname\n7\tlesion\n")
    assert [case.label_values for case in read_bids(dataset).cases] == [
        {100: "Gray Matter", 102: "Brainstem"},
        {7: "lesion"},
        {1: "lesion"},
    ]
    assert read_bids(dataset).labels == {"background": 0, "lesion": 1, "Gray Matter": 2, "Brainstem": 3}
    assert read_bids(dataset, labels="brain=100").labels == {"background": 0, "brain": 1}
    beside.write_text("index\tname\nseven\tlesion\n")
    with pytest.raises(DataError, match=r"sub-02_ses-1_dseg\.tsv: label lesion has value 'seven'"):
        read_bids(dataset)


def test_values_without_a_name_are_asked_for(dataset: Path) -> None:
    (dataset / "derivatives" / "manual" / "dseg.tsv").unlink()
    with pytest.raises(ConfigError, match=r"no table dseg.tsv .* --labels tumour=1,node=2"):
        read_bids(dataset)


def test_entities_say_which_of_several_images_is_meant(tmp_path: Path) -> None:
    anat, manual = "sub-01/anat/sub-01", "derivatives/manual/sub-01/anat/sub-01"
    root = touch(
        tmp_path / "ds",
        *(f"{anat}_{name}.nii.gz" for name in ("acq-ax_run-1_T2w", "acq-ax_run-2_T2w", "acq-sag_run-1_T2w", "T1w")),
        *(f"{anat}_{name}.nii.gz" for name in ("run-1_FLAIR", "acq-fast_run-2_FLAIR")),
        *(f"{manual}_{name}_mask.nii.gz" for name in ("acq-ax_run-1_label-L", "acq-ax_run-2_label-L_desc-T1lesion")),
    )

    def images(channels: str) -> list[list[str]]:
        scan = read_bids(root, channels=channels, label_maps="label-L_mask")
        return [[source.path.name.removeprefix("sub-01_") for source in case.channels] for case in scan.cases]

    assert images("T2w") == [["acq-ax_run-1_T2w.nii.gz"], ["acq-ax_run-2_T2w.nii.gz"]]
    assert images("T2w,acq-sag_T2w") == [["acq-ax_run-1_T2w.nii.gz", "acq-sag_run-1_T2w.nii.gz"]]
    assert images("T2w,T1w")[1] == ["acq-ax_run-2_T2w.nii.gz", "T1w.nii.gz"]
    assert images("T2w,FLAIR")[0] == ["acq-ax_run-1_T2w.nii.gz", "run-1_FLAIR.nii.gz"]
    scan = read_bids(root, channels="T2w,FLAIR", label_maps="label-L_mask")
    assert scan.problems == (
        ConversionIssue(
            "sub-01_acq-ax_run-2",
            "no image fits sub-01_acq-ax_run-2_label-L_desc-T1lesion_mask.nii.gz: sub-01_acq-fast_run-2_FLAIR.nii.gz, "
            "sub-01_run-1_FLAIR.nii.gz; choose with --channels, as in run-1_FLAIR",
            "ds",
        ),
    )
    assert scan.channel_names == ("T2w", "FLAIR")
    assert read_bids(root, channels="acq-ax_T2w,acq-sag_T2w", label_maps="label-L_mask").channel_names == (
        "acq-ax_T2w",
        "acq-sag_T2w",
    )


def test_an_image_in_the_label_maps_space_is_preferred(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "ds",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "derivatives/prep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "derivatives/prep/sub-01/anat/sub-01_space-MNI_T1w.nii.gz",
        "derivatives/prep/sub-01/anat/sub-01_space-MNI_desc-preproc_T1w.nii.gz",
        "derivatives/prep/sub-01/anat/sub-01_space-MNI_label-L_mask.nii.gz",
    )

    def image(**options: str) -> Path:
        (case,) = read_bids(root, label_maps="mask", image_pipeline="prep", **options).cases
        return case.channels[0].path

    folder = root / "derivatives" / "prep" / "sub-01" / "anat"
    assert image() == folder / "sub-01_space-MNI_T1w.nii.gz"
    assert image(channels="desc-preproc_T1w") == folder / "sub-01_space-MNI_desc-preproc_T1w.nii.gz"


def test_what_is_not_clear_is_a_problem_and_the_others_are_read(dataset: Path) -> None:
    touch(
        dataset,
        "derivatives/manual/sub-01/anat/sub-01_desc-a_dseg.nii.gz",
        "derivatives/manual/sub-02/ses-1/anat/sub-02_ses-1_desc-a_dseg.nii.gz",
        "derivatives/manual/sub-02/ses-2/anat/sub-02_ses-2_run-1_dseg.nii.gz",
        "derivatives/manual/sub-03/anat/sub-03_desc-a_dseg.nii.gz",
        "derivatives/manual/sub-03/anat/sub-03_desc-b_dseg.nii.gz",
        "derivatives/manual/sub-04/anat/sub-04_dseg.nii.gz",
        "derivatives/manual/sub-05/anat/sub-05_dseg.nii.gz",
        "sub-05/anat/sub-05_T1w.nii.gz",
        "derivatives/manual/sub-06/anat/sub-06_dseg.nii.gz",
        "derivatives/manual/sub-07/anat/sub-07_dseg.nii.gz",
        "sub-07/anat/sub-07_T1w.nii.gz",
        "derivatives/manual/sub-08/anat/sub-08_dseg.nii.gz",
        "sub-08/anat/sub-08_T1w.nii.gz",
    )
    link = dataset / "sub-06" / "anat" / "sub-06_T1w.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../.git/annex/objects/gone.nii.gz")
    more = "sub-04\t1\tOslo\nsub-06\t1\tOslo\nsub-07\t1\tn/a\nsub-08\t1\tOslo\nsub-08\t2\tBergen\nsub-09\t1\tOslo\n"
    (dataset / "participants.tsv").write_text(PARTICIPANTS + more)
    scan = read_bids(dataset)
    assert [case.label.path.name for case in scan.cases] == [
        "sub-01_space-orig_dseg.nii.gz",  # nothing but what was asked for
        "sub-02_ses-1_dseg.nii.gz",
    ]
    table = dataset / "participants.tsv"
    twice = "sub-02_ses-2_T1w.nii.gz fits 2 label maps; choose one with --label-maps"
    assert scan.problems == (
        ConversionIssue(
            "sub-03",
            "several label maps: sub-03_desc-a_dseg.nii.gz, sub-03_desc-b_dseg.nii.gz; choose with --label-maps, as in "
            "desc-manual_dseg",
            "Oslo",
        ),
        ConversionIssue("sub-04", "there is no image *_T1w for sub-04_dseg.nii.gz", "Oslo"),
        ConversionIssue(
            "sub-06", f"{link} is a link to content that is not here; fetch it (datalad get, git annex get)", "Oslo"
        ),
        ConversionIssue("sub-02_ses-2", twice, "Bergen"),
        ConversionIssue("sub-02_ses-2_run-1", twice, "Bergen"),
        ConversionIssue("sub-05", f"sub-05 is not in {table}, so its centre is not known"),
        ConversionIssue("sub-07", f"sub-07 has no centre in the column site of {table}"),
        ConversionIssue("sub-08", f"sub-08 has the centres Bergen, Oslo in the column site of {table}"),
    )
    assert scan.left_out == (ConversionIssue("sub-09", "is in participants.tsv and has no file", "Oslo"),)


def test_the_centre_is_where_the_user_says(dataset: Path) -> None:
    def centres(**options: object) -> list[str]:
        return [case.centre for case in read_bids(dataset, **options).cases]  # type: ignore[arg-type]

    table = dataset / "participants.tsv"
    table.write_text("participant_id\tinstitution_id\tSite\nsub-01\tamu\tA\nsub-02\tubc\tB\n")
    assert centres() == ["A", "B", "B"]
    assert centres(centre_column="institution_id") == ["amu", "ubc", "ubc"]
    with pytest.raises(DataError, match=r"has no column hospital"):
        centres(centre_column="hospital")
    other = dataset.parent / "centre_ids.csv"
    other.write_text("participant_id;centre\n01;C\n02;D\n")
    assert centres(participants=other) == ["C", "D", "D"]
    table.write_text("participant_id\tage\nsub-01\t1\nsub-02\t2\n")
    assert centres() == ["ds000001"] * 3
    table.unlink()
    assert centres() == ["ds000001"] * 3
    with pytest.raises(DataError, match=r"there is no file"):
        centres(centre_column="site")


def test_label_maps_are_found_without_a_pipelines_folder_and_beside_the_images(tmp_path: Path) -> None:
    """The layouts of ISLES 2022 and ATLAS 2.0."""
    name = "sub-strokecase0001_ses-0001"
    isles = touch(
        tmp_path / "ISLES-2022",
        f"sub-strokecase0001/ses-0001/dwi/{name}_dwi.nii.gz",
        f"sub-strokecase0001/ses-0001/dwi/{name}_adc.nii.gz",
        f"derivatives/sub-strokecase0001/ses-0001/{name}_msk.nii.gz",
    )
    (case,) = read_bids(isles, channels="dwi,adc", label_maps="msk", labels="lesion=1").cases
    assert case.name == name
    assert [path.name for path in case.files] == [f"{name}_{suffix}.nii.gz" for suffix in ("dwi", "adc", "msk")]

    name = "sub-r001s001_ses-1_space-MNI152NLin2009aSym"
    atlas = touch(
        tmp_path / "R001",
        f"sub-r001s001/ses-1/anat/{name}_T1w.nii.gz",
        f"sub-r001s001/ses-1/anat/{name}_label-L_desc-T1lesion_mask.nii.gz",
    )
    (case,) = read_bids(atlas, label_maps="label-L_desc-T1lesion_mask", pipeline=".", labels="lesion=1").cases
    assert (case.name, case.centre, case.patient) == ("sub-r001s001_ses-1", "R001", "sub-r001s001")


def test_label_maps_with_the_images_suffix_are_distinguished(tmp_path: Path) -> None:
    """The layout of the spine-generic datasets, today and before 2024."""
    root = touch(
        tmp_path / "data-multi-subject",
        *(f"sub-amu01/anat/sub-amu01_{suffix}.nii.gz" for suffix in ("T1w", "T2w", "T2star")),
        *(f"derivatives/labels/sub-amu01/anat/sub-amu01_{suffix}_seg-manual.nii.gz" for suffix in ("T1w", "T2w")),
        *(f"derivatives/labels/sub-amu01/anat/sub-amu01_{suffix}_label-SC_seg.nii.gz" for suffix in ("T1w", "T2w")),
        "derivatives/labels/sub-amu01/anat/sub-amu01_T2star_label-lesion_seg.nii.gz",
        "derivatives/labels/sub-amu01/anat/sub-amu01_T2w_label-discs_dlabel.nii.gz",
        "derivatives/labels/sub-amu01/dwi/sub-amu01_rec-average_dwi_label-SC_seg.nii.gz",
    )

    def files(label_maps: str) -> list[str]:
        (case,) = read_bids(root, channels="T2w", label_maps=label_maps, labels="cord=1").cases
        return [path.name for path in case.files]

    assert files("T2w_label-SC_seg") == ["sub-amu01_T2w.nii.gz", "sub-amu01_T2w_label-SC_seg.nii.gz"]
    assert files("T2w_seg-manual") == ["sub-amu01_T2w.nii.gz", "sub-amu01_T2w_seg-manual.nii.gz"]
    (problem,) = read_bids(root, channels="T2w", label_maps="label-lesion_seg", labels="lesion=1").problems
    assert problem.reason == (
        "sub-amu01_T2star_label-lesion_seg.nii.gz is a label map of *_T2star; choose such images with --channels, or "
        "other label maps with --label-maps"
    )


STROKE = {"channels": "ncct", "label_maps": "lesion-msk", "labels": "lesion=1"}


@pytest.mark.parametrize("raw", ["rawdata", "raw_data"])
@pytest.mark.parametrize("source", ["", "train", "train/RAW"])
def test_raw_images_beside_derivatives_are_found_from_any_folder_above(tmp_path: Path, raw: str, source: str) -> None:
    root = touch(
        tmp_path / "stroke",
        *(f"train/{raw}/sub-{number}/anat/sub-{number}_ncct.nii.gz" for number in (1, 2)),
        *(f"train/derivatives/sub-{number}/anat/sub-{number}_lesion-msk.nii.gz" for number in (1, 2)),
        "train/sourcedata/sub-1/anat/sub-1_ncct.nii.gz",
    )
    table = root / "train" / raw / "participants.tsv"
    table.write_text("participant_id\tinstitution_id\nsub-1\tnorth\nsub-2\tsouth\n")
    scan = read_bids(root / source.replace("RAW", raw), centre_column="institution_id", channel_names="CT", **STROKE)  # type: ignore[arg-type]
    assert [(case.name, case.centre) for case in scan.cases] == [("sub-1", "north"), ("sub-2", "south")]
    assert scan.cases[0].files == (
        root / "train" / raw / "sub-1/anat/sub-1_ncct.nii.gz",
        root / "train/derivatives/sub-1/anat/sub-1_lesion-msk.nii.gz",
    )
    assert (scan.channel_names, scan.problems, scan.left_out, scan.notes) == (("CT",), (), (), ())
    table.rename(root / "train" / "participants.tsv")
    assert {case.centre for case in read_bids(root / source.replace("RAW", raw), **STROKE).cases} == {
        "train" if source else "stroke"
    }


def test_a_channel_may_be_of_another_session_than_the_label_map(tmp_path: Path) -> None:
    """The layout of ISLES 2024: lesions are drawn on later images, and brought onto the CT of the first session."""
    name = "sub-stroke0001"
    root = touch(
        tmp_path / "isles24",
        f"raw_data/{name}/ses-01/{name}_ses-01_ncct.nii.gz",
        f"derivatives/{name}/ses-02/{name}_ses-02_space-ncct_lesion-msk.nii.gz",
    )
    (case,) = read_bids(root, **{**STROKE, "channels": "ses-01_ncct"}).cases  # type: ignore[arg-type]
    assert (case.name, case.channels[0].path.name) == (f"{name}_ses-02", f"{name}_ses-01_ncct.nii.gz")
    (problem,) = read_bids(root, **STROKE).problems  # type: ignore[arg-type]
    assert problem.reason == (
        f"there is no image *_ncct for {name}_ses-02_space-ncct_lesion-msk.nii.gz in its session; ses-01 has one: "
        "choose it with --channels, as in ses-01_ncct"
    )


def test_masks_of_another_datatype_are_not_paired(tmp_path: Path) -> None:
    """As fMRIPrep writes: a brain mask in func has all that the name of an image in anat has, and more."""
    root = touch(
        tmp_path / "ds",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/func/sub-01_task-rest_bold.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "derivatives/fmriprep/sub-01/func/sub-01_desc-brain_mask.nii.gz",
        "derivatives/fmriprep/sub-02/func/sub-02_task-rest_desc-brain_mask.nii.gz",
    )
    scan = read_bids(root, label_maps="mask")
    assert [case.label.path.parent.name for case in scan.cases] == ["anat"]
    says = (
        "lies in func, no image *_T1w does; choose the images that it was drawn on with --channels, or list both in a "
        "CSV file (fednnunet convert generic) if they lie on one grid"
    )
    func = ("sub-01_desc-brain_mask.nii.gz", "sub-02_task-rest_desc-brain_mask.nii.gz")
    assert scan.problems == ()
    assert scan.left_out == (
        *(ConversionIssue(name, f"{name} {says}", "ds") for name in func),
        ConversionIssue("sub-02_T1w.nii.gz", "no annotation: there is no *_mask of it", "ds"),
    )
    (root / "derivatives/fmriprep/sub-01/anat/sub-01_desc-brain_mask.nii.gz").unlink()
    with pytest.raises(DataError, match=r"sub-01_desc-brain_mask\.nii\.gz lies in func, no image \*_T1w does"):
        read_bids(root, label_maps="mask")
    touch(root, "sub-02/func/sub-02_T1w.nii.gz")  # misplaced: each label map is judged by its own images
    assert [issue.reason for issue in read_bids(root, label_maps="mask").problems] == [
        "sub-01_desc-brain_mask.nii.gz lies in func, sub-01_T1w.nii.gz in anat: an image of another datatype is not "
        "its own"
    ]


def test_further_channels_may_be_of_another_datatype(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "ds",
        *(f"sub-01/{name}.nii.gz" for name in ("dwi/sub-01_dwi", "anat/sub-01_FLAIR", "dwi/sub-01_FLAIR")),
        "derivatives/manual/sub-01/dwi/sub-01_label-stroke_mask.nii.gz",
    )
    (case,) = read_bids(root, channels="dwi,FLAIR", label_maps="mask").cases
    assert [source.path.parent.name for source in case.channels] == ["dwi", "dwi"], "its own, where there are several"
    (root / "sub-01/dwi/sub-01_FLAIR.nii.gz").unlink()
    (case,) = read_bids(root, channels="dwi,FLAIR", label_maps="mask").cases
    assert [source.path.parent.name for source in case.channels] == ["dwi", "anat"]


def test_channels_are_named_by_the_user_or_by_the_images(dataset: Path) -> None:
    assert read_bids(dataset, channels="T1w,T2w", channel_names="CT, T2").channel_names == ("CT", "T2")
    with pytest.raises(ConfigError, match="--channel-names CT: 1 names for 2 channels"):
        read_bids(dataset, channels="T1w,T2w", channel_names="CT")


def test_columns_that_may_name_the_centre_are_told(dataset: Path) -> None:
    table = dataset / "participants.tsv"

    def notes(columns: str, *rows: str, **options: object) -> tuple[str, ...]:
        lines = [f"participant_id\t{columns}", *(f"sub-0{number}\t{row}" for number, row in enumerate(rows, start=1))]
        table.write_text("\n".join(lines))
        return read_bids(dataset, **options).notes  # type: ignore[arg-type]

    end = "choose what names the centre by --centre-column, as in"
    columns, rows = "age\tinstitution_id\tInstitutionName\tscanner", ("3\ta\tA\tX", "4\tb\tB\tX")
    assert notes(columns, *rows) == (
        f"all subjects become one centre, ds000001; {table} has institution_id (2 values), InstitutionName (2 values): "
        f"{end} institution_id",
    )
    assert notes(columns, *rows, centre_column="scanner") == ()
    assert notes("age_centered\tclinical_score\tcomposite", "1\t2\t3", "2\t3\t4") == ()
    assert notes("scanner_id", "n/a", "x") == ()
    assert notes("site\thospital", "A\tB", "B\tC") == (
        f"the column site of participants.tsv names the centres; {table} has hospital (2 values): {end} hospital",
    )


def test_an_unusable_source_is_refused_with_what_is_expected(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"derivatives holds what was derived; SRC is the folder above it"):
        read_bids(dataset / "derivatives")
    with pytest.raises(DataError, match=r"is no BIDS dataset: neither it nor a folder in it holds folders sub-\*"):
        read_bids(touch(tmp_path / "other", "images/a.nii.gz"))
    with pytest.raises(
        DataError, match=r"no image \*_PDw.nii.gz in .*; it has \*_T1w \(4\), \*_T2w \(3\), \*_bold \(1\); "
    ):
        read_bids(dataset, channels="PDw")
    with pytest.raises(
        DataError,
        match=r"no label map \*_seg.nii.gz .*, which has \*_dseg \(3\), \*_label-tumor_mask \(1\); say how their names",
    ):
        read_bids(dataset, label_maps="seg")
    with pytest.raises(
        DataError, match=r"no label map \*_seg.nii.gz in .*manual; it has \*_dseg \(3\): choose with --label"
    ):
        read_bids(dataset, label_maps="seg", pipeline="manual")
    touch(dataset, "sub-01/anat/sub-01_label-L_roi.nii.gz")
    with pytest.raises(DataError, match=r"1 lie beside the images: read these by --pipeline \."):
        read_bids(dataset, label_maps="roi")
    with pytest.raises(ConfigError, match=r"no pipeline auto; .*derivatives has manual, masks"):
        read_bids(dataset, pipeline="auto")
    touch(dataset, "derivatives/auto/sub-01/anat/sub-01_dseg.nii.gz")
    with pytest.raises(
        ConfigError, match=r"several pipelines have label maps .*: auto, manual; choose one with --pipeline"
    ):
        read_bids(dataset)
    assert len(read_bids(dataset, pipeline="manual").cases) == 3
    with pytest.raises(ConfigError, match=r"must say how names end"):
        read_bids(dataset, channels=" ,")
    sites = touch(tmp_path / "sites", *(f"{site}/{site}/sub-01/anat/sub-01_T1w.nii.gz" for site in ("R001", "R002")))
    with pytest.raises(
        ConfigError, match="sites holds several datasets, R001/R001, R002/R002; give one of them as SRC"
    ):
        read_bids(sites)
    with pytest.raises(
        DataError, match=r"there is no folder derivatives in .*; say where label maps lie by --pipeline"
    ):
        read_bids(sites / "R001")

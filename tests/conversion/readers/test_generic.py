"""A CSV file of image, label and centre, as people save it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fednnunet.conversion.readers.generic import read_generic
from fednnunet.conversion.scan_result import ConversionIssue, SourceCase, SourceImage
from fednnunet.errors import ConfigError, DataError


def write(folder: Path, text: str, *files: str, encoding: str = "utf-8") -> Path:
    """The CSV file, beside empty files: the reader opens none."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    path = folder / "cases.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_line_becomes_a_case_of_its_centre(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"image,label,centre,case,patient,age\nscans/a.nii.gz,masks/a.nii.gz,Oslo,a1,p1,60\n"
        f"{tmp_path}/b.nii.gz,masks/b.nii.gz,Bergen,,,\n",
        *("scans/a.nii.gz", "masks/a.nii.gz", "b.nii.gz", "masks/b.nii.gz"),
    )
    scan = read_generic(path, labels="tumour=1,node=2")
    values = {1: "tumour", 2: "node"}
    image, mask = tmp_path / "scans" / "a.nii.gz", tmp_path / "masks" / "a.nii.gz"
    assert scan.cases == (
        SourceCase("a1", "Oslo", (SourceImage(image),), SourceImage(mask), values, "p1"),
        SourceCase(
            "b",
            "Bergen",
            (SourceImage(tmp_path / "b.nii.gz"),),
            SourceImage(tmp_path / "masks" / "b.nii.gz"),
            values,
            "b",
        ),
    )
    assert scan.channel_names == ("image",)
    assert scan.labels == {"background": 0, "tumour": 1, "node": 2}
    assert (scan.problems, scan.left_out, scan.file_ending) == ((), (), ".nii.gz")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_any_spreadsheet_are_read(tmp_path: Path, delimiter: str, encoding: str, end: str) -> None:
    lines = [["Image", "Label", "Center"], [" a.nrrd ", "b.nrrd", "Málaga"], ["", "", ""]]
    text = end.join(delimiter.join(line) for line in lines) + end
    scan = read_generic(write(tmp_path, text, "a.nrrd", "b.nrrd", encoding=encoding), labels="tumour=1")
    assert [(case.centre, case.name, case.files) for case in scan.cases] == [
        ("Málaga", "a", (tmp_path / "a.nrrd", tmp_path / "b.nrrd"))
    ]
    assert not scan.problems


def test_each_image_column_is_a_channel_in_its_order(tmp_path: Path) -> None:
    text = 'centre,image_T2,image_ADC,label\nA,x_0000.nii.gz,"x,adc.nii.gz",m\\x.nii.gz\n'
    scan = read_generic(
        write(tmp_path, text, "x_0000.nii.gz", "x,adc.nii.gz", "m/x.nii.gz"), labels="background=0,tumour=1"
    )
    assert scan.channel_names == ("T2", "ADC")
    assert scan.cases[0].channels == (SourceImage(tmp_path / "x_0000.nii.gz"), SourceImage(tmp_path / "x,adc.nii.gz"))
    assert scan.cases[0].label == SourceImage(tmp_path / "m" / "x.nii.gz")
    assert scan.cases[0].name == "x"


def test_pictures_stay_pictures_and_values_are_numbered(tmp_path: Path) -> None:
    text = "image,label,centre\na.png,b.png,A\n"
    scan = read_generic(write(tmp_path, text, "a.png", "b.png"), labels="head=255,abdomen=128,lesion=64,edge=65")
    assert scan.file_ending == ".png"
    assert scan.cases[0].label_values == {255: "head", 128: "abdomen", 64: "lesion", 65: "edge"}
    assert scan.labels == {"background": 0, "lesion": 1, "edge": 2, "abdomen": 3, "head": 4}


def test_two_values_of_one_name_are_one_label(tmp_path: Path) -> None:
    scan = read_generic(write(tmp_path, "image,label,centre\na.nii,b.nii,A\n", "a.nii", "b.nii"), labels="t=4,o=2,t=1")
    assert scan.cases[0].label_values == {4: "t", 2: "o", 1: "t"}
    assert scan.labels == {"background": 0, "t": 1, "o": 2}


@pytest.mark.parametrize(
    "content",
    [
        {"tumour": 1, "node": 2},
        {"labels": {"background": 0, "tumour": 1, "node": 2}},
        {"0": "bg", "1": "tumour", "2": "node"},
    ],
)
def test_labels_may_come_from_json(tmp_path: Path, content: dict[str, object]) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(content))
    csv = write(tmp_path, "image,label,centre\na.nii,b.nii,A\n", "a.nii", "b.nii")
    assert read_generic(csv, labels=str(path)).labels == {"background": 0, "tumour": 1, "node": 2}


def test_a_wrong_line_is_a_problem_and_the_others_are_read(tmp_path: Path) -> None:
    text = (
        "image,label,centre,case\n"
        "a.nii.gz,m.nii.gz,A,good\n"
        "a.nii.gz,,,empty\n"
        "gone.nii.gz,m.nii.gz,A,missing\n"
        "a.nii.gz,m.png,B,picture\n"
        "a.dcm,m.nii.gz,B,dicom\n"
        "a.nii.gz,m.nii.gz,B,twice\n"
        "a.nii.gz,m.nii.gz,B,twice\n"
        "a.nii.gz,m.nii.gz,C,twice\n"
        "a,b.nii.gz,m.nii.gz,A,comma\n"
        "gone.nii.gz,m.nii.gz,A,\n"
    )
    scan = read_generic(write(tmp_path, text, "a.nii.gz", "m.nii.gz", "m.png", "a.dcm"), labels="tumour=1")
    assert [(case.centre, case.name) for case in scan.cases] == [("A", "good"), ("C", "twice")]
    twice = "lines 7, 8 of centre B have one case name; give a column case with different ones"
    assert scan.problems == (
        ConversionIssue("empty", "line 3: label and centre are empty", ""),
        ConversionIssue("missing", f"line 4: image: {tmp_path}/gone.nii.gz is missing", "A"),
        ConversionIssue(
            "picture",
            f"line 5: label: {tmp_path}/m.png is a 2D image without spacing, most images are not; convert them from a "
            "CSV file of their own",
            "B",
        ),
        ConversionIssue(
            "dicom",
            f"line 6: image: {tmp_path}/a.dcm has none of the endings .nii.gz, .nii, .nrrd, .mha, .gipl, .png, .bmp",
            "B",
        ),
        ConversionIssue("line 10", "5 cells under 4 columns; text with a delimiter needs quotation marks"),
        ConversionIssue("gone", f"line 11: image: {tmp_path}/gone.nii.gz is missing", "A"),
        ConversionIssue("twice", f"line 7: {twice}", "B"),
        ConversionIssue("twice", f"line 8: {twice}", "B"),
    )


def test_names_become_safe_and_stay_different(tmp_path: Path) -> None:
    cases = ["a b", "a/b", "a_b", "Jörg.1"]
    text = "image,label,centre,case\n" + "".join(f"a.nii,m.nii,A,{case}\n" for case in cases)
    scan = read_generic(write(tmp_path, text, "a.nii", "m.nii"), labels="tumour=1")
    names = [case.name for case in scan.cases]
    assert names[2:] == ["a_b", "J_rg_1"]
    assert all(name.startswith("a_b_") for name in names[:2])
    assert len(set(names)) == 4
    assert [case.patient for case in scan.cases] == cases  # what it was called is kept
    shuffled = text.splitlines()[:1] + text.splitlines()[:0:-1]
    again = read_generic(write(tmp_path, "\n".join(shuffled)), labels="tumour=1")
    assert {case.patient: case.name for case in again.cases} == dict(zip(cases, names, strict=True))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,mask,site\n", "has no column label: it needs label, centre, and has image, mask, site"),
        ("picture,label,centre\nx,y,z\n", "no column image, nor image_<channel> .* it has picture, label, centre"),
        ("image,image_T2,label,centre\nx,y,z,w\n", "columns image and image_T2"),
        ("image,label,centre,Centre\nx,y,z,w\n", "the column centre twice"),
        ("image,label,centre\n", "no line below its header"),
        ("", "is empty; its first line must name the columns label, centre"),
        ('image,label,centre\n"a.nii,m.nii,A\n', "line 2: .* quotation mark"),
    ],
)
def test_an_unusable_table_is_refused_with_what_it_has_and_needs(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_generic(write(tmp_path, text), labels="tumour=1")


def test_a_table_in_another_encoding_or_place_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "image,label,centre\na.nii,m.nii,Málaga\n", encoding="latin-1")
    with pytest.raises(DataError, match="CSV UTF-8"):
        read_generic(path, labels="tumour=1")
    with pytest.raises(DataError, match="there is no file"):
        read_generic(tmp_path / "gone.csv", labels="tumour=1")
    with pytest.raises(DataError, match="SRC is a CSV file"):
        read_generic(tmp_path, labels="tumour=1")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "--labels tumour=1,node=2"),
        ("tumour", "names and values such as"),
        ("tumour=one", "label tumour has value 'one'"),
        ("tumour=1,node=1", "value 1 has two names, tumour and node"),
        ("background=1", "background must have the value 0"),
        ("background=0", "no label but background"),
        ("=1", "value 1 has no name"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: str | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_generic(write(tmp_path, "image,label,centre\na.nii,m.nii,A\n"), labels=labels)


def test_a_json_file_without_labels_is_refused(tmp_path: Path) -> None:
    csv, path = write(tmp_path, "image,label,centre\na.nii,m.nii,A\n"), tmp_path / "labels.json"
    for content, says in (
        ("[1]", "must be a JSON object"),
        ("{", "is not JSON"),
        ('{"whole": [1, 2]}', r"value \[1, 2\]"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=says):
            read_generic(csv, labels=str(path))

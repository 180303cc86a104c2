"""Which names of labels may mean one structure."""

from __future__ import annotations

import pytest

from fednnunet.server.label_names import similar_names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Liver", "liver"),
        ("kidney", "kidneys"),
        ("tumor", "tumour"),
        ("edema", "oedema"),
        ("hemorrhage", "haemorrhage"),
        ("left kidney", "left_kidney"),
        ("leftkidney", "left_kidney"),
        ("left_kidney", "left_kidny"),
        ("gall_bladder", "gallbladder"),
        ("enhancing_tumor", "Enhancing Tumours"),
        ("splen", "spleen"),
        ("Ignore", "ignore_"),
    ],
)
def test_names_that_differ_by_case_plural_or_spelling_are_similar(one: str, other: str) -> None:
    assert similar_names({"Oslo": [one], "Porto": [other]}) == [tuple(sorted((one, other)))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kidney_left", "kidney_right"),
        ("rib_1", "rib_2"),
        ("rib1", "rib11"),
        ("vertebra_L1", "vertebra_C1"),
        ("hyperintense", "hypointense"),
        ("gluteus_maximus", "gluteus_minimus"),
        ("superior", "inferior"),
        ("internal", "external"),
        ("tumour", "tumour_core"),
        ("肝", "心"),
        ("?", "!"),
    ],
)
def test_names_of_other_structures_are_not(one: str, other: str) -> None:
    assert similar_names({"Oslo": [one], "Porto": [other]}) == []


def test_labels_of_one_node_are_two_structures() -> None:
    annotated = {"Oslo": ["lesion", "lesions"], "Porto": ["lesions"], "Riga": ["Lesion"]}
    assert similar_names(annotated) == [("Lesion", "lesion"), ("Lesion", "lesions")]

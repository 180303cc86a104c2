"""``dataset=phantom_many``: hospitals by number, of unlike size, each the same however many follow it."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hydra import compose, initialize_config_dir
from scipy import stats

from fednnunet.config.numbered_centres import numbered_centres
from fednnunet.config.run import RunConfig, read_config
from fednnunet.datasets.image_checks import check_images
from fednnunet.datasets.raw import read_dataset
from fednnunet.errors import ConfigError
from fednnunet.launch.settings import prepare_centres
from fednnunet.phantoms.breast_small import PhantomCentre
from fednnunet.phantoms.many import HospitalDistribution, divide, draw_hospitals

ROOT = Path(__file__).parents[2]
FEWEST = ("hospitals.median_cases=1", "hospitals.log_cases_std=0")


def composed(folder: Path, *overrides: str) -> RunConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        keys = ["dataset=phantom_many", f"paths.run={folder}", f"paths.data={folder}"]
        return read_config(compose("config", overrides=keys + [f"dataset.generator.{key}" for key in overrides]))


@cache
def configured() -> dict[str, Any]:
    generator = composed(Path("nowhere")).dataset.generator
    assert generator is not None
    return dict(generator["hospitals"])


def distribution(**changed: Any) -> HospitalDistribution:
    return HospitalDistribution.model_validate(configured() | changed)


def drawn(centres: int, *, external: float = 0.0, seed: int = 1234, pooled: int | None = None) -> list[PhantomCentre]:
    return list(draw_hospitals(centres, external, seed, pooled, distribution()).values())


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_number_becomes_that_many_centres_of_which_a_fraction_is_external() -> None:
    config = composed(Path("nowhere"), "centres=100", "external_fraction=0.15")
    names = [centre.name for centre in config.dataset.centres]
    assert names == [f"H{number:03d}" for number in range(1, 101)]
    assert len({centre.dataset for centre in config.dataset.centres}) == 100
    assert len(config.training_centres) == 85
    fewer = composed(Path("nowhere"), "centres=20", "external_fraction=0.15").external_centres
    assert [centre.name for centre in fewer] == ["H007", "H014", "H020"]
    assert composed(Path("nowhere"), "centres=4").external_centres == []


def test_datasets_are_valid_and_as_drawn(tmp_path: Path) -> None:
    config = composed(tmp_path, "centres=3", "external_fraction=0.4", *FEWEST)
    hospitals = draw_hospitals(3, 0.4, 1234, None, distribution(median_cases=1, log_cases_std=0))
    assert [hospital.external for hospital in hospitals.values()] == [False, False, True]
    for name, folder in prepare_centres(config).items():
        dataset = read_dataset(folder, name, external=hospitals[name].external)
        check_images(dataset, name)
        assert len(dataset.cases) == 5
        for case in dataset.cases:
            image, label = sitk.ReadImage(str(case.images[0])), sitk.GetArrayFromImage(sitk.ReadImage(str(case.label)))
            np.testing.assert_allclose(image.GetSpacing()[::-1], hospitals[name].spacing, rtol=0.031)
            assert set(np.unique(label)) == {0, 1}


def test_same_seed_gives_the_same_bytes_and_a_hospital_does_not_depend_on_those_after_it(tmp_path: Path) -> None:
    for folder, keys in (("one", ["centres=2"]), ("two", ["centres=2"]), ("more", ["centres=3"])):
        prepare_centres(composed(tmp_path / folder, *keys, *FEWEST))
    prepare_centres(composed(tmp_path / "other", "centres=2", "seed=1", *FEWEST))
    one, more = digests(tmp_path / "one/phantom_many/2"), digests(tmp_path / "more/phantom_many/3")
    assert one == digests(tmp_path / "two/phantom_many/2")
    assert one.items() < more.items()
    other = digests(tmp_path / "other/phantom_many/2")
    assert one.keys() == other.keys()
    assert not [name for name in one if "images" in name and one[name] == other[name]]


def test_numbers_of_cases_follow_the_documented_distribution() -> None:
    sizes = np.array([hospital.cases for seed in range(5) for hospital in drawn(299, seed=seed)])
    settings = distribution()
    law = stats.lognorm(s=settings.log_cases_std, scale=settings.median_cases)
    assert (sizes.min(), sizes.max()) == (5, settings.most_cases)
    for number in (5, 8, 15, 30, 59):
        probability = law.cdf(number + 0.5)
        assert np.mean(sizes <= number) == pytest.approx(
            probability, abs=4 * np.sqrt(probability * (1 - probability) / sizes.size)
        )


def test_hospitals_lie_between_the_configured_bounds_and_differ() -> None:
    hospitals, settings = drawn(299), distribution()
    for values, bounds in (
        ([hospital.spacing[1] for hospital in hospitals], settings.pixel_spacing),
        ([hospital.spacing[0] for hospital in hospitals], settings.slice_spacing),
        ([hospital.shape[0] for hospital in hospitals], settings.slices),
        ([hospital.gain for hospital in hospitals], settings.gain),
        ([hospital.gamma for hospital in hospitals], settings.gamma),
        ([hospital.bias for hospital in hospitals], settings.bias),
        ([hospital.noise for hospital in hospitals], settings.noise),
        ([hospital.lesion_radius[0] for hospital in hospitals], settings.smallest_lesion),
        ([hospital.lesion_radius[1] for hospital in hospitals], settings.largest_lesion),
    ):
        low, high = bounds
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high
    for hospital in hospitals:
        assert hospital.shape[1] * hospital.spacing[1] == pytest.approx(settings.field_of_view, abs=hospital.spacing[1])
        assert sum(hospital.appearances) == pytest.approx(1)


def test_size_and_scanner_are_independent() -> None:
    hospitals = drawn(299)
    sizes = [hospital.cases for hospital in hospitals]
    for values in ([h.gain for h in hospitals], [h.noise for h in hospitals], [h.spacing[1] for h in hospitals]):
        assert stats.spearmanr(sizes, values).pvalue > 0.001


@pytest.mark.parametrize("centres", [4, 10, 30, 100])
def test_pooled_cases_are_divided_among_training_hospitals_whatever_their_number(centres: int) -> None:
    own, divided = drawn(centres, external=0.1), drawn(centres, external=0.1, pooled=700)
    assert sum(hospital.cases for hospital in divided if not hospital.external) == 700
    assert min(hospital.cases for hospital in divided) >= 5
    for before, after in zip(own, divided, strict=True):
        changed = {} if before.external else {"cases": after.cases}
        assert after == PhantomCentre(**(vars(before) | changed))
    training = [(a.cases, b.cases) for a, b in zip(own, divided, strict=True) if not a.external]
    assert all(b <= d for a, b in training for c, d in training if a < c)


def test_cases_are_divided_in_proportion_above_the_fewest_that_folds_allow() -> None:
    # 100 - 5 for A are 95: of 1 + 8 + 10 parts B, C and D get 5, 40 and 50
    assert divide(100, {"A": 0.2, "B": 1.0, "C": 8.0, "D": 10.0}) == {"A": 5, "B": 5, "C": 40, "D": 50}
    assert divide(20, dict.fromkeys("ABCD", 3.0)) == dict.fromkeys("ABCD", 5)
    assert divide(32, dict.fromkeys("ABC", 1.0)) == {"A": 11, "B": 11, "C": 10}
    assert divide(15, {"A": 1.0, "B": 50.0, "C": 3.0}) == dict.fromkeys("ABC", 5)


@pytest.mark.parametrize("count", [0, -3, 300, "many", 2.5, True, None])
def test_a_number_of_centres_that_cannot_be_is_refused(count: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"^dataset.generator.centres={count}: must be a whole number from 1 to 299$"
    ):
        numbered_centres(count, 0.1)


@pytest.mark.parametrize("fraction", [1, 1.5, -0.1, "some", None])
def test_a_fraction_of_external_centres_that_cannot_be_is_refused(fraction: Any) -> None:
    message = rf"^dataset.generator.external_fraction={fraction}: must be a number from 0 to below 1$"
    with pytest.raises(ConfigError, match=message):
        numbered_centres(10, fraction)


def test_the_command_says_it_in_the_same_line() -> None:
    with pytest.raises(ConfigError, match=r"^dataset.generator.centres=0: must be a whole number from 1 to 299$"):
        composed(Path("nowhere"), "centres=0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pooled_cases=44", r"^dataset.generator.pooled_cases=44: .* at least 45, 5 for each of 9 training hospitals"),
        ("pooled_cases=60.5", r"^dataset.generator.pooled_cases=60.5: must be a whole number"),
        (
            "hospitals.slices=[6,4]",
            r"^dataset.generator.hospitals: slices: \[6, 4\]: the smaller number must be first$",
        ),
        ("hospitals.noise=[0,1]", r"^dataset.generator.hospitals: noise.0: must be greater than 0$"),
        ("hospitals.median_cases=few", r"^dataset.generator.hospitals: median_cases: must be a valid number"),
    ],
)
def test_distributions_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_centres(composed(tmp_path, override))
    assert list(tmp_path.iterdir()) == []

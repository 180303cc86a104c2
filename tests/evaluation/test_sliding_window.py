"""Logits of the sliding window are those of nnU-Net's predictor, bit for bit."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from fednnunet.evaluation.sliding_window import SlidingWindow


def networks(dimensions: int, number: int) -> list[torch.nn.Module]:
    torch.manual_seed(dimensions)
    layer: Any = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dimensions]
    two = lambda: (layer(2, 4, 3, padding=1), torch.nn.LeakyReLU(), layer(4, 3, 3, padding=1))  # noqa: E731
    return [torch.nn.Sequential(*two()).eval() for _ in range(number)]


def of_nnunet(models: list[torch.nn.Module], image: torch.Tensor, patch: tuple[int, ...], axes: Any) -> torch.Tensor:
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.configuration_manager = SimpleNamespace(patch_size=list(patch))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=3)
    predictor.allowed_mirroring_axes = axes
    predictor.network = copy.deepcopy(models[0])
    predictor.list_of_parameters = [model.state_dict() for model in models]
    return predictor.predict_logits_from_preprocessed_data(image)


@pytest.mark.parametrize(
    ("shape", "patch", "axes", "folds"),
    [
        ((3, 30, 50), (32, 24), (0, 1), 3),  # a slice narrower than a tile, by an even number
        ((10, 29, 22), (8, 16, 24), (0, 1, 2), 2),
        ((2, 64, 40), (32, 32), (1,), 1),
        ((9, 17, 17), (8, 16, 16), None, 1),
    ],
)
def test_logits_are_those_of_nnunet(shape: tuple[int, ...], patch: tuple[int, ...], axes: Any, folds: int) -> None:
    models = networks(len(patch), folds)
    image = torch.randn(2, *shape)
    steps: list[int] = []
    logits = SlidingWindow(patch, 3, axes, torch.device("cpu")).logits(models, image, steps.append)
    expected = of_nnunet(models, image, patch, axes)
    assert logits.dtype == expected.dtype
    assert torch.equal(logits, expected)
    assert steps == [steps[0]] * steps[0] * folds


@pytest.mark.parametrize(("patch", "batch"), [((32, 24), 5), ((8, 16, 24), 2), ((8, 16, 24), 100)])
def test_tiles_of_several_images_at_once_give_the_logits_of_one_at_a_time(patch: tuple[int, ...], batch: int) -> None:
    (model,) = networks(len(patch), 1)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    images = [torch.randn(2, *shape) for shape in ((3, 30, 50), (1, 20, 20), (9, 40, 24))]
    window = SlidingWindow(patch, 3, None, torch.device("cpu"))
    found = list(window.batched_logits(model, images, batch))
    assert max(sizes) <= batch
    assert len(set(sizes[:-1])) <= 1, "all but the last have that many tiles"
    for image, logits in zip(images, found, strict=True):
        assert logits.dtype == torch.float32
        difference = (logits - window.logits([model], image).float()).abs()
        assert difference.flatten().quantile(0.9) < 5e-3, "in corners of tiles, half precision has few digits"


def test_an_image_of_one_tile_is_segmented_twice_at_once_where_that_is_quicker() -> None:
    (model,) = networks(3, 1)
    image = torch.randn(2, 8, 16, 16)
    (found,) = SlidingWindow((8, 16, 16), 3, None, torch.device("cpu")).batched_logits(model, [image], 4)
    with torch.no_grad():
        assert torch.allclose(found, model(image[None])[0], atol=1e-5)


def test_sums_that_do_not_fit_on_a_gpu_are_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    (model,) = networks(3, 1)
    image = torch.randn(2, 8, 16, 20)
    window = SlidingWindow((8, 16, 16), 3, (0,), torch.device("cpu"))
    expected = window.logits([model], image)
    window.device = torch.device("meta")  # in place of a GPU's memory, which is full
    full = iter([True])
    weights = SlidingWindow._weights

    def weigh(self: SlidingWindow, *arguments: Any) -> torch.Tensor:
        self.device = torch.device("cpu")
        if next(full, False):
            raise torch.OutOfMemoryError
        return weights(self, *arguments)

    monkeypatch.setattr(SlidingWindow, "_weights", weigh)
    assert torch.equal(window.logits([model], image), expected)

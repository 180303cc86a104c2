"""nnU-Net's sliding window with a Gaussian and mirroring, for the networks of several folds at once.

It computes what ``nnUNetPredictor.predict_sliding_window_return_logits`` computes, bit for bit: the same tiles in the
same order, sums of half precision, tiles one at a time, since convolutions of batches round otherwise. Geometry,
Gaussian and the sum of weights are made once for all folds. What nnU-Net's predictor imports for compiled networks is
left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import nn

log = logging.getLogger(__name__)

STEP = 0.5
"""Of a tile, between two tiles: nnU-Net's default."""

Slices = tuple[slice | int, ...]


@dataclass(frozen=True)
class Tiles:
    """Where tiles lie on an image that is padded to at least one tile.

    Attributes:
        padding: for ``torch.nn.functional.pad``.
        inner: the image without padding, for arrays (channels, Z, Y, X).
        places: of each tile, in arrays (channels, Z, Y, X); of a 2D tile, a slice's number stands for Z.
    """

    padding: tuple[int, ...]
    inner: tuple[slice, ...]
    places: tuple[Slices, ...]

    @classmethod
    def of(cls, shape: Sequence[int], patch: Sequence[int]) -> Tiles:
        """Tiles of the size ``patch`` on an image (Z, Y, X)."""
        least = [*shape[: len(shape) - len(patch)], *patch]
        lacking = [max(0, size - there) for size, there in zip(least, shape, strict=True)]
        before = [number // 2 for number in lacking]
        padding = [width for low, all_ in zip(before, lacking, strict=True) for width in (all_ - low, low)][::-1]
        inner = (slice(None), *(slice(low, low + size) for low, size in zip(before, shape, strict=True)))
        padded = [size + more for size, more in zip(shape, lacking, strict=True)]
        starts: list[Any] = compute_steps_for_sliding_window(tuple(padded[-len(patch) :]), tuple(patch), STEP)
        slices = range(padded[0]) if len(patch) == 2 else None
        places = []
        for start in product(*([slices] if slices is not None else []), *starts):
            tile = [slice(low, low + size) for low, size in zip(start[-len(patch) :], patch, strict=True)]
            places.append((slice(None), *start[: -len(patch)], *tile))
        return cls(tuple(padding), inner, tuple(places))


class _Sums:
    """Weighted sums of outputs at the voxels of an image.

    Args:
        image: (C, Z, Y, X).
        tiles: that cover it.
        heads: number of the network's output channels.
    """

    def __init__(self, image: torch.Tensor, tiles: Tiles, heads: int) -> None:
        self.image = torch.nn.functional.pad(image, tiles.padding) if any(tiles.padding) else image
        self.tiles = tiles
        self.left = len(tiles.places)
        self._logits = torch.zeros((heads, *self.image.shape[1:]))
        self._weights = torch.zeros(self.image.shape[1:])

    def add(self, place: Slices, logits: torch.Tensor, weights: torch.Tensor) -> None:
        """Add the output of a tile."""
        self._logits[place] += logits * weights
        self._weights[place[1:]] += weights
        self.left -= 1

    def mean(self) -> torch.Tensor:
        """The weighted mean, without padding."""
        return (self._logits / self._weights)[self.tiles.inner]


class SlidingWindow:
    """The sliding window of a configuration.

    Args:
        patch: size of a tile, (Z, Y, X) or (Y, X).
        heads: number of the network's output channels.
        mirror_axes: axes of a tile that are mirrored; None for none.
        device: where networks compute; on a GPU, sums are kept there, too, if its memory suffices.
    """

    def __init__(
        self, patch: Sequence[int], heads: int, mirror_axes: Sequence[int] | None, device: torch.device
    ) -> None:
        self.patch = tuple(patch)
        self.heads = heads
        axes = [axis + 2 for axis in mirror_axes] if mirror_axes is not None else []
        self.mirrorings = [chosen for number in range(len(axes)) for chosen in combinations(axes, number + 1)]
        self.device = device

    @torch.inference_mode()
    def logits(
        self, networks: Iterable[nn.Module], image: torch.Tensor, on_tile: Callable[[int], None] = lambda tiles: None
    ) -> torch.Tensor:
        """Mean logits of networks, (heads, Z, Y, X) in half precision on the CPU; NaN and infinity are not looked for.

        Args:
            networks: in evaluation mode, on the device; each is used before the next one is asked for.
            image: preprocessed, (C, Z, Y, X), float32.
            on_tile: called after each tile with the number of tiles of a network.
        """
        tiles = Tiles.of(image.shape[1:], self.patch)
        padded = torch.nn.functional.pad(image, tiles.padding) if any(tiles.padding) else image
        total: Any = None
        number = 0
        with self._autocast():
            for found in self._each(networks, padded, tiles, on_tile):
                found = found[tiles.inner]
                total = found if total is None else total.add_(found)
                number += 1
        return total if number == 1 else total.div_(number)

    @torch.inference_mode()
    def batched_logits(self, network: nn.Module, images: Iterable[torch.Tensor], batch: int) -> Iterator[torch.Tensor]:
        """Logits of each image by one network, without mirroring, (heads, Z, Y, X) in single precision on the CPU.

        As fast as can be, for what needs no more than the classes: a network sees several tiles at once, also of
        several images, and sums have the precision in which a CPU computes. Last bits differ from :meth:`logits`.

        Args:
            network: in evaluation mode, on the device.
            images: preprocessed, (C, Z, Y, X), float32; read one after another.
            batch: number of tiles.
        """
        gaussian = self._gaussian(torch.device("cpu"), torch.float32)
        waiting: list[tuple[_Sums, Slices]] = []
        unfinished: list[_Sums] = []

        def segment() -> Iterator[torch.Tensor]:
            seen = torch.stack([sums.image[place] for sums, place in waiting])
            # Of a single small image, torch's CPU convolutions are several times as slow as of two.
            seen = seen.repeat(2, *[1] * (seen.ndim - 1)) if len(seen) == 1 and self.device.type == "cpu" else seen
            with self._autocast():
                found = network(seen.to(self.device)).float().cpu()
            for (sums, place), one in zip(waiting, found, strict=False):
                sums.add(place, one, gaussian)
            waiting.clear()
            while unfinished and not unfinished[0].left:
                yield unfinished.pop(0).mean()

        for image in images:
            unfinished.append(_Sums(image, Tiles.of(image.shape[1:], self.patch), self.heads))
            for place in unfinished[-1].tiles.places:
                waiting.append((unfinished[-1], place))
                if len(waiting) == batch:
                    yield from segment()
        if waiting:
            yield from segment()

    def _each(
        self, networks: Iterable[nn.Module], image: torch.Tensor, tiles: Tiles, on_tile: Callable[[int], None]
    ) -> Iterator[torch.Tensor]:
        """Logits of each network on the CPU, padded as ``image`` is."""
        keep = self.device
        weights = None
        for network in networks:
            try:
                weights = self._weights(image, tiles, keep) if weights is None else weights
                yield self._of_network(network, image, tiles, weights, on_tile)
            except torch.OutOfMemoryError:
                if keep.type == "cpu":
                    raise
                log.info("the sums of an image of %s voxels do not fit on the GPU", "x".join(map(str, image.shape[1:])))
                torch.cuda.empty_cache()
                keep = torch.device("cpu")
                weights = self._weights(image, tiles, keep)
                yield self._of_network(network, image, tiles, weights, on_tile)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _gaussian(self, keep: torch.device, dtype: torch.dtype = torch.half) -> torch.Tensor:
        return compute_gaussian(self.patch, sigma_scale=1.0 / 8, value_scaling_factor=10, dtype=dtype, device=keep)

    def _weights(self, image: torch.Tensor, tiles: Tiles, keep: torch.device) -> torch.Tensor:
        """Sum of the tiles' Gaussians at each voxel, (Z, Y, X)."""
        weights = torch.zeros(image.shape[1:], dtype=torch.half, device=keep)
        gaussian = self._gaussian(keep)
        for place in tiles.places:
            weights[place[1:]] += gaussian
        return weights

    def _of_network(
        self,
        network: nn.Module,
        image: torch.Tensor,
        tiles: Tiles,
        weights: torch.Tensor,
        on_tile: Callable[[int], None],
    ) -> torch.Tensor:
        keep = weights.device
        image = image.to(keep)
        gaussian = self._gaussian(keep)
        logits = torch.zeros((self.heads, *image.shape[1:]), dtype=torch.half, device=keep)
        for place in tiles.places:
            tile = image[place][None].contiguous().to(self.device)
            found = self._mirrored(network, tile)[0].to(keep)
            found *= gaussian
            logits[place] += found
            on_tile(len(tiles.places))
        return torch.div(logits, weights, out=logits).cpu()

    def _mirrored(self, network: nn.Module, tile: torch.Tensor) -> torch.Tensor:
        """Mean output of a tile (1, C, [Z,] Y, X) over all mirrorings."""
        found = network(tile)
        for axes in self.mirrorings:
            found += torch.flip(network(torch.flip(tile, axes)), axes)
        if self.mirrorings:
            found /= len(self.mirrorings) + 1
        return found

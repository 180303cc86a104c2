"""nnU-Net's five-fold splits, of one centre and united over centres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fednnunet.datasets.pooled import pooled_name

Split = dict[str, list[str]]


def crossval_splits(case_names: Sequence[str]) -> list[Split]:
    """The splits that nnU-Net makes of these cases: five folds, ``train`` and ``val`` names each."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    splits = generate_crossval_split(sorted(case_names), seed=12345, n_splits=5)
    return [{part: [str(name) for name in names] for part, names in split.items()} for split in splits]


def pooled_splits(splits: Mapping[str, Sequence[Split]]) -> list[Split]:
    """Fold n is the union of the centres' folds n (paper), by pooled case names."""
    return [
        {
            part: [pooled_name(centre, name) for centre, fold in zip(splits, folds, strict=True) for name in fold[part]]
            for part in ("train", "val")
        }
        for folds in zip(*splits.values(), strict=True)
    ]

"""Find folders and image files in a downloaded dataset."""

from __future__ import annotations

from pathlib import Path

from fednnunet.datasets.raw import IMAGE_ENDINGS

NIFTI_ENDINGS = (".nii.gz", ".nii")
ENDINGS = (*IMAGE_ENDINGS, ".jpg", ".jpeg")


def find_file(source: Path, name: str) -> Path | None:
    """A file or folder in ``source`` or in one of its folders, such as the one that an archive unpacks to."""
    inside = sorted(path for path in source.glob(f"*/{name}") if path.parent.name != "__MACOSX")
    return next((path for path in (source / name, *inside) if path.exists()), None)


def image_files(folder: Path) -> list[Path]:
    """The images in ``folder``, sorted."""
    return sorted(path for path in folder.iterdir() if is_image(path))


def images_by_name(folder: Path) -> dict[str, Path]:
    """Lower-case name without ending to image, for the images in ``folder``; empty if there is no such folder."""
    return {name_of(path).lower(): path for path in image_files(folder)} if folder.is_dir() else {}


def is_image(path: Path) -> bool:
    """Whether it is a file with an image's ending, and not a hidden one that macOS adds."""
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(ENDINGS)


def name_of(path: Path) -> str:
    """The file's name without an image's ending; ``.nii.gz`` is one ending."""
    ending = max((ending for ending in ENDINGS if path.name.lower().endswith(ending)), key=len, default="")
    return path.name[: len(path.name) - len(ending)]


def short_path(path: Path, folder: Path) -> str:
    """``path`` relative to ``folder``, if it is inside."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)

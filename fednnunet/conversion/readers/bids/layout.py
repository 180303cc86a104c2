"""Where images, label maps and tables of a BIDS dataset lie: in one folder, or ``rawdata`` beside ``derivatives``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fednnunet.conversion.readers.bids.entities import BidsFile, list_endings, list_files
from fednnunet.errors import ConfigError, DataError

TABLE = "participants.tsv"
RAW_NAMES = ("rawdata", "raw_data", "raw")
"""Names of a folder of raw images that has ``derivatives`` beside it; the first is the standard's."""
NOT_RAW = ("derivatives", "sourcedata", "code", "stimuli", "phenotype", "__MACOSX")
"""Folders in which no raw images are looked for."""
DEPTH = 2
"""Levels below SRC at which ``sub-*`` is looked for, as in ``train/rawdata/sub-01``."""


@dataclass(frozen=True)
class Layout:
    """Folders of a dataset.

    Attributes:
        raw: folder that holds ``sub-*`` with the raw images.
        derivatives: folders of that name that exist, in ``raw`` or beside it.
        participants: table of participants, which need not exist.
        name: name of the dataset.
    """

    raw: Path
    derivatives: tuple[Path, ...]
    participants: Path
    name: str

    def pipeline_folder(self, name: str) -> Path:
        """Folder of a pipeline by its name in ``derivatives``, its path from SRC, or its absolute path.

        Raises:
            ConfigError: there is none; says which there are.
        """
        places = [place / name for folder in self.derivatives if name != "." for place in (folder, folder.parent)]
        folder = next((place for place in [*places, self.raw / name] if place.is_dir()), None)
        if folder is None:
            raise ConfigError(f"there is no pipeline {name}; {self._pipelines()}")
        return folder

    def find_label_maps(self, ending: str, pipeline: str | None) -> tuple[Path, list[BidsFile]]:
        """Folder of the pipeline, and its label maps.

        Args:
            ending: how the label maps' names end.
            pipeline: name of the folder; None for the only one that has such label maps.

        Raises:
            ConfigError: there is no such pipeline, or several have such label maps.
            DataError: there is no such label map; says where was looked, and what there is.
        """
        if pipeline:
            folders = [self.pipeline_folder(pipeline)]
        else:
            folders = [folder for parent in self.derivatives for folder in (parent, *sorted(parent.glob("*/")))]
        files = {folder: list(list_files(folder)) for folder in folders if not folder.name.startswith("sub-")}
        found = {folder: [file for file in files[folder] if file.matches(ending)] for folder in files}
        having = [folder for folder in found if found[folder]]
        if not having:
            raise DataError(
                self._without_label_maps(ending, [file for each in files.values() for file in each], pipeline)
            )
        if len(having) > 1:
            same = len({folder.name for folder in having}) < len(having)
            names = ", ".join(str(folder) if same else folder.name for folder in having)
            raise ConfigError(f"several pipelines have label maps *_{ending}: {names}; choose one with --pipeline")
        return having[0], found[having[0]]

    def _without_label_maps(self, ending: str, others: list[BidsFile], pipeline: str | None) -> str:
        what = f"no label map *_{ending}.nii.gz"
        if pipeline:
            return (
                f"{what} in {self.pipeline_folder(pipeline)}; it has {list_endings(others)}: choose with --label-maps"
            )
        if not self.derivatives:
            return f"{what}: {self._pipelines()}; say where label maps lie by --pipeline (a dot: beside the images)"
        beside = [file for file in list_files(self.raw) if file.matches(ending)]
        if beside:
            return f"{what} in {self._places()}; {len(beside)} lie beside the images: read these by --pipeline ."
        return (
            f"{what} in {self._places()}, which has {list_endings(others)}; say how their names end by --label-maps, "
            "or where they lie by --pipeline"
        )

    def _pipelines(self) -> str:
        if not self.derivatives:
            return f"there is no folder derivatives in {self.raw}, nor rawdata beside one"
        names = sorted(path.name for folder in self.derivatives for path in folder.glob("*/"))
        return f"{self._places()} has {', '.join(name for name in names if not name.startswith('sub-')) or 'none'}"

    def _places(self) -> str:
        return " and ".join(map(str, self.derivatives))


def find_layout(source: Path) -> Layout:
    """Find the folders of a dataset in or below ``source``.

    ``derivatives`` and ``participants.tsv`` are looked for in the folder of the raw images; where it is named
    ``rawdata``, or lies below ``source``, in the folders above it as well.

    Raises:
        ConfigError: several folders below ``source`` hold ``sub-*``.
        DataError: none does, or ``source`` is ``derivatives``.
    """
    if source.name == "derivatives":
        raise DataError(f"{source} holds what was derived; SRC is the folder above it, which holds the images as well")
    raw = _raw_folder(source)
    above = raw.absolute().parent
    if raw != source:
        folders = [raw, *(folder for folder in raw.parents if folder.is_relative_to(source))]
    else:
        folders = [raw, above] if raw.absolute().name.lower() in RAW_NAMES else [raw]
    top = folders[-1].resolve()
    return Layout(
        raw,
        tuple(folder / "derivatives" for folder in folders if (folder / "derivatives").is_dir()),
        next((folder / TABLE for folder in folders if (folder / TABLE).is_file()), raw / TABLE),
        top.name,
    )


def _raw_folder(source: Path) -> Path:
    if not source.is_dir():
        raise DataError(f"there is no folder {source}")
    level = [source]
    for _ in range(DEPTH + 1):
        having = [folder for folder in level if any(path.is_dir() for path in folder.glob("sub-*"))]
        named = [folder for folder in having if folder.name.lower() in RAW_NAMES]
        if len(having) == 1 or len(named) == 1:
            return having[0] if len(having) == 1 else named[0]
        if having:
            listed = ", ".join(str(folder.relative_to(source)) for folder in having)
            raise ConfigError(f"{source} holds several datasets, {listed}; give one of them as SRC")
        below = (path for folder in level for path in sorted(folder.glob("*/")))
        level = [path for path in below if path.name not in NOT_RAW and not path.name.startswith(".")]
    raise DataError(
        f"{source} is no BIDS dataset: neither it nor a folder in it holds folders sub-*; SRC holds sub-* or rawdata, "
        "participants.tsv, and mostly derivatives"
    )

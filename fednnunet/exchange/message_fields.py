"""What fields of messages may hold: names, numbers, digests, and their limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_LAYERS = 20_000
"""Most layers of a network."""
NODE_NAME = r"^[A-Za-z0-9][A-Za-z0-9 _.'-]{0,63}$"
NodeName = Annotated[str, Field(pattern=NODE_NAME)]
ENSEMBLE = "ensemble"
"""Takes the place of the fold where models of several were averaged, and of the node where those of all were."""
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""Id of a run across machines; the same when the run is resumed."""
LayerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,256}$")]
MAX_FOLDS = 100
"""Most folds that a centre's own splits may have."""
Fold = Annotated[int, Field(ge=0, lt=MAX_FOLDS)] | Literal["all"]
"""nnU-Net's: the number of a split, 0 to 4 without own ones, or ``all`` to train on every case."""
ExchangeDtype = Literal["float32", "float16", "bfloat16", "int8", "int4"]
"""Data type that exchanged layers are rounded to while they travel; of integers, that their steps are quantised to."""
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes in hexadecimal."""
Digest = Hex32
"""SHA-256 of a layer's values, :func:`fednnunet.exchange.quantisation.digest`."""
References = Annotated[dict[LayerName, Digest], Field(max_length=MAX_LAYERS)]
"""Layers that travel as steps, to the digest of what each step starts from."""
MAX_CENTRES = 1000
"""Most centres whose cases one node pools."""
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2}){1,256}$")]
"""Up to 256 bytes in hexadecimal."""
Sealed = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$", max_length=2**20)]
"""Encrypted bytes in base 64."""
MAX_CLASSES = 64
"""Most classes of layers: sets of nodes that have a layer in common."""
MAX_CHANNELS = 64
"""Most channels of all nodes of a federation."""
MAX_NAME = 128
"""Most characters of the name of a label or channel that nodes are told."""
MAX_LABELS = 254
"""Highest value of a label: label maps have one byte a voxel, as nnU-Net stores them."""
Axes = list[Annotated[int, Field(ge=0, le=2)]]


class Body(BaseModel):
    """Base of all bodies: unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SignedKey(Body):
    """A node's public key for the secure sums of a run; see :mod:`fednnunet.privacy.identity`.

    Attributes:
        node: the node's name.
        public: X25519 public key.
        signature: of run, node and key, by the key in the certificate.
        certificate: the node's, from the federation's authority; PEM.
    """

    node: NodeName
    public: Hex32
    signature: Hex
    certificate: Annotated[str, Field(max_length=8192)]


def distinct(names: list[str]) -> list[str]:
    """The names; a validator of lists of them."""
    if len(set(names)) < len(names):
        raise ValueError("one is there twice")
    if not all(name.isprintable() for name in names):
        raise ValueError("one is not printable")
    return names


TaskName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
"""Name of a label or channel."""
UnionLabels = Annotated[
    dict[TaskName, Annotated[int, Field(ge=0, le=MAX_LABELS)]],
    Field(min_length=2, max_length=MAX_LABELS + 1),
]
"""Every label of a federation: name to value."""
UnionChannels = Annotated[
    list[TaskName],
    Field(min_length=2, max_length=MAX_CHANNELS),
    AfterValidator(distinct),
]
"""Every channel of a federation, by name, in the order of the network's input."""

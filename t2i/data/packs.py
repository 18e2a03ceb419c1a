"""Packs: memory-mapped files that hold many entries, each of which is a few tensors of any shape.

A pack is a file of safetensors. For each tensor NAME that an entry consists of, it holds

- NAME: the values of all entries, one entry after the other, flat and without the zeros that they end with;
- NAME.end: where the values of each entry end, [N];
- NAME.shape: the shape of each entry's tensor, [N, dimensions];

and the N keys. Float32 values are stored as bfloat16 where that loses nothing, such as the output of an encoder that
computes in bfloat16. They are read as float32.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from t2i.config import ConfigError

KEY, KEY_BYTES = ".key", 16
END, SHAPE = ".end", ".shape"
MOST_VALUES = 2**28  # of an entry, which takes no space for zeros; encoders give some millions
STORED = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of the same size in bytes

Tensors: TypeAlias = Mapping[str, Tensor]


class Packed(NamedTuple):
    """A tensor as it is stored."""

    values: Tensor
    shape: Sequence[int]


def packed(tensor: Tensor) -> Packed:
    values = tensor.detach().cpu().contiguous().flatten()
    bits = values.view(BITS[values.element_size()])
    used = bits.numpy().nonzero()[0]
    values = values[: used[-1] + 1 if len(used) else 0]
    if values.dtype == torch.float32 and not (bits & 0xFFFF).any():
        values = values.to(torch.bfloat16)
    return Packed(values.clone(), tuple(tensor.shape))  # a view would keep the whole batch in memory


def serialized(entries: Mapping[bytes, Mapping[str, Packed]], about: dict[str, str]) -> bytes:
    """The content of a pack with these entries, by key. about: stored with them."""
    keys = np.frombuffer(b"".join(entries), np.uint8).reshape(len(entries), KEY_BYTES)
    tensors = {KEY: torch.from_numpy(keys.copy())}
    for name in next(iter(entries.values())):
        parts = [entry[name] for entry in entries.values()]
        tensors[name] = torch.cat([part.values for part in parts])
        tensors[name + END] = torch.tensor([len(part.values) for part in parts]).cumsum(0)
        tensors[name + SHAPE] = torch.tensor([part.shape for part in parts], dtype=torch.int64)
    return save(tensors, about)


class Pack:
    """A pack that was opened; its values are read from the disk when they are used."""

    def __init__(self, file: Path):
        """Raises errors of safetensors, KeyError and ValueError for a file that is no pack."""
        self.file = file
        with safe_open(file, "pt") as opened:
            self.about: dict[str, str] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
        keys = tensors.pop(KEY)
        if keys.dtype != torch.uint8 or keys.shape[1:] != (KEY_BYTES,):
            raise ValueError("its keys are of another kind")
        self.keys = [key.tobytes() for key in keys.numpy()]
        self.names = [name for name in tensors if not name.endswith((END, SHAPE))]
        self.values = {name: tensors[name] for name in self.names}
        self.ends = {name: np.append(0, tensors[name + END].numpy()) for name in self.names}
        self.shapes: dict[str, np.ndarray] = {name: tensors[name + SHAPE].numpy() for name in self.names}
        for name in self.names:
            self._check(name)

    def _check(self, name: str) -> None:
        """Raise ValueError if a tensor's shapes and ends are not those of its values: the pack may be anybody's."""
        values, ends, shapes = self.values[name], self.ends[name], self.shapes[name]
        if values.dtype not in STORED or values.ndim != 1 or ends.dtype != np.int64 or shapes.dtype != np.int64:
            raise ValueError(f"{name} is of another kind")
        if len(ends) != 1 + len(self.keys) or shapes.ndim != 2 or len(shapes) != len(self.keys):
            raise ValueError(f"{name} has another number of entries")
        lengths, sizes = np.diff(ends), shapes.astype(float).prod(axis=1)
        if ends[-1] != len(values) or (lengths < 0).any() or (lengths > sizes).any():
            raise ValueError(f"{name} has ends that are not those of its values")
        if (shapes < 0).any() or (sizes > MOST_VALUES).any():
            raise ValueError(f"{name} has shapes that no encoder gives")

    @property
    def layout(self) -> dict[str, tuple[int, bool]]:
        """Of each tensor that an entry consists of: the number of dimensions, and whether the values are fractional."""
        return {name: (self.shapes[name].shape[1], self.values[name].is_floating_point()) for name in self.names}

    def copy(self, name: str, rows: np.ndarray, shape: np.ndarray, to: Tensor, targets: np.ndarray) -> None:
        """Copy a tensor of the entries in some rows, all of one shape, into rows of another tensor, each flat."""
        if (self.shapes[name][rows] != shape).any():
            raise ConfigError(f"{self.file}: {name} has several shapes in a batch; delete this file of the cache")
        ends, values, whole = self.ends[name], self.values[name], to.shape[1]
        source, target = (values, to) if values.dtype == torch.bfloat16 else (values.numpy(), to.numpy())  # is faster
        for row, start, end in zip(targets.tolist(), ends[rows].tolist(), ends[rows + 1].tolist(), strict=True):
            target[row, : end - start] = source[start:end]
            if end - start < whole:
                target[row, end - start :] = 0

    def __reduce__(self) -> tuple:
        return Pack, (self.file,)  # another process maps the file itself


class Entries:
    """N entries in an order of their own, from several packs."""

    def __init__(self, packs: Sequence[Pack], numbers: np.ndarray, rows: np.ndarray):
        """numbers, rows: in which pack each entry is, and where there, [N]; a number of -1: it is missing."""
        self.packs, self.numbers, self.rows = packs, numbers, rows

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def missing(self) -> list[int]:
        return np.flatnonzero(self.numbers < 0).tolist()

    @property
    def names(self) -> list[str]:
        """The tensors that an entry consists of."""
        return self.packs[0].names

    def read(self, name: str, places: Sequence[int]) -> Tensor:
        """A tensor of the entries at some places, which have one shape, [B, ...]; float32, or integers."""
        numbers, rows = self.numbers[places], self.rows[places]
        first = self.packs[numbers[0]]
        shape, values = first.shapes[name][rows[0]], first.values[name]
        dtype = np.float32 if values.is_floating_point() else values.numpy().dtype
        tensor = torch.from_numpy(np.empty((len(places), *shape), dtype))  # NumPy takes large pages for large arrays
        for number in np.unique(numbers):
            targets = np.flatnonzero(numbers == number)
            self.packs[number].copy(name, rows[targets], shape, tensor.view(len(places), -1), targets)
        return tensor

    def shapes(self, name: str) -> np.ndarray:
        """The shape of a tensor of each entry, [N, dimensions]."""
        shapes = np.empty((len(self), self.packs[0].shapes[name].shape[1]), np.int64)
        for number, pack in enumerate(self.packs):
            here = self.numbers == number
            shapes[here] = pack.shapes[name][self.rows[here]]
        return shapes

    def nbytes(self) -> int:
        """The size of the values in the packs; an entry that stands at several places counts once."""
        size = 0
        for number, pack in enumerate(self.packs):
            rows = np.unique(self.rows[self.numbers == number])
            for name, values in pack.values.items():
                size += int(np.diff(pack.ends[name])[rows].sum()) * values.element_size()
        return size

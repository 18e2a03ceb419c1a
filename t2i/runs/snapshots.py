"""Snapshots of averages (ema=post_hoc): averages/step-NNNNNN.safetensors, which hold each tensor under LENGTH/NAME."""

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from t2i.config import ConfigError
from t2i.runs.files import numbered, numbered_file, replacing, respect_umask
from t2i.runs.full_disk import naming
from t2i.runs.records import SNAPSHOTS
from t2i.runs.text import one_line


def write_snapshot(run: Path, step: int, tensors: dict[str, Tensor]) -> None:
    folder = run / SNAPSHOTS
    folder.mkdir(exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(numbered_file(folder, step, "safetensors")) as file, naming(file):
        safetensors.torch.save_file(contiguous, file)
    respect_umask(folder)


def snapshots_of(run: Path) -> dict[int, Path]:
    """step -> file, by step. Raises ConfigError if there are none."""
    found = numbered(run / SNAPSHOTS, "safetensors")
    if not found:
        raise ConfigError(
            f"{run} holds no snapshots of averages, so its lengths can't be chosen any more; train with ema=post_hoc"
        )
    return found


def lengths_in(file: Path) -> list[float]:
    """The lengths of the averages in a snapshot."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            return sorted({float(name.partition("/")[0]) for name in names})
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def combine(files: Sequence[tuple[Path, Sequence[tuple[float, Sequence[float]]]]]) -> list[dict[str, Tensor]]:
    """Sums of the averages in snapshots, in float32; each snapshot is read once.

    files: each with (length, coefficients of its average, one for each sum).
    """
    sums: list[dict[str, Tensor]] = [{} for _ in files[0][1][0][1]]
    for file, averages in files:
        try:
            with safe_open(file, framework="pt") as opened:
                keys = opened.keys()
                for key in keys:
                    length, _, name = key.partition("/")
                    coefficients = next(each for own, each in averages if f"{own:g}" == length)
                    tensor = opened.get_tensor(key).float()
                    for total, coefficient in zip(sums, coefficients, strict=True):
                        total[name] = total.get(name, torch.zeros(())) + coefficient * tensor
        except (SafetensorError, OSError, ValueError, StopIteration, RuntimeError) as error:
            raise _unreadable(file, error) from error
    return sums


def _unreadable(file: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{file} can't be read ({one_line(error)}); delete it, and the others are combined without it")

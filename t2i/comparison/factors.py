"""The factors that differ between runs (config groups and values), and the variants that their values make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from t2i.comparison.results import Result
from t2i.config import ConfigError
from t2i.config.keys import belongs
from t2i.runs.changes import FREE_KEYS
from t2i.runs.text import printable

OBSERVATION = (  # these change what is recorded of a run only
    *("log_every", "validate_every", "sample_every", "samples"),
    *("evaluate_every", "evaluation", "metric"),
    *("validation.train_items", "validation.reference", "validation.reference_items"),
)
SPLIT = ("validation.fold", "dataset.fold", "dataset.min_validation_samples", "validation.images")  # the battery tells
NO_FACTORS = ("seed", *FREE_KEYS, *OBSERVATION, *SPLIT)


@dataclass(frozen=True)
class Factors:
    """The keys in which the runs differ: config groups ("loss") and values ("loss.snr_gamma")."""

    by: tuple[str, ...]  # runs with the same values of these belong to one variant
    paired: tuple[str, ...]  # runs are paired by these in addition to the seed
    implied: tuple[str, ...]  # the values of the others determine these
    partial: tuple[str, ...]  # keys that only some runs have, because another version of t2i wrote the rest

    def values(self, result: Result) -> dict[str, Any]:
        """The values that make the run's variant, without keys that its configuration does not have."""
        return {key: result.config_value(key) for key in self.by if result.has(key)}

    def label(self, result: Result) -> str:
        """The run's variant, as short as it stays unambiguous, in the form of overrides; the loss by its bare name."""
        values = self.values(result).items()
        parts = [
            as_text(value) if key == "loss" else f"{short_name(key, self.by)}={as_text(value)}" for key, value in values
        ]
        return printable(" ".join(parts)) or "all runs"

    def variant_key(self, result: Result) -> tuple:
        """Equal for the runs of one variant."""
        return _values(result, self.by)

    def pair_key(self, result: Result) -> tuple:
        """Equal for runs of different variants that are paired; the seed comes first, a fold last."""
        seed = None if "seed" in self.by else result.seed
        fold = () if result.fold is None else (f"fold {result.fold}",)
        return (seed, *_values(result, self.paired), *fold)

    def sort_key(self, result: Result) -> tuple:
        """Sorts variants factor by factor: null, then numbers, then text."""
        return tuple(rank(result.config_value(key)) for key in self.by)


def find_factors(results: Sequence[Result], by: Sequence[str] | None) -> Factors:
    """The factors `by`, or else those typed on the command line, and of the other differing keys the independent ones.

    A key depends on others if their values determine its value: `loss._target_` depends on `loss`. A key that was not
    typed, and that some runs do not have at all, is no factor: runs from before it existed had its default.
    """
    typed = list(dict.fromkeys(key for result in results for key in _typed_keys(result)))
    differing = [
        key
        for key in dict.fromkeys([*typed, *known_keys(results)])
        if not belongs(key, NO_FACTORS) and len({_values(result, [key]) for result in results}) > 1
    ]
    partial = [key for key in differing if key not in typed and _is_partial(results, key)]
    complete = [key for key in differing if key not in partial]
    if by is None:
        typed = [key for key in typed if key in differing]
        chosen, paired = typed + _independent(results, complete, typed), []
    else:
        chosen = [find_key(key, results, differing, "--by") for key in by]
        paired = _independent(results, complete, chosen)
    partial = _independent(results, partial, [*chosen, *paired])
    implied = [key for key in differing if key not in (*chosen, *paired, *partial)]
    return Factors(tuple(chosen), tuple(paired), tuple(implied), tuple(partial))


def known_keys(results: Sequence[Result]) -> list[str]:
    """The config groups, then the dotted keys."""
    groups = [group for result in results for group in result.choices if not group.startswith("hydra/")]
    return list(dict.fromkeys([*groups, *(key for result in results for key in result.config)]))


def find_key(name: str, results: Sequence[Result], differing: Iterable[str], option: str) -> str:
    """The key of that name; its last part suffices where only one key ends in it."""
    known = known_keys(results)
    matches = [name] if name in known else [key for key in known if key.endswith(f".{name}")]
    if len(matches) != 1:
        problem = f"is ambiguous: {', '.join(matches)}" if matches else "is in no run's configuration"
        raise ConfigError(f"{option} {name} {problem}; the runs differ in {', '.join(differing) or 'nothing'}")
    return matches[0]


def short_name(key: str, keys: Iterable[str]) -> str:
    """The last part of the key, unless another of `keys` ends in the same."""
    if key == "from.run":
        return "from"
    last = key.rpartition(".")[2]
    return key if any(other != key and other.rpartition(".")[2] == last for other in keys) else last


def as_text(value: Any) -> str:
    """A value as it is typed on the command line: 3e-4, 5, null."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, float):
        return printable(str(value))
    mantissa, _, exponent = f"{value:.11e}".partition("e")
    forms = (f"{value:.12g}", f"{float(mantissa):.12g}e{int(exponent)}" if exponent else str(value))
    return min(forms, key=len)


def rank(value: Any) -> tuple[int, float, str]:
    """A key that sorts values of any type."""
    if value is None:
        return (0, 0.0, "")
    try:
        return (1, float(value), "") if isinstance(value, (int, float)) else (2, 0.0, str(value))
    except OverflowError:  # an integer of more than 300 digits
        return (2, 0.0, str(value))


def _typed_keys(result: Result) -> list[str]:
    """The keys of the run's overrides; the key of a mapping stands for all values in it."""
    names = [text.lstrip("+~").partition("=")[0].partition("@")[0] for text in result.info.get("overrides", [])]
    groups = [name for name in names if name in result.choices]
    values = [name for name in names if name not in (*groups, "from", "from.run")]  # it often follows from the others
    return [*groups, *(key for name in values for key in result.config if belongs(key, [name]))]


def _independent(results: Sequence[Result], keys: Sequence[str], given: Sequence[str]) -> list[str]:
    """The keys whose values are not determined by those of the keys `given` and of the independent keys before."""
    independent: list[str] = []
    for key in keys:
        others = [*given, *independent]
        if key not in others and not _determine(results, others, key):
            independent.append(key)
    return independent


def _determine(results: Sequence[Result], keys: Sequence[str], key: str) -> bool:
    """Whether runs with equal values of `keys` have equal values of `key`."""
    combinations = {_values(result, keys) for result in results}
    return len({_values(result, [*keys, key]) for result in results}) == len(combinations)


def _is_partial(results: Sequence[Result], key: str) -> bool:
    """Whether the runs differ in the key only because some do not have it."""
    having = [result for result in results if result.has(key)]
    return len(having) < len(results) and len({_values(result, [key]) for result in having}) == 1


def _values(result: Result, keys: Sequence[str]) -> tuple:
    """The run's values of the keys, hashable."""
    return tuple(_hashable(result.config_value(key)) for key in keys)


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((key, _hashable(part)) for key, part in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value

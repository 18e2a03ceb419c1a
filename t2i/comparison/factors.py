"""What is compared: the keys that differ between runs, and the settings that they make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from t2i.comparison.results import Result, printable
from t2i.config import ConfigError
from t2i.config.keys import belongs
from t2i.runs.folder import FREE_KEYS

WATCHING = ("log_every", "validate_every", "sample_every", "samples")  # what is seen of a run, not what is trained
NO_SETTING = ("seed", *FREE_KEYS, *WATCHING)


@dataclass(frozen=True)
class Keys:
    """The keys in which the runs differ: config groups ("loss") and values ("loss.snr_gamma")."""

    by: tuple[str, ...]  # runs with the same values are of one setting
    paired: tuple[str, ...]  # besides the seed, runs are paired by these
    along: tuple[str, ...]  # these follow from the others
    partial: tuple[str, ...]  # only some runs have these, the rest are of another version of t2i

    def values(self, result: Result) -> dict[str, Any]:
        """The values that make its setting; without those that a run of its kind does not have."""
        return {key: result.setting(key) for key in self.by if key in result.choices or key in result.config}

    def label(self, result: Result) -> str:
        """Its setting as it can be typed back, but as short as it stays clear; the loss by its bare name."""
        names = {key: short(key, self.by) for key in self.by}
        values = self.values(result).items()
        parts = [as_text(value) if key == "loss" else f"{names[key]}={as_text(value)}" for key, value in values]
        return " ".join(parts) or "all runs"

    def setting(self, result: Result) -> tuple:
        """What the runs of its setting share."""
        return _identity(result, self.by)

    def pair(self, result: Result) -> tuple:
        """What its partner in another setting shares with it: the seed first."""
        seed = None if "seed" in self.by else result.seed
        return (seed, *_identity(result, self.paired))

    def order(self, result: Result) -> tuple:
        """By which settings are sorted: key by key, none, then numbers, then texts."""
        return tuple(rank(result.setting(key)) for key in self.by)


def choose_keys(results: Sequence[Result], by: Sequence[str] | None) -> Keys:
    """The keys of `by`, or else: those typed on the command line, and of the rest those that don't follow from them.

    A key follows from others if their values determine its value: `loss._target_` follows from `loss`. A key that some
    runs do not have at all, and that was not typed, is none: the runs before it came into being had its default.
    """
    typed = list(dict.fromkeys(key for result in results for key in _typed(result)))
    differ = [
        key
        for key in dict.fromkeys([*typed, *known_keys(results)])
        if not belongs(key, NO_SETTING) and len({_identity(result, [key]) for result in results}) > 1
    ]
    partial = [key for key in differ if key not in typed and _is_partial(results, key)]
    whole = [key for key in differ if key not in partial]
    if by is None:
        typed = [key for key in typed if key in differ]
        chosen, paired = typed + _independent(results, whole, typed), []
    else:
        chosen = [find_key(key, results, differ, "--by") for key in by]
        paired = _independent(results, whole, chosen)
    partial = _independent(results, partial, [*chosen, *paired])
    along = [key for key in differ if key not in (*chosen, *paired, *partial)]
    return Keys(tuple(chosen), tuple(paired), tuple(along), tuple(partial))


def known_keys(results: Sequence[Result]) -> list[str]:
    """The config groups, then the dotted keys."""
    groups = [group for result in results for group in result.choices if not group.startswith("hydra/")]
    return list(dict.fromkeys([*groups, *(key for result in results for key in result.config)]))


def find_key(name: str, results: Sequence[Result], differ: Iterable[str], option: str) -> str:
    """The key of that name; its last part is enough where that is clear."""
    known = known_keys(results)
    found = [name] if name in known else [key for key in known if key.endswith(f".{name}")]
    if len(found) != 1:
        problem = f"is not clear: {', '.join(found)}" if found else "is in no run's configuration"
        raise ConfigError(f"{option} {name} {problem}; the runs differ in {', '.join(differ) or 'nothing'}")
    return found[0]


def short(key: str, among: Iterable[str]) -> str:
    """Its last part, where no other key ends in the same."""
    last = key.rpartition(".")[2]
    return key if any(other != key and other.rpartition(".")[2] == last for other in among) else last


def as_text(value: Any) -> str:
    """A value as it is typed: 3e-4, 5, null."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, float):
        return printable(str(value))
    mantissa, _, exponent = f"{value:.11e}".partition("e")
    forms = (f"{value:.12g}", f"{float(mantissa):.12g}e{int(exponent)}" if exponent else str(value))
    return min(forms, key=len)


def rank(value: Any) -> tuple[int, float, str]:
    """By which values of any kind are sorted."""
    if value is None:
        return (0, 0.0, "")
    return (1, float(value), "") if isinstance(value, (int, float)) else (2, 0.0, str(value))


def _typed(result: Result) -> list[str]:
    """The keys of the overrides; that of a whole mapping stands for the values in it."""
    names = [text.lstrip("+~").partition("=")[0].partition("@")[0] for text in result.info.get("overrides", [])]
    groups = [name for name in names if name in result.choices]
    values = [name for name in names if name not in groups]
    return [*groups, *(key for name in values for key in result.config if key == name or key.startswith(f"{name}."))]


def _independent(results: Sequence[Result], keys: Sequence[str], given: Sequence[str]) -> list[str]:
    """Those of `keys`, one after the other, whose values the `given` ones and those before do not determine."""
    found = []
    for key in keys:
        seen: dict[tuple, tuple] = {}
        before = [*given, *found]
        if key not in before and any(
            seen.setdefault(_identity(result, before), _identity(result, [key])) != _identity(result, [key])
            for result in results
        ):
            found.append(key)
    return found


def _is_partial(results: Sequence[Result], key: str) -> bool:
    """Whether runs differ in it only because some do not have it."""
    having = [result for result in results if key in result.choices or key in result.config]
    return len(having) < len(results) and len({_identity(result, [key]) for result in having}) == 1


def _identity(result: Result, keys: Sequence[str]) -> tuple:
    """Their values, to be compared with ==."""
    return tuple(_frozen(result.setting(key)) for key in keys)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value

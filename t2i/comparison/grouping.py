"""From run folders to a comparison: which runs take part, what they are pooled by, and what is the baseline."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from t2i.comparison.factors import Keys, as_text, choose_keys, find_key
from t2i.comparison.results import Result
from t2i.comparison.verdicts import Comparison, Setting
from t2i.config import ConfigError
from t2i.config.keys import flat

ENVIRONMENT = ("code_revision", "packages", "device", "num_processes")  # of run.json: should be one, is not compared


def compare(
    results: Sequence[Result], by: Sequence[str] | None = None, baseline: str | None = None, step: int | None = None
) -> Comparison:
    """Pool runs into settings.

    by: keys of the settings; None finds them.
    baseline: "key=value,..."; None takes the first setting with loss=mse, or the first.
    step: compare all runs at their validation there; None takes the finished runs at their end.
    """
    begun = [result for result in results if result.config]
    keys = choose_keys(begun, by)
    step, why_there = _choose_step(begun, keys, step)
    results = [replace(result, step=step) if step in result.validations else result for result in results]
    left_out = {result: reason for result in results if (reason := _absence(result, step))}
    compared = [result for result in results if result not in left_out]
    if not compared:
        states = "".join(f"\n  {result.name}: {result.state}, {left_out[result]}" for result in results)
        raise ConfigError(f"there is nothing to compare yet{states}")
    _refuse_other_batteries(compared)

    pooled: dict[tuple, dict[tuple, Result]] = defaultdict(dict)
    warnings = [*why_there, *_confounds(compared, keys)]
    for result in sorted(compared, key=lambda each: (keys.order(each), str(each.info.get("started")))):
        runs, pair = pooled[keys.setting(result)], keys.pair(result)
        if pair in runs:
            left_out[runs[pair]] = f"{result.name} is newer and of the same setting and seed"
            warnings.append(f"{runs[pair].name} is not compared: {left_out[runs[pair]]}.")
        runs[pair] = result
    settings = [Setting(keys.label(next(iter(runs.values()))), runs) for runs in pooled.values()]
    chosen, why = _choose_baseline(settings, keys, baseline)
    notes = _explain(keys, automatic=by is None)
    notes.append(f"Baseline: {chosen.label} ({why})." if len(settings) > 1 else "There is nothing to compare it with.")
    warnings += _unpaired(settings, chosen)
    return Comparison(results, keys, settings, chosen, left_out, notes, warnings)


def _choose_step(results: Sequence[Result], keys: Keys, step: int | None) -> tuple[int | None, list[str]]:
    """The step at which all are compared, or None for their ends; and what has to be said of it."""
    if step is not None:
        if not any(step in result.validations for result in results):
            there = sorted({at for result in results for at in result.validations})
            raise ConfigError(f"--step {step}: no run was validated there; choose from {', '.join(map(str, there))}")
        return step, [f"All runs are compared at step {step}, finished or not."]
    validated = [result for result in results if result.step]
    finished = [result for result in validated if result.finished]
    shared = max(set.intersection(*(set(result.validations) for result in validated)), default=0) if validated else 0
    enough = min(2, len(set(map(keys.setting, validated))))
    if len(set(map(keys.setting, finished))) < enough and shared:
        return shared, [f"Too few runs are finished; all are compared at step {shared}, the last that they share."]
    lengths = sorted({result.step for result in finished})
    found = []
    if len(lengths) > 1:
        found.append(f"Runs of different length are compared, each at its end: steps {', '.join(map(str, lengths))}.")
    if len(finished) < len(validated) and shared:
        found.append(f"--step {shared} compares the unfinished runs too, all at that step.")
    return None, found


def _absence(result: Result, step: int | None) -> str:
    """Why it can't be compared; "" if it can."""
    if step is None and (result.reason or result.step != result.config.get("steps")):
        return result.reason or "its last step was not validated (validate_every=0), or its errors are missing"
    if step is not None and step not in result.validations:
        return result.reason or f"not validated at step {step}"
    if not all(np.isfinite(errors).all() and errors.min() > 0 for errors in result.errors.values()):
        return "its validation errors are not finite: it diverged"
    return ""


def _refuse_other_batteries(results: Sequence[Result]) -> None:
    groups = defaultdict(list)
    for result in results:
        groups[result.info.get("battery", {}).get("hash")].append(result.name)
    if len(groups) > 1:
        names = "".join(f"\n  battery {str(key)[:8]}: {', '.join(names)}" for key, names in groups.items())
        raise ConfigError(
            "the runs were measured on different held-out images, timesteps, noise or noise schedules, so their "
            "errors can't be compared; give the folders of one battery only, or train again with the same dataset, "
            f"model.path, scheduler and validation{names}"
        )


def _choose_baseline(settings: Sequence[Setting], keys: Keys, wanted: str | None) -> tuple[Setting, str]:
    """The setting, and why it is that."""
    if wanted is None:
        plain = [setting for setting in settings if _is(setting, {"loss": "mse"})]
        first = "the first with loss=mse" if plain else "the first"
        return (plain or settings)[0], f"{first}; --baseline chooses another"
    runs = [run for setting in settings for run in setting.runs.values()]
    values = {}
    for part in re.split(r",(?=[\w./@]+=)", wanted):
        key, sign, value = part.partition("=")
        if not sign:
            raise ConfigError(f"--baseline {wanted}: must look like loss=mse or loss.snr_gamma=5,optimizer.lr=3e-4")
        values[find_key(key, runs, keys.by, "--baseline")] = value
    found = [setting for setting in settings if _is(setting, values)]
    if len(found) != 1:
        problem = "fits several settings" if found else "fits no setting"
        listed = "".join(f"\n  {setting.label}" for setting in found or settings)
        raise ConfigError(f"--baseline {wanted} {problem}; there {'are' if len(settings) > 1 else 'is'}{listed}")
    return found[0], "--baseline"


def _is(setting: Setting, values: dict[str, str]) -> bool:
    return all(_equal(run.setting(key), value) for run in setting.runs.values() for key, value in values.items())


def _equal(value: object, typed: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(typed) == value
        except ValueError:
            return False
    return typed.replace(" ", "") == as_text(value).replace(" ", "")


def _explain(keys: Keys, automatic: bool) -> list[str]:
    if not keys.by:
        return ["All runs are of one setting."]
    found = [f"Settings by {' × '.join(keys.by)} ({'the keys that differ' if automatic else '--by'})."]
    if keys.along:
        found.append(f"What follows from them differs too: {', '.join(keys.along)}.")
    return found


def _confounds(results: Sequence[Result], keys: Keys) -> list[str]:
    """What else differs between the runs, and may be the cause of a difference."""
    found = []
    for key in keys.paired:
        values = ", ".join(sorted({as_text(result.setting(key)) for result in results}))
        found.append(f"Runs of one setting differ in {key} ({values}): they are paired by it as by the seed.")
    if keys.partial:
        found.append(
            f"Only some runs' configurations have {', '.join(keys.partial)}: they are of other versions of t2i."
        )
    facts = [flat({key: result.info.get(key) for key in ENVIRONMENT}) for result in results]
    for key in dict.fromkeys(key for each in facts for key in each):
        counts = Counter(as_text(each.get(key)) for each in facts)
        if len(counts) > 1:
            listed = ", ".join(f"{value} in {count} run{'s' if count > 1 else ''}" for value, count in counts.items())
            found.append(f"The runs differ in {key} too: {listed}.")
    raw = [result.name for result in results if "ema/" not in result.errors]
    if 0 < len(raw) < len(results):
        found.append(f"val/ema/... is not compared: {', '.join(raw)} averaged no weights.")
    return found


def _unpaired(settings: Sequence[Setting], baseline: Setting) -> list[str]:
    """What has to be said of runs without a partner."""
    untested, extra, lacking = [], defaultdict(list), defaultdict(list)
    for setting in settings:
        if not set(setting.runs) & set(baseline.runs):
            untested.append(f"{setting.label} is not tested: it has no seed in common with {baseline.label}.")
            continue
        extra[_runs_of(setting, without=baseline)].append(setting.label)
        lacking[_runs_of(baseline, without=setting)].append(setting.label)
    found = [(f"{', '.join(names)}: no partner in the baseline for", runs) for runs, names in extra.items()]
    found += [(f"{baseline.label}: no partner in {', '.join(names)} for", runs) for runs, names in lacking.items()]
    return untested + [f"{who} {runs}, which their difference leaves out." for who, runs in found if runs]


def _runs_of(setting: Setting, without: Setting) -> str:
    pairs = [pair for pair in setting.runs if pair not in without.runs]
    return ", ".join(" ".join(["seed=" + as_text(pair[0]), *map(as_text, pair[1:])]) for pair in pairs)

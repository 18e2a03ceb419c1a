"""From run folders to a comparison: which runs take part, which variant each belongs to, and what the baseline is."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from t2i.comparison import folds
from t2i.comparison.excerpt import several
from t2i.comparison.factors import Factors, as_text, find_factors, find_key
from t2i.comparison.family import name_origins, shared_trunks
from t2i.comparison.race_notes import race_notes
from t2i.comparison.results import Result
from t2i.comparison.same_battery import other_shapes, refuse_other_batteries
from t2i.comparison.verdicts import Comparison, Variant
from t2i.config import ConfigError
from t2i.config.keys import flat

# Of run.json; a difference is a warning.
ENVIRONMENT = ("code_revision", "packages", "device", "gpu", "driver", "num_processes")


def compare(
    results: Sequence[Result], by: Sequence[str] | None = None, baseline: str | None = None, step: int | None = None
) -> Comparison:
    """Pool the runs into variants.

    by: the keys whose values make a variant; None finds them.
    baseline: "key=value,..."; None takes the first variant with loss=mse, or else the first.
    step: compares all runs at their validation there; None compares the finished runs at their end.
    """
    name_origins(results)
    started = [result for result in results if result.config]
    factors = find_factors(started, by)
    step, warnings = _choose_step(started, factors, step)
    results = [replace(result, step=step) if step in result.validations else result for result in results]
    left_out = {result: reason for result in results if (reason := _why_left_out(result, step))}
    left_out |= other_shapes([result for result in results if result not in left_out])
    compared = [result for result in results if result not in left_out]
    if not compared:
        states = "".join(f"\n  {result.name}: {result.state}, {left_out[result]}" for result in results)
        raise ConfigError(f"there is nothing to compare yet{states}")
    refuse_other_batteries(compared)

    warnings += _confounds(compared, factors)
    pooled: dict[tuple, dict[tuple, Result]] = defaultdict(dict)
    for result in sorted(compared, key=lambda result: (factors.sort_key(result), str(result.info.get("started")))):
        runs, pair = pooled[factors.variant_key(result)], factors.pair_key(result)
        if pair in runs:
            left_out[runs[pair]] = f"{result.name} is a newer run of the same variant and seed"
            warnings.append(f"{runs[pair].name} is not compared: {left_out[runs[pair]]}.")
        runs[pair] = result
    variants = [Variant(factors.label(next(iter(runs.values()))), runs) for runs in pooled.values()]
    chosen, why = _choose_baseline(variants, factors, baseline)
    notes = _explain(factors, automatic=by is None)
    notes.append(f"Baseline: {chosen.label} ({why})." if len(variants) > 1 else "There is no other variant to compare.")
    notes += race_notes(results)
    warnings += [*_stopped_early(compared, step), *_folds(variants, compared), *_on_training_images(compared)]
    warnings += shared_trunks(compared)
    warnings += [*_unpaired(variants, chosen), *_quantized_otherwise(variants, chosen, factors)]
    return Comparison(results, factors, variants, chosen, left_out, notes, warnings)


def _choose_step(results: Sequence[Result], factors: Factors, step: int | None) -> tuple[int | None, list[str]]:
    """The step at which all runs are compared, None for each at its end; and the warnings that this needs."""
    if step is not None:
        if not any(step in result.validations for result in results):
            steps = sorted({step for result in results for step in result.validations})
            raise ConfigError(f"--step {step}: no run was validated there; choose from {', '.join(map(str, steps))}")
        return step, [f"All runs are compared at step {step}, finished or not."]
    validated = [result for result in results if result.step]
    finished = [result for result in validated if result.finished]
    shared = set.intersection(*(set(result.validations) for result in validated)) if validated else set()
    last_shared = max(shared, default=0)
    needed = min(2, len(set(map(factors.variant_key, validated))))
    if len(set(map(factors.variant_key, finished))) < needed and last_shared:
        return last_shared, [f"Too few runs have finished; all are compared at step {last_shared}, which all reached."]
    warnings = []
    lengths = sorted({result.step for result in finished if result.step})
    if len(lengths) > 1:
        steps = ", ".join(map(str, lengths))
        warnings.append(f"The runs differ in length, and each is compared at its end: steps {steps}.")
    if len(finished) < len(validated) and last_shared:
        warnings.append(f"--step {last_shared} compares the unfinished runs too, all at that step.")
    return None, warnings


def _why_left_out(result: Result, step: int | None) -> str:
    """Why the run can't be compared; "" if it can."""
    end = result.config.get("steps") if result.stopped_early_at is None else result.stopped_early_at
    if step is None and (result.reason or result.step != end):
        return result.reason or "its last step was not validated (validate_every=0), or its errors are missing"
    if step is not None and step not in result.validations:
        return result.reason or f"it was not validated at step {step}"
    if result.damage:
        return result.damage
    if not all(np.isfinite(errors).all() and errors.min() > 0 for errors in result.errors.values()):
        return "its validation errors are not finite: training diverged"
    return ""


def _choose_baseline(variants: Sequence[Variant], factors: Factors, wanted: str | None) -> tuple[Variant, str]:
    """The baseline, and why it was chosen."""
    if wanted is None:
        plain = [variant for variant in variants if _matches(variant, {"loss": "mse"})]
        first = "the first with loss=mse" if plain else "the first"
        return (plain or variants)[0], f"{first}; --baseline chooses another"
    runs = [run for variant in variants for run in variant.runs.values()]
    values = {}
    for part in re.split(r",(?=[\w./@]+=)", wanted):
        key, sign, value = part.partition("=")
        if not sign:
            raise ConfigError(f"--baseline {wanted}: must look like loss=mse or loss.snr_gamma=5,optimizer.lr=3e-4")
        values[find_key(key, runs, factors.by, "--baseline")] = value
    matching = [variant for variant in variants if _matches(variant, values)]
    if len(matching) != 1:
        listed = "".join(f"\n  {variant.label}" for variant in matching or variants)
        raise ConfigError(f"--baseline {wanted} matches {'several variants' if matching else 'none of'}:{listed}")
    return matching[0], "--baseline"


def _matches(variant: Variant, values: dict[str, str]) -> bool:
    """Whether all runs of the variant have these values, as typed."""
    runs = variant.runs.values()
    return all(_equals(run.config_value(key), value) for run in runs for key, value in values.items())


def _equals(value: object, typed: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(typed) == value
        except ValueError:
            return False
    return typed.replace(" ", "") == as_text(value).replace(" ", "")


def _explain(factors: Factors, automatic: bool) -> list[str]:
    if not factors.by:
        return ["All runs belong to one variant."]
    origin = "the keys that differ" if automatic else "--by"
    notes = [f"Variants by {' × '.join(factors.by)} ({origin})."]
    if factors.implied:
        notes.append(f"These keys differ as a consequence: {', '.join(factors.implied)}.")
    return notes


def _confounds(results: Sequence[Result], factors: Factors) -> list[str]:
    """Warnings of other differences between the runs, which may explain a difference in a metric."""
    warnings = []
    for key in factors.paired:
        values = several(sorted({as_text(result.config_value(key)) for result in results}))
        warnings.append(f"Runs of one variant differ in {key} ({values}); they are paired by it as by the seed.")
    if factors.partial:
        keys = ", ".join(factors.partial)
        warnings.append(f"Only some runs have {keys} in their configurations: other versions of t2i wrote the rest.")
    facts = [flat({key: result.info.get(key) for key in ENVIRONMENT}) for result in results]
    for key in dict.fromkeys(key for run_facts in facts for key in run_facts):
        counts = Counter(as_text(run_facts.get(key)) for run_facts in facts)
        if len(counts) > 1:
            listed = several([f"{value} in {count} run{'s' if count > 1 else ''}" for value, count in counts.items()])
            warnings.append(f"The runs also differ in {key}: {listed}.")
    raw = [result.name for result in results if f"{result.battery}ema/" not in result.errors]
    if 0 < len(raw) < len(results):
        warnings.append(f"val/ema/... is not compared: no averaged weights in {several(raw)}.")
    return warnings


def _quantized_otherwise(variants: Sequence[Variant], baseline: Variant, factors: Factors) -> list[str]:
    """Warnings of variants that differ from the baseline in how the base is quantised, and in more than that."""
    warnings = []
    for variant in variants:
        ours, theirs = _quantized(variant), _quantized(baseline)
        others = [
            key for key in factors.by if key != "model.quantize" and _values(variant, key) != _values(baseline, key)
        ]
        if ours != theirs and others:
            warnings.append(
                f"{variant.label} differs from the baseline in model.quantize ({ours}, not {theirs}) and in "
                f"{', '.join(others)}: quantising may explain the difference."
            )
    return warnings


def _quantized(variant: Variant) -> str:
    return " and ".join(sorted(_values(variant, "model.quantize")))


def _values(variant: Variant, key: str) -> set[str]:
    return {as_text(run.config_value(key)) for run in variant.runs.values()}


def _folds(variants: Sequence[Variant], results: Sequence[Result]) -> list[str]:
    """Warnings of folds that no run has held out."""
    number = max(
        (result.config_value("validation.folds") or 0 for result in results if result.fold is not None), default=0
    )
    return folds.missing({variant.label: list(variant.runs.values()) for variant in variants}, number)


def _stopped_early(results: Sequence[Result], step: int | None) -> list[str]:
    """A warning of runs that ended before their learning-rate schedules did."""
    if step is not None or not (stopped := [result for result in results if result.stopped_early_at is not None]):
        return []
    listed = several([f"{run.name} at step {run.stopped_early_at} of {run.config.get('steps')}" for run in stopped])
    last_shared = max(set.intersection(*(set(result.validations) for result in results)), default=0)
    remedy = f" --step {last_shared} compares all runs at that step." if last_shared else ""
    return [
        f"Stopped early by early_stop.patience: {listed}. Each is compared at its own end, where its learning-rate "
        f"schedule had not ended, and with as many steps as its own validation chose.{remedy}"
    ]


def _on_training_images(results: Sequence[Result]) -> list[str]:
    if not results[0].battery:
        return []
    return [
        "These runs were measured on images that they are trained on (validation.images=train): a lower error may only "
        "mean that more was learned by heart. It says nothing of new images."
    ]


def _unpaired(variants: Sequence[Variant], baseline: Variant) -> list[str]:
    """Warnings of runs without a partner."""
    warnings = []
    not_in_baseline, only_in_baseline = defaultdict(list), defaultdict(list)  # seeds, as text -> labels of variants
    for variant in variants:
        if not set(variant.runs) & set(baseline.runs):
            warnings.append(f"{variant.label} is not tested: it has no seed in common with {baseline.label}.")
            continue
        not_in_baseline[_list_pairs(variant, without=baseline)].append(variant.label)
        only_in_baseline[_list_pairs(baseline, without=variant)].append(variant.label)
    for seeds, labels in not_in_baseline.items():
        if seeds:
            warnings.append(
                f"{several(labels)}: the runs with {seeds} are left out of the test, as the baseline has none."
            )
    for seeds, labels in only_in_baseline.items():
        if seeds:
            warnings.append(f"{several(labels)}: no runs with {seeds}, so the baseline's are left out of the test.")
    return warnings


def _list_pairs(variant: Variant, without: Variant) -> str:
    """seed=1, seed=2: the variant's runs that the other variant lacks."""
    pairs = [pair for pair in variant.runs if pair not in without.runs]
    return several([" ".join(["seed=" + as_text(seed), *map(as_text, others)]) for seed, *others in pairs])

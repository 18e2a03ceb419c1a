"""The figures of gpu.py as the table of the documentation."""

from collections.abc import Sequence
from typing import Any


def table(report: dict[str, Any]) -> str:
    """The figures in Markdown, with how they came about."""
    sets = [each for each in report["sets"] if each["machine"]]
    lines = [_headline(report, sets), "", _tests_in_words(report["tests"]), ""]
    lines += ["| Set | Arm | s per step | against | peak memory | GPU busy |", "|---|---|---|---|---|---|"]
    for each in report["sets"]:
        what = f"`{each['set']}`, {each['resolution']} pixels"
        for arm in each["arms"]:
            if arm["problem"]:
                lines.append(f"| {what} | {arm['name']} | not measured: {arm['problem']} | | | |")
                continue
            ratios = [
                f"{ratio['against']}: speed {ratio['speed']['median']:.2f} × "
                f"({ratio['speed']['min']:.2f} to {ratio['speed']['max']:.2f})"
                for ratio in each["comparisons"]
                if ratio["arm"] == arm["name"]
            ]
            busy = "" if arm["busy"] is None else f"{arm['busy']:.0%}".replace("%", " %")
            cells = [
                what,
                arm["name"],
                f"{arm['median_seconds']:.4f}",
                "; ".join(ratios),
                f"{arm['peak_gb']:.1f} GB",
                busy,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _headline(report: dict[str, Any], sets: Sequence[dict[str, Any]]) -> str:
    if not sets:
        return f"{report['date']}: nothing could be measured."
    machine = sets[0]["machine"]
    driver = f", driver {machine['driver']}, CUDA {machine['cuda']}" if machine.get("driver") else ""
    return (
        f"{machine['device']}{driver}; {machine['cpu']}, {machine['cores']} cores; PyTorch {machine['torch']}. "
        f"{report['date']}, `{report['command']}`, {report['minutes']:.1f} minutes."
    )


def _tests_in_words(tests: dict[str, Any] | None) -> str:
    if tests is None:
        return "The tests were left out."
    failed = "".join(f" `{name}` failed: {why}." for name, why in tests["failed"].items())
    skipped = f", {len(tests['skipped'])} skipped" if tests["skipped"] else ""
    problem = f" ({tests['problem']})" if tests["problem"] else ""
    counts = f"{tests['passed']} tests passed, {len(tests['failed'])} failed{skipped}"
    return f"{counts}, in {tests['seconds']:.0f} s{problem}.{failed}"

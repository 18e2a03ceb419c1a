"""Runs the tests of a GPU for gpu.py, and counts how they came out."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

CHECKOUT = Path(__file__).resolve().parent.parent
GRACE = 20  # seconds in which pytest writes its report when it is interrupted


def run_tests(device: str, seconds: float, folder: Path) -> dict[str, Any]:
    """The tests marked gpu, or on a CPU the rehearsal of their comparisons. folder: for pytest's report."""
    chosen = ["-m", "gpu"] if device == "cuda" else ["-m", "not gpu", "tests/gpu"]
    report, began = folder / "tests.xml", time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "pytest", *chosen, f"--junitxml={report}"], cwd=CHECKOUT)
    try:
        code = process.wait(seconds)
        problem = "" if code in (0, 1) else f"pytest ended with code {code}"
    except subprocess.TimeoutExpired:
        problem = f"not finished within {seconds:.0f} s"
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return {"seconds": time.monotonic() - began, "problem": problem, **counted(report)}


def counted(report: Path) -> dict[str, Any]:
    """Of pytest's report: how many tests passed, and the reasons of those that failed or were skipped, by name."""
    found: dict[str, Any] = {"passed": 0, "failed": {}, "skipped": {}}
    cases = ElementTree.parse(report).iter("testcase") if report.is_file() else ()
    for case in cases:
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        bad = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped = case.find("skipped")
        if bad is not None:
            found["failed"][name] = (bad.get("message") or "").partition("\n")[0]
        elif skipped is not None:
            found["skipped"][name] = skipped.get("message") or ""
        else:
            found["passed"] += 1
    return found

"""examples/quickstart.ipynb: every cell runs, in order, and what a notebook would show can be shown."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"


def cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def execute(source: str, names: dict) -> object:
    """Run a cell; returns the value of its last line, if that is an expression."""
    *body, last = ast.parse(source).body
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return exec(compile(ast.Module([last], []), "cell", "exec"), names)


def test_it_is_stored_without_outputs():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells())


@pytest.mark.long
@pytest.mark.slow
def test_every_cell_runs(small, tmp_path, monkeypatch):
    """With the settings of a small model in the place of its own, which take minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    names, shown = {}, []
    for cell in cells():
        if "parameters" in cell["metadata"].get("tags", ()):
            names["settings"] = [*small, "steps=2", "validate_every=1", "sample_every=1", "tracker=none"]
            continue
        value = execute("".join(cell["source"]), names)
        if value is not None:
            shown.append(value._repr_html_() if hasattr(value, "_repr_html_") else repr(value))
    run, metrics, image, sweep, comparison, table, page = shown
    assert run.count("<img") == 2
    assert "val/loss" in metrics
    assert "192x192" in image
    assert "finished" in sweep
    assert "snr_gamma=5" in comparison
    assert "verdict" in table
    assert (tmp_path / "multirun" / "quickstart_gamma" / "comparison" / "comparison.html").is_file()
    assert "comparison.html" in page

import logging

from t2i.training import progress
from t2i.training.progress import Bar


def test_without_a_terminal_lines_have_memory_and_the_time_left(caplog, monkeypatch):
    clock = iter([100.0, 110.0, 4000.0, 4100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    bar = Bar(30, shown=True)
    with caplog.at_level(logging.INFO):
        for step in (10, 12, 29, 30):
            bar.advance(step, {"train/loss": 0.5, "memory/peak_gb": 2.25})
    assert caplog.messages == [
        "step 10/30 · loss 0.5000 · GB 2.2",
        "step 12/30 · loss 0.5000 · GB 2.2 · 1:30 left",
        "step 29/30 · loss 0.5000 · GB 2.2 · 3:25 left",
        "step 30/30 · loss 0.5000 · GB 2.2",
    ]

"""The processes of arms.py, from the side that asks: which is light, for its memory would be counted as theirs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class ArmFailed(Exception):
    """An arm's process ended before it was asked to; the message says why."""


class Process:
    """An arm's process. `facts` is what it says of itself when it is ready; what it prints goes to `console`."""

    def __init__(
        self,
        kind: str,
        overrides: Sequence[str],
        device: str,
        console: Path,
        started: Callable[[subprocess.Popen], None] = lambda process: None,
    ):
        """started: is told of the process, which takes some time to get ready."""
        self.console = console
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
        with console.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "arms.py"), kind, *overrides],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=environment,
            )
        started(self.process)
        self.facts = self._answer()

    def turn(self, warmup: int, steps: int, watched: int = 0) -> dict[str, float]:
        """Seconds per step, the peak of memory so far, and the share of `watched` more steps that a GPU is busy."""
        try:
            print(warmup, steps, watched, file=self.process.stdin, flush=True)
        except BrokenPipeError:  # it ended while it waited
            raise ArmFailed(self._reason(self.process.wait())) from None
        return self._answer()

    def close(self) -> None:
        """Let it end, and wait until its memory is free."""
        self.process.stdin.close()
        code = self.process.wait()
        self.process.stdout.close()
        if code:
            raise ArmFailed(self._reason(code))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise ArmFailed(self._reason(self.process.wait()))
        answer = json.loads(line)
        if "problem" in answer:
            self.process.wait()
            raise ArmFailed(answer["problem"])
        return answer

    def _reason(self, code: int) -> str:
        if code == -signal.SIGKILL:
            return "killed; probably out of memory"
        lines = [line for line in self.console.read_text().splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"ended with code {code}"

"""A GPU that is pretended: what a run does on it can be watched, but not what it computes."""

import ctypes
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

GUARD = "PRETENDED_CUDA_GUARD"  # the compiled guard, in a process that is to pretend
if GUARD in os.environ:
    assert "torch" not in sys.modules, "PyTorch asks for the hooks once, when it is imported"
    ctypes.CDLL(os.environ[GUARD])


def compile_guard(library: Path) -> None:
    """Compile guard.cpp against the installed PyTorch, which is not imported."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{torch}/include", "-o", str(library)]
    command += [str(Path(__file__).with_name("guard.cpp")), f"-L{torch}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run([*command, f"-Wl,-rpath,{torch}/lib"], check=True)

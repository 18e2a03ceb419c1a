"""A GPU that is pretended: what a run does on it can be watched, but not what it computes."""

import importlib.util
import subprocess
from pathlib import Path


def compile_guard(library: Path) -> None:
    """Compile guard.cpp against the installed PyTorch, which is not imported."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{torch}/include", "-o", str(library)]
    command += [str(Path(__file__).with_name("guard.cpp")), f"-L{torch}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run([*command, f"-Wl,-rpath,{torch}/lib"], check=True)

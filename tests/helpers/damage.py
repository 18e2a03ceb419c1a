"""Arbitrary and mutated content for the files that runs leave behind, and what a command may do when it meets it."""

import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers.rights import obeying_permissions
from t2i.cli import failing

CASES = int(os.environ.get("T2I_FUZZ", "0"))
SECONDS = float(os.environ.get("T2I_FUZZ_SECONDS", "inf"))

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, 10**400, -1.5, 1e300, float("nan"), float("inf")]),
    st.sampled_from(
        ["", "finished", "running", "paused", "\x1b[2J", "a\nb", "\ud800", "${oc.env:HOME}", "../../x", "=1+1"]
    ),
    st.text(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda children: st.lists(children, max_size=2) | st.dictionaries(st.text(max_size=3), children, max_size=2),
    max_leaves=4,
)
WHOLE = st.one_of(
    st.sampled_from([b"", b"[]", b"{}", b"null", b"3", b'"text"', b"\0" * 64, b"\xff\xfe{\0}\0", b"{", b"- 1\n- 2"]),
    st.sampled_from(
        [b"[" * 200_000, b'{"a":' * 200_000, b"a: " * 2000, b"&a [*a, *a]", b"!!python/object:os.system {}"]
    ),
    st.binary(max_size=64),
    VALUES.map(lambda value: json.dumps(value).encode()),
)


KINDS = ["whole", "truncated", "flipped", "padded", "inserted", "field", "field", "field", "folder"]
FORBIDDEN = {"unreadable": 0o000, "closed": 0o000, "unwritable": 0o555}  # permissions of the file, or of its folder


@st.composite
def mutations(draw):
    """A function of a file's content that returns other content.

    None stands for a folder in the file's place, and a text for permissions, a key of FORBIDDEN.
    """
    kind = draw(st.sampled_from([*KINDS, *FORBIDDEN]))
    where, bits, content, value = draw(st.floats(0, 1)), draw(st.integers(1, 255)), draw(WHOLE), draw(VALUES)
    picks = draw(st.lists(st.integers(0, 1000), min_size=6, max_size=6))

    def mutate(name: str, before: bytes) -> bytes | str | None:
        at = min(int(where * len(before)), max(len(before) - 1, 0))
        if kind == "folder":
            return None
        if kind in FORBIDDEN:
            return kind
        if kind == "field" and name.endswith((".json", ".yaml", ".jsonl")):
            return with_other_field(name, before, value, picks)
        return {
            "truncated": before[:at],
            "flipped": before[:at] + bytes([before[at] ^ bits]) + before[at + 1 :] if before else b"",
            "padded": before[:at] + bytes(len(before) - at),
            "inserted": before[:at] + content[:100] + before[at:],
        }.get(kind, content)

    mutate.__name__ = kind
    return mutate


def with_other_field(name, before, value, picks):
    """The file with another value at a place that `picks` leads to."""
    if name.endswith(".jsonl"):
        lines = before.split(b"\n")
        i = picks[0] % max(1, len(lines) - 1)
        lines[i] = with_other_field("line.json", lines[i], value, picks[1:])
        return b"\n".join(lines)
    tree = yaml.safe_load(before) if name.endswith(".yaml") else json.loads(before)
    node, key = {"root": tree}, "root"
    for pick in picks:
        child = node[key]
        keys = list(child) if isinstance(child, dict) else list(range(len(child))) if isinstance(child, list) else []
        if not keys or (pick > 900 and child is not tree):
            break
        node, key = child, keys[pick % len(keys)]
    node[key] = value
    if name.endswith(".yaml"):
        return yaml.safe_dump(tree, allow_unicode=False).encode("utf-8", "backslashreplace")
    return json.dumps(tree).encode()


def attempt(command) -> bool:
    """Whether the command succeeded; another error than those that are told in a single line is raised.

    Root has no more rights in it than the owner of the files.
    """
    try:
        with obeying_permissions():
            command()
    except Exception as error:
        if (message := failing.explain(error)) is None or len(message.split("\n  ")[0].split("\n")) > 1:
            raise
        return False
    return True


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and ".lock" not in file.name)
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def damage(file: Path, content: bytes | str | None) -> None:
    """Put this content (see `mutations`) in a file's place."""
    before = file.read_bytes()
    file.unlink()  # which may have a second name
    if content is None:
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_bytes(before)
        (file if content == "unreadable" else file.parent).chmod(FORBIDDEN[content])


def remove(folder: Path) -> None:
    """Remove a folder whose owner may not enter all that is in it."""
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def vouch(part: Path) -> None:
    """Make the manifest agree with the damaged part of a checkpoint."""
    file = part.parent / "manifest.json"
    manifest = json.loads(file.read_text())
    content = part.read_bytes()
    manifest["files"][part.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    file.write_text(json.dumps(manifest))


def fuzz(cases: int, files: list[str], check: Callable) -> None:
    """Call check(name, mutate, chance) for so many cases; fails with one case of each kind of failure."""
    failures, done = dict[str, str](), []
    began = time.monotonic()

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=not CASES,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(st.sampled_from(files), mutations(), st.integers(0, 9))
    def one(name, mutate, chance):
        if time.monotonic() - began > SECONDS:
            return
        started = time.monotonic()
        try:
            check(name, mutate, chance)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = "".join(traceback.format_exception(error))[-3000:]
            failures[f"{type(error)} {last.filename} {last.lineno}"] = f"{name}, {mutate.__name__}: {text}"
        done.append((round(time.monotonic() - started, 2), name, mutate.__name__))

    one()
    print(f"{len(done)} cases in {time.monotonic() - began:.0f} s, {len(failures)} kinds of failure")
    print("the slowest:", *sorted(done)[-5:])
    assert not failures, "\n\n".join(failures.values())

"""A hostile file is refused within a second and 50 MB, and says why; it never stands in memory as what it means."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MIB = 1 << 20
SECONDS = 1.0
MEGABYTES = 50.0

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
OVERRIDES = ", ".join(f"{{name: r{number}, filters: {{B: {{a: 1}}}}}}" for number in range(1000))

FILES: dict[str, tuple[str | bytes, str]] = {
    # Aliases, anchors, tags, directives, documents
    "alias bomb": (LAUGHS, "1:4: an anchor"),
    "anchor alone": ("workers: &w 1", "1:10: an anchor"),
    "anchor on a key": ("&k workers: 1", "1:1: an anchor"),
    "alias alone": ("workers: *w", "1:10: an alias"),
    "alias with a name of 900 kB": ("workers: *" + "a" * 900_000, "1:10: an alias"),
    "merge key": ("a: &a {b: 1}\nc: {<<: *a}", "1:4: an anchor"),
    "tag that builds an object": ("workers: !!python/object/apply:os.system [ls]", "1:10: a tag"),
    "tag of the core schema": ("workers: !!int '1'", "1:10: a tag"),
    "tag of a stranger": ("workers: !secret x", "1:10: a tag"),
    "tag that says nothing": ("workers: ! x", "1:10: a tag"),
    "tag with a name of 900 kB": ("!" + "a" * 900_000 + " x", "1:1: a tag"),
    "30 000 %TAG directives": (
        "".join(f"%TAG !a{n}! x:{n}\n" for n in range(30_000)) + "---\na: 1",
        "1:1: a directive",
    ),
    "%YAML directive": ("%YAML 1.1\n---\nworkers: 1", "1:1: a directive"),
    "two documents": ("workers: 1\n---\nworkers: 2", "2:1: a second document"),
    "250 000 documents": ("---\n" * 250_000, "2:1: a second document"),
    # Duplicates
    "duplicate key": ("workers: 1\nworkers: 2", "2:1: workers: duplicate key"),
    "duplicate key, other spelling": ('workers: 1\n"work\\u0065rs": 2', "2:1: workers: duplicate key"),
    "9 000 duplicates": ("a: 1\n" * 9_000, "2:1: a: duplicate key"),
    # Bytes
    "NUL": (b"workers: \x001", "1:10: control character U+0000"),
    "NUL as an escape": ('prices: {file: "a\\0b"}', "1:16: a control character"),
    "ESC": (b"workers: 1 # \x1b[2J", "1:14: control character U+001B"),
    "lone surrogate as an escape": ('prices: {file: "\\ud800"}', "not YAML"),
    "not UTF-8": (b"workers: \xff\xfe", "not UTF-8 at byte 9"),
    "UTF-16": ("workers: 1".encode("utf-16"), "not UTF-8 at byte 0"),
    "overlong UTF-8": (b"workers: \xc0\xaf", "not UTF-8 at byte 9"),
    "tar archive": (b"\x1f\x8b\x08" + b"\x00" * 5000, "not UTF-8 at byte 1"),
    # Size
    "100 MB": (b"", "larger than 1024 KiB"),
    "one byte too many": ("#" * (MIB + 1), "larger than 1024 KiB"),
    "a megabyte of brackets": ("[" * 900_000, "1:65: nested deeper than 64 levels"),
    "a megabyte of braces": ("{" * 900_000, "1:65: nested deeper than 64 levels"),
    "a megabyte of dashes": ("- " * 450_000, "1:129: nested deeper than 64 levels"),
    "a megabyte of question marks": ("? " * 450_000, "1:129: nested deeper than 64 levels"),
    "1 400 blocks in each other": (
        "".join(" " * n + "a:\n" for n in range(1400)),
        "64:64: nested deeper than 64 levels",
    ),
    "300 000 items": ("filters:\n" + "- \n" * 300_000, "more than 20000 values"),
    "450 000 numbers": ("filters: [" + "1," * 450_000 + "]", "more than 20000 values"),
    "15 000 keys": ("".join(f"k{n}: 1\n" for n in range(15_000)), "more than 20000 values"),
    "a key of 900 kB": ("a" * 900_000 + ": 1", "not YAML"),
    "a key of 300 letters": ("a" * 300 + ": 1", "1:1: a key is longer than 256 characters"),
    "a number of 900 000 digits": ("workers: " + "9" * 900_000, "1:10: workers: must be a whole number"),
    "a megabyte of colons": (":" * 900_000, "not YAML"),
    # Work
    "9 000 misspelt keys": (
        "limits: {" + ", ".join(f"bod{n}: 1" for n in range(9_000)) + "}",
        "limits.bod0: unknown key",
    ),
    "6 000 dangling names": (
        "models: {m: {targets: [" + ", ".join(["{provider: q}"] * 6_000) + "]}}",
        "models.m.targets[0].provider: no provider is named 'q'",
    ),
    "19 000 filters": ("filters: [" + ", ".join(["retry"] * 19_000) + "]", "filters: must have at most 64 items"),
    "routes that repeat a long chain": (
        f"filters: [{{use: 'a:B', config: {{a: [{'1,' * 8_000}]}}}}]\nroutes: [{OVERRIDES}]",
        "the routes repeat more than 20000 values",
    ),
    "a long variable 9 000 times": (
        "filters: [{use: 'a:B', config: {a: [" + "'${LONG}', " * 9_000 + "]}}]",
        "the expansions of this file are larger than 1 MiB",
    ),
    "300 000 open expansions": ("prices: {file: '" + "${" * 300_000 + "'}", "'${' must open"),
    # Shape
    "a list": ("- workers: 1", "1:1: the file must be a mapping"),
    "a word": ("workers", "1:1: the file must be a mapping"),
    "half a file": ("workers: 1\nlimits: {body: 32MiB,\n", "not YAML"),
    "tab as indentation": ("limits:\n\tbody: 1MiB", "2:1: not YAML"),
    "a list as a key": ("[a, b]: 1", "1:1: a key must be text"),
    "unknown key": ("wrokers: 1", "1:1: wrokers: unknown key, did you mean 'workers'?"),
    "wrong type": ("workers: [1, 2]", "1:10: workers: must be a whole number"),
}

# CPU time, because other tests share the machine.
# Forked for each file, so that one file's garbage is not another one's peak.
MEASURE = """
import json, os, sys, time
from pathlib import Path
from headgate.config import check

def kilobytes(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

for path in sorted(Path(sys.argv[1]).iterdir()):
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        Path("/proc/self/clear_refs").write_text("5")
        before, start = kilobytes("VmRSS:"), time.process_time()
        problems = check(path, env={"LONG": "x" * 100_000})
        seconds = time.process_time() - start
        cost = {"seconds": seconds, "megabytes": (kilobytes("VmHWM:") - before) / 1024}
        first = str(problems[0]).removeprefix(f"{path}:").strip() if problems else ""
        print(json.dumps({"file": path.name, "problem": first, **cost}), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("hostile")
    for index, (content, _) in enumerate(FILES.values()):
        (folder / f"{index:02}").write_bytes(content if isinstance(content, bytes) else content.encode())
    with (folder / f"{list(FILES).index('100 MB'):02}").open("wb") as file:
        file.write(b"workers: 1\n")
        file.truncate(100 * MIB)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    lines = map(json.loads, done.stdout.splitlines())
    return {list(FILES)[int(line["file"])]: line for line in lines}


def test_there_are_forty_and_more() -> None:
    assert len(FILES) >= 40


@pytest.mark.parametrize("name", FILES)
def test_it_is_refused_quickly_cheaply_and_for_the_reason(name: str, measured: dict[str, dict[str, object]]) -> None:
    line = measured[name]
    assert FILES[name][1] in str(line["problem"])
    assert float(str(line["seconds"])) <= SECONDS
    assert float(str(line["megabytes"])) <= MEGABYTES

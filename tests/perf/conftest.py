"""`perf` is not part of the package and not on the path: made importable here by its place, as tests_support is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "perf"


def _load_perf() -> None:
    if "perf" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "perf", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["perf"] = module
    spec.loader.exec_module(module)


_load_perf()

"""What every test stands on: the shared kit under one name, the event loop, the recorded traffic, and a leak check.

`tests/support` is made importable as `tests_support` here, by its place and not by a path entry: that works from a
checkout of any name, under `--import-mode=importlib` and in every xdist worker, and makes nothing else importable.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# How long an example takes says something about the machine, not about the code.
settings.register_profile("headgate", deadline=None)
settings.load_profile("headgate")

TESTS = Path(__file__).resolve().parent
SHARED_DATA = TESTS.parents[1] / "shared" / "data"


def _load_support() -> None:
    if "tests_support" in sys.modules:
        return
    folder = TESTS / "support"
    spec = importlib.util.spec_from_file_location(
        "tests_support", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tests_support"] = module
    spec.loader.exec_module(module)


_load_support()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much the fault walls have asked; each test of theirs says so by `record_property`."""
    ends = terminalreporter.getreports("")  # of setting up and tearing down
    asked = {one.nodeid: value for one in ends for name, value in one.user_properties if name == "exchanges" and value}
    if asked:
        broke = asked.keys() & {one.nodeid for one in terminalreporter.getreports("failed")}
        total = f"{sum(asked.values())} exchanges in {len(asked)} tests"
        terminalreporter.write_line(f"fault walls: {total}, {len(broke)} of which broke an invariant")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the recorded traffic are skipped where it is not beside the checkout."""
    if (SHARED_DATA / "traffic" / "recorded.jsonl").is_file():
        return
    skip = pytest.mark.skip(reason="../shared/data is not beside this checkout")
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """asyncio on uvloop, as in production; one loop per test, unless an async fixture of a wider scope holds it."""
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture
async def no_leaks() -> AsyncIterator[None]:
    """After the test, and all that it opened inside, as many tasks and file descriptors as before. Ask for it first."""
    from tests_support.leaks import leak_check

    async with leak_check():
        yield

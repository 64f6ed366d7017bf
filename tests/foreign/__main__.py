"""`python -m tests.foreign [suite …]`: run other projects' suites against Headgate, and say what came of it.

Exit 0: all that ran is right. 1: something is not. 75: nothing could run, each with its reason.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from .. import support

sys.modules["tests_support"] = support  # the one name of the kit, as tests/conftest.py gives it

from . import langchain_openai, openai_python, sse_matrix  # noqa: E402 - they import the kit
from .packages import UnavailableError  # noqa: E402 - as above

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

SUITES: dict[str, Callable[[], Coroutine[None, None, bool]]] = {
    "openai-python": openai_python.run,
    "langchain-openai": langchain_openai.run,
    "sse-matrix": sse_matrix.run,
}
SKIPPED = 75


def main(names: list[str]) -> int:
    """The exit code."""
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        print(f"foreign: no suite {', '.join(unknown)}; there are {', '.join(SUITES)}", file=sys.stderr)
        return 2
    results = {name: _ran(name) for name in names or SUITES}
    if False in results.values():
        return 1
    return 0 if True in results.values() else SKIPPED


def _ran(name: str) -> bool | None:
    """None when it could not run."""
    print(f"foreign: {name}", flush=True)
    began = time.monotonic()
    try:
        ok = asyncio.run(SUITES[name]())
    except UnavailableError as reason:
        print(f"foreign: {name}: skipped: {reason}", flush=True)
        return None
    print(f"foreign: {name}: {'passed' if ok else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""shared: four processes count in it, are killed at any instruction and replaced; nothing is let in above a limit, and
nothing stays held."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests_support import mortals
from tests_support.mortals import A_SECOND, CALLERS, ESTIMATE, SLOTS, USED, Toll


async def toll(seed: int, kills: int) -> Toll:
    """In a process of its own: this one has threads, which a fork does not take along."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(mortals.__file__)), str(seed), str(kills)), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(120):
        said, _ = await process.communicate()
    assert process.returncode == 0
    return Toll(**json.loads(said))


def check(found: Toll, kills: int) -> None:
    deaths = found.deaths
    assert deaths == kills + 4
    assert found.beyond == 0
    assert max(found.windows) <= A_SECOND
    assert found.admitted <= found.counted <= found.admitted + deaths
    assert found.admitted - deaths <= found.settled <= found.admitted
    unsettled = found.admitted - found.settled + deaths
    assert USED * found.admitted <= found.tokens <= USED * found.settled + ESTIMATE * unsettled
    assert found.slots == SLOTS * CALLERS


async def test_whoever_is_killed_leaves_no_slot_taken_and_nothing_uncounted() -> None:
    check(await toll(1, 40), 40)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
async def test_two_thousand_kills(seed: int) -> None:
    found = await toll(seed, 500)
    check(found, 500)
    assert found.with_the_lock > 0
    whole = found.windows[:-1]  # the last has not come to its end
    assert sum(A_SECOND - admitted for admitted in whole) <= found.deaths
    print(f"{found.deaths} deaths, {found.with_the_lock} with the lock; {found.admitted} calls, windows {whole}")

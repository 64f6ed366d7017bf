"""What the ledger says: `headgate usage --by …` and `/admin/usage`.

Reads the store of a running gateway over a read-only connection, which waits for nobody. What the workers wrote is
there within half a second (tailer.py); a gateway that is not running takes its spool over when it starts.

Sums come from the daily totals, so they reach back beyond the rows that are kept. A `since` in the middle of a day
adds the rows of that day from then on; days are UTC.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args
from urllib.parse import quote

import msgspec

from .totals import DAY

if TYPE_CHECKING:
    import os

By = Literal["key", "team", "model", "provider", "endpoint", "day"]
GROUPINGS: Final[tuple[str, ...]] = get_args(By)
BUSY_SECONDS: Final = 5.0


class UsageRow(msgspec.Struct):
    """Sums over one value of the grouping. `unknown_cost` counts exchanges that are missing in `cost_usd`."""

    group: str
    requests: int
    ok: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost_usd: float
    unknown_cost: int
    estimated: int


_SUMS: Final = UsageRow.__struct_fields__[1:]

# Both halves have the same columns; `day` is a number of days in both.
_QUERY: Final = """
SELECT {group}, {sums} FROM (
    SELECT day, key, team, model, provider, endpoint, {columns} FROM totals WHERE day >= :first_day
    UNION ALL
    SELECT CAST(at / 86400 AS INTEGER), key, team, model, provider, endpoint, 1, outcome = 'ok', prompt_tokens,
        completion_tokens, cached_tokens, COALESCE(cost_usd, 0.0),
        cost_usd IS NULL AND (usage_source != 'none' OR outcome = 'lost'), usage_source = 'estimated'
    FROM usage WHERE at >= :since AND at < :first_day * 86400
) GROUP BY 1 ORDER BY {order}
"""


def usage(store_path: str | os.PathLike[str], by: By = "key", since: float | None = None) -> list[UsageRow]:
    """Sums by one label, the dearest first (days in order), from Unix time `since` on.

    Raises FileNotFoundError when there is no ledger yet, ValueError for an unknown grouping, sqlite3.Error when the
    file cannot be read.
    """
    if by not in GROUPINGS:
        raise ValueError(f"cannot group by {by!r}, expected one of {', '.join(GROUPINGS)}")
    since = 0.0 if since is None else since
    query = _QUERY.format(
        group="date(day * 86400, 'unixepoch')" if by == "day" else by,
        columns=", ".join(_SUMS),
        sums=", ".join(f"SUM({name})" for name in _SUMS),
        order="1" if by == "day" else f"{_SUMS.index('cost_usd') + 2} DESC, 2 DESC, 1",
    )
    db = connect(Path(store_path))
    try:
        found = db.execute(query, {"since": since, "first_day": -(-since // DAY)})
        return [UsageRow(*row) for row in found]
    finally:
        db.close()


def as_json(rows: list[UsageRow], by: str) -> bytes:
    """The body of /admin/usage: the group under the name of the grouping."""
    items = [{by: row.group, **{name: getattr(row, name) for name in _SUMS}} for row in rows]
    return msgspec.json.encode({"object": "list", "by": by, "data": items})


def as_table(rows: list[UsageRow], by: str) -> str:
    """Plain text: one line a row and a line of totals. A `+?` behind a cost says that some of it is unknown."""
    head = (by, "requests", "ok", "prompt", "cached", "completion", "cost USD", "estimated")
    lines = [head, *(_cells(row) for row in rows)]
    if len(rows) > 1:
        sums = [sum(getattr(row, name) for row in rows) for name in _SUMS]
        lines.append(_cells(UsageRow("total", *sums)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: UsageRow) -> tuple[str, ...]:
    return (
        row.group or "-",
        str(row.requests),
        str(row.ok),
        str(row.prompt_tokens),
        str(row.cached_tokens),
        str(row.completion_tokens),
        f"{row.cost_usd:.6f}" + ("+?" if row.unknown_cost else ""),
        str(row.estimated),
    )


def connect(path: Path) -> sqlite3.Connection:
    """Read only. Raises FileNotFoundError when there is no ledger yet, sqlite3.Error when it cannot be read."""
    if not path.is_file():
        raise FileNotFoundError(f"no ledger at {path}")
    place = f"file:{quote(str(path.resolve()))}"
    db = sqlite3.connect(f"{place}?mode=ro", uri=True, timeout=BUSY_SECONDS)
    try:
        db.execute("SELECT 1 FROM usage LIMIT 1")
    except sqlite3.OperationalError as error:
        db.close()
        if "unable to open" not in str(error) and "readonly" not in str(error):
            raise
        # A folder that cannot be written has no room for the shared memory of a write-ahead log, and no writer either.
        return sqlite3.connect(f"{place}?immutable=1", uri=True)
    return db

"""The tables of the event store, and how an older file becomes a current one.

    usage           one row for each exchange, field for field proxy/accounting/record.py Done
    totals          sums per day and label, kept when the rows are trimmed
    open_exchanges  opened, not done: what becomes `lost` when its worker dies
    offsets         how far each spool segment has been taken over
    dead_letters    lines that are no record, with the reason
    audit           changes asked for over the admin listener
    issuers         which provider made an object (a file, a stored response), and for which team
    spending        nano-dollars for each limit of a budget, caller and period, kept when the rows are trimmed
    reserved        money that is set aside for an exchange under way

A migration is SQL that is never edited again once released; the file carries the number of the last one applied. A
file that is newer than the code is refused, because writing to it could break what the newer version relies on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import sqlite3

_FIRST: Final = """
CREATE TABLE usage (
    id TEXT NOT NULL UNIQUE,
    at REAL NOT NULL,
    status INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    error_code TEXT NOT NULL,
    key TEXT NOT NULL,
    team TEXT NOT NULL,
    owner TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    route TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    upstream_model TEXT NOT NULL,
    upstream_request_id TEXT NOT NULL,
    client_request_id TEXT NOT NULL,
    stream INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    audio_input_tokens INTEGER NOT NULL,
    audio_output_tokens INTEGER NOT NULL,
    usage_source TEXT NOT NULL,
    service_tier TEXT NOT NULL,
    cost_usd REAL,
    cost_source TEXT NOT NULL,
    duration_ms REAL NOT NULL,
    ttft_ms REAL,
    upstream_ms REAL,
    overhead_ms REAL,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    config TEXT NOT NULL,
    worker TEXT NOT NULL
);
CREATE INDEX usage_at ON usage (at);
CREATE TABLE totals (
    day INTEGER NOT NULL,
    key TEXT NOT NULL,
    team TEXT NOT NULL,
    owner TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    requests INTEGER NOT NULL,
    ok INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    cost_usd REAL NOT NULL,
    unknown_cost INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    PRIMARY KEY (day, key, team, owner, endpoint, model, provider)
) WITHOUT ROWID;
CREATE TABLE open_exchanges (id TEXT NOT NULL PRIMARY KEY, spool TEXT NOT NULL, line BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX open_exchanges_spool ON open_exchanges (spool);
CREATE TABLE offsets (segment TEXT NOT NULL PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE dead_letters (at REAL NOT NULL, spool TEXT NOT NULL, reason TEXT NOT NULL, line BLOB NOT NULL);
"""

_ISSUERS: Final = """
CREATE TABLE issuers (
    id TEXT NOT NULL,
    provider TEXT NOT NULL,
    team TEXT NOT NULL,
    kind TEXT NOT NULL,
    at REAL NOT NULL,
    PRIMARY KEY (id, provider)
) WITHOUT ROWID;
CREATE INDEX issuers_at ON issuers (at);
"""

_SOUND: Final = """
ALTER TABLE usage ADD COLUMN audio_seconds REAL NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN characters INTEGER NOT NULL DEFAULT 0;
"""

_AUDIT: Final = """
CREATE TABLE audit (
    n INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    key TEXT NOT NULL,
    client TEXT NOT NULL,
    what TEXT NOT NULL,
    status INTEGER NOT NULL,
    request_id TEXT NOT NULL
);
"""

_CACHE: Final = """
ALTER TABLE usage ADD COLUMN cache TEXT NOT NULL DEFAULT '';
"""

_SPENDING: Final = """
CREATE TABLE spending (
    budget TEXT NOT NULL,
    per TEXT NOT NULL,
    unit TEXT NOT NULL,
    period TEXT NOT NULL,
    caller TEXT NOT NULL,
    until INTEGER NOT NULL,
    nanos INTEGER NOT NULL,
    told INTEGER NOT NULL DEFAULT 0,
    exhausted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (budget, per, unit, period, caller)
) WITHOUT ROWID;
CREATE INDEX spending_until ON spending (until);
CREATE TABLE reserved (
    id TEXT NOT NULL,
    budget TEXT NOT NULL,
    spool TEXT NOT NULL,
    line BLOB NOT NULL,
    PRIMARY KEY (id, budget)
) WITHOUT ROWID;
CREATE INDEX reserved_spool ON reserved (spool);
"""

MIGRATIONS: Final[tuple[str, ...]] = (_FIRST, _ISSUERS, _SOUND, _AUDIT, _CACHE, _SPENDING)


class SchemaError(Exception):
    """The store was written by a newer version."""


def migrate(db: sqlite3.Connection, at: float, migrations: tuple[str, ...] = MIGRATIONS) -> int:
    """Apply what is missing, each step in its own transaction, and return how many. `db` is in autocommit mode."""
    db.execute("CREATE TABLE IF NOT EXISTS migrations (version INTEGER NOT NULL PRIMARY KEY, at REAL NOT NULL)")
    applied = 0
    for version, script in enumerate(migrations, 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            # Read inside the transaction: another gateway may be migrating the same file.
            done: int = db.execute("SELECT COALESCE(MAX(version), 0) FROM migrations").fetchone()[0]
            if done > len(migrations):
                raise SchemaError(
                    f"the store has schema {done}, this version knows {len(migrations)}: upgrade headgate"
                )
            if done < version:
                for statement in filter(str.strip, script.split(";")):
                    db.execute(statement)
                db.execute("INSERT INTO migrations VALUES (?, ?)", (version, at))
                applied += 1
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
    return applied

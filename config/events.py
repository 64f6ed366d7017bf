"""Where usage and decision records go."""

from datetime import timedelta
from pathlib import Path
from typing import Literal

from .fields import Duration, Section, Size


class Spool(Section):
    """The files that workers append to before the event store takes the records over."""

    path: Path = Path("headgate-spool")
    """Folder, relative to the working directory. Default ./headgate-spool."""

    max_size: Size = 256 << 20
    """Bytes that may wait there while the store is away. Default 256MiB."""

    on_full: Literal["drop", "refuse"] = "drop"
    """When it is full: `drop` the record, counted and shown, or `refuse` the request (503). Default drop."""


class Events(Section):
    """The event store."""

    sink: Literal["sqlite"] = "sqlite"
    """Kind of store. Default sqlite."""

    path: Path = Path("headgate-events.db")
    """Database file, relative to the working directory. Default ./headgate-events.db."""

    retention: Duration = timedelta(days=30)
    """How long single records are kept; totals are kept for ever. Default 30d."""

    max_size: Size = 1 << 30
    """Bytes the database may take; the oldest records go first. Default 1GiB."""

    spool: Spool = Spool()
    """The files before the store. Default ./headgate-spool, 256MiB, drop."""

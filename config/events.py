"""Where usage and decision records go."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from .fields import Duration, Rate, Section, Size


class Spool(Section):
    """The files that workers append to before the event store takes the records over."""

    path: Path = Path("headgate-spool")
    """Folder, relative to the working directory. Default ./headgate-spool."""

    max_size: Size = 256 << 20
    """Bytes that may wait there while the store is away. Default 256MiB."""

    on_full: Literal["drop", "refuse"] = "drop"
    """When it is full: `drop` the record, counted and shown, or `refuse` the request (503). Default drop."""


class Decisions(Section):
    """What is remembered of why exchanges went as they did, in the memory of each worker."""

    inputs_percent: Annotated[Rate, Field(le=100)] = 1
    """Of how many, in percent, the state of every candidate is kept, too. Default 1."""


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

    decisions: Decisions = Decisions()
    """What is remembered of decisions. Default inputs of 1 percent."""

    spool: Spool = Spool()
    """The files before the store. Default ./headgate-spool, 256MiB, drop."""

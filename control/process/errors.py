"""What keeps a gateway from starting, in words an operator can act on."""

from __future__ import annotations


class BootError(Exception):
    """The message is the whole story: no traceback is shown."""

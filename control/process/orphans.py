"""A worker must not outlive its supervisor: the kernel is asked to end it, besides the socket whose end it sees."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def die_with(parent: int) -> None:
    """Have SIGTERM sent to this process when its parent dies; exits at once if that has already happened. Linux
    only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(1)

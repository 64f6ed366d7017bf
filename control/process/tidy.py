"""Gives back the memory that only starting needed.

Reading a config builds types, trees and tables that nobody asks again. Freed, they stay with the allocator of the C
library, which hands pages back by itself only from the end of its heap: about a fifth of a worker.
"""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Collect, and return free pages to the system where the C library can. Takes some 30 ms: once, before serving."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc; others keep little
        trim(0)

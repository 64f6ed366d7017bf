"""Every fault by its name, and how a request names one."""

from __future__ import annotations

from difflib import get_close_matches

from .answer_faults import ANSWER_FAULTS
from .fault import GROUPS, Fault
from .h2_faults import H2_FAULTS
from .stream_faults import STREAM_FAULTS
from .wire_faults import WIRE_FAULTS

FAULTS: dict[str, Fault] = {fault.name: fault for fault in (*WIRE_FAULTS, *ANSWER_FAULTS, *STREAM_FAULTS, *H2_FAULTS)}
MODEL_PREFIX = "mock-fault-"
"""A request for the model `mock-fault-NAME` meets that fault."""


def find(name: str) -> Fault:
    """The fault of that name; KeyError with what to say to whoever asked."""
    fault = FAULTS.get(name)
    if fault is None:
        near = get_close_matches(name[:64], FAULTS, n=1, cutoff=0.5)
        hint = f", did you mean '{near[0]}'?" if near else "; `headgate mock --list-faults` lists them"
        raise KeyError(f"there is no fault '{name[:64]}'{hint}")
    return fault


def listing() -> str:
    """All of them for a reader, by group."""
    width = max(map(len, FAULTS))
    lines = []
    for group, what in GROUPS.items():
        lines.append(f"{group}: {what}")
        lines += [f"  {fault.name:{width}}  {fault.what}" for fault in FAULTS.values() if fault.group == group]
    return "\n".join(lines)

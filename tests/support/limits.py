"""Limits that are asked as a filter does it: the short way where that decides, else the long one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from headgate.filters.stores.rules import Granted, Refused, Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headgate.filters.stores.rules import Counted, Limits, Rule

_REPORTED: Final = {"requests": 0, "tokens": 2}


class ShortWay:
    """As `take` and `settle` of the `limits` that were opened with these `rules`, whichever way a call goes. `short`:
    how many went the short one."""

    def __init__(self, limits: Limits, rules: Sequence[Rule]) -> None:
        self._limits = limits
        self._rules = rules
        self.short = 0
        self.crowded = 0

    def take(self, keys: Sequence[str], tokens: int, now: int) -> Granted[Any] | Refused:
        counted = self._limits.count(keys[0], tokens, now) if len(set(keys)) == 1 else None
        if counted is None:
            result = self._limits.take(keys, tokens, now)
            self.crowded = self._limits.crowded
            return result
        self.short += 1
        return self._granted(counted)

    def settle(self, granted: Granted[Any], tokens: int, now: int) -> None:
        if granted.holds and isinstance(granted.holds[0], Short):
            self._limits.recount(granted.holds[0].counted, tokens)
        else:
            self._limits.settle(granted, tokens, now)

    def count(self, caller: str, tokens: int, now: int) -> Counted | None:
        return self._limits.count(caller, tokens, now)

    def recount(self, counted: Counted, tokens: int) -> None:
        self._limits.recount(counted, tokens)

    def _granted(self, counted: Counted) -> Granted[Any]:
        granted: Granted[Any] = Granted()
        granted.holds.append(Short(counted))
        for rule in self._rules:
            at = _REPORTED.get(rule.kind.what)
            if at is not None:
                setattr(granted, rule.kind.what, Report(rule.limit, counted[at], counted[at + 1]))
        return granted


class Short:
    """What a call that went the short way holds."""

    def __init__(self, counted: Counted) -> None:
        self.counted = counted

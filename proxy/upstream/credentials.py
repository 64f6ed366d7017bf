"""Which of a cluster's keys goes with an attempt, and which are left alone for a while.

A 401 is about a key, a 429 about a key and a model; neither says anything about the host. A refused key cools for a
minute, then two, up to ten; after that a single attempt tries it, and only a success makes it whole again, so a revoked
key costs one attempt in ten minutes. A limited one cools as long as the provider asked, within bounds.

Keys in use take turns by smooth weighted round robin.

Not here: the number behind Retry-After (headers.py), and ejecting hosts (outlier.py).
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from .h1_request import ready_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

REFUSED_SECONDS = 60.0
REFUSED_MAX_SECONDS = 600.0

LIMITED_SECONDS = 5.0
"""For a 429 that does not say how long."""
LIMITED_MAX_SECONDS = 300.0
"""However long a provider asks for, it is asked again after this [Envoy's rate_limited_retry_back_off]."""

MAX_COOLING = 1024
MAX_MODEL_LENGTH = 256
"""Names of models may come from clients. A longer one is not remembered."""


class Credential:
    """A key: its name in the config, its part of the load, and the fields it adds to a request."""

    __slots__ = ("current", "fields", "lined", "lines", "name", "on_trial", "refusals", "refused_until", "weight")

    def __init__(self, name: str, fields: tuple[tuple[bytes, bytes], ...], *, weight: int = 1) -> None:
        self.name = name
        self.fields = fields
        self.lines = ready_lines(fields)
        """The same for a head in HTTP/1.1, and how many they are."""
        self.lined = len(fields) if self.lines else 0
        self.weight = weight
        """0: never used."""
        self.current = 0
        """What it is owed by the round robin."""
        self.refusals = 0
        """In a row; above 0 the key is in doubt."""
        self.refused_until = 0.0
        """Monotonic seconds until which it is left alone, or is on trial."""
        self.on_trial = False
        """One attempt is finding out whether it works again."""

    def __repr__(self) -> str:
        return f"<Credential {self.name}>"


class Cooling:
    """Until when (key, model) is limited. Bounded: when it is full, what ends soonest is forgotten."""

    __slots__ = ("_bound", "_until", "latest")

    def __init__(self, bound: int = MAX_COOLING) -> None:
        self._bound = bound
        self._until: dict[tuple[Credential, str], float] = {}
        self.latest = 0.0
        """From here on nothing in the table matters."""

    def __len__(self) -> int:
        return len(self._until)

    def until(self, credential: Credential, model: str) -> float:
        """Monotonic seconds; in the past, or 0, when it is not limited."""
        return self._until.get((credential, model), 0.0)

    def cool(self, credential: Credential, model: str, until: float, now: float) -> None:
        """Leave it alone until then; never shortens what was said before."""
        key = credential, model
        if until <= max(now, self.until(credential, model)) or len(model) > MAX_MODEL_LENGTH:
            return
        if key not in self._until and len(self._until) >= self._bound:
            self._until = {key: end for key, end in self._until.items() if end > now}
            if len(self._until) >= self._bound:
                del self._until[min(self._until, key=self._until.__getitem__)]
        self._until[key] = until
        self.latest = max(self.latest, until)

    def items(self) -> Iterator[tuple[Credential, str, float]]:
        """Key, model, and until when."""
        for (credential, model), until in self._until.items():
            yield credential, model, until

    def take_over(self, other: Cooling, successors: Mapping[Credential, Credential]) -> None:
        """What `other` knows of keys that have a successor here, which is the same key."""
        for credential, model, until in other.items():
            successor = successors.get(credential)
            if successor is not None:
                self._until[successor, model] = until
                self.latest = max(self.latest, until)


class Credentials:
    """The keys of one cluster."""

    __slots__ = ("_all", "_cooling", "_doubtful", "sole")

    def __init__(
        self, credentials: Iterable[Credential], *, before: Credentials | None = None, bound: int = MAX_COOLING
    ) -> None:
        """`before`: those whose place they take. One of the same name and fields is the same key, and what is known of
        it stays known."""
        self._all = tuple(credential for credential in credentials if credential.weight > 0)
        self._cooling = Cooling(bound)
        if before is not None:
            known = {(old.name, old.fields): old for old in before._all}
            successors = {known[new.name, new.fields]: new for new in self._all if (new.name, new.fields) in known}
            for old, new in successors.items():
                new.refusals, new.refused_until = old.refusals, old.refused_until
            self._cooling.take_over(before._cooling, successors)
        self._doubtful = sum(credential.refusals > 0 for credential in self._all)
        """How many keys have been refused and not worked since."""
        self.sole = self._all[0] if len(self._all) == 1 else None
        """The one there is: where it is not in doubt there is nothing to `pick`, for a key that cools and has no other
        beside it is used all the same."""

    def __len__(self) -> int:
        return len(self._all)

    def pick(self, model: str, now: float) -> Credential | None:
        """The key for an attempt at `model`, or None while all of them cool. A key whose time is over goes on trial:
        nobody else gets it until the outcome is known, or a minute has passed without one."""
        usable = self._all
        if self._doubtful or now < self._cooling.latest:
            usable = tuple([credential for credential in usable if self._until(credential, model) <= now])
        if not usable:
            return None
        chosen = usable[0]
        if len(usable) > 1:
            total = 0
            for credential in usable:
                total += credential.weight
                credential.current += credential.weight
                if credential.current > chosen.current:
                    chosen = credential
            chosen.current -= total
        if chosen.refusals:
            chosen.on_trial = True
            chosen.refused_until = now + REFUSED_SECONDS
        return chosen

    def soonest(self, model: str, now: float) -> float:
        """Seconds until a key can be used for `model`: 0 when one can now, infinite when there is none."""
        if self._all and not self._doubtful and now >= self._cooling.latest:
            return 0.0
        return max(0.0, min((self._until(credential, model) for credential in self._all), default=inf) - now)

    def least_bad(self, model: str) -> Credential:
        """The key that can be used first, where one has to be: there must be some."""
        return min(self._all, key=lambda credential: self._until(credential, model))

    def has_other(self, model: str, now: float, tried: Collection[Credential]) -> bool:
        """Whether a key that is not among `tried` can be used for `model` now."""
        return any(one not in tried and self._until(one, model) <= now for one in self._all)

    def is_strained(self, now: float) -> bool:
        """Whether any key may cool for any model."""
        return self._doubtful > 0 or now < self._cooling.latest

    def resting(self, now: float) -> Iterator[tuple[str, str, str, float]]:
        """Name of the key, model, why, and the seconds left, of all that rest; the model is empty for all models."""
        for credential in self._all:
            if credential.refused_until > now:
                yield credential.name, "", "refused", credential.refused_until - now
        for credential, model, until in self._cooling.items():
            if until > now:
                yield credential.name, model, "limited", until - now

    def limited(self, model: str, now: float) -> bool:
        """Whether a 429 is why no key can be used for `model` now: without it, at least one could."""
        return self.soonest(model, now) > 0 and any(credential.refused_until <= now for credential in self._all)

    def on_success(self, credential: Credential) -> None:
        """It was accepted: all is forgiven, but the limits of its models."""
        if credential.refusals:
            credential.refusals = 0
            credential.refused_until = 0.0
            credential.on_trial = False
            self._doubtful -= credential in self._all

    def on_refused(self, credential: Credential, now: float) -> None:
        """A 401. Several at once, from attempts that ran side by side, are one refusal."""
        if credential.refusals and now < credential.refused_until and not credential.on_trial:
            return
        self._doubtful += not credential.refusals and credential in self._all
        credential.refusals += 1
        wait = REFUSED_SECONDS * 2 ** min(credential.refusals - 1, 10)
        credential.refused_until = now + min(wait, REFUSED_MAX_SECONDS)
        credential.on_trial = False

    def on_limited(self, credential: Credential, model: str, seconds: float | None, now: float) -> None:
        """A 429 that asked to wait `seconds`; None when it did not say. The key as such was accepted."""
        self.on_success(credential)
        wait = LIMITED_SECONDS if seconds is None else min(seconds, LIMITED_MAX_SECONDS)
        if credential in self._all:
            self._cooling.cool(credential, model, now + wait, now)

    def _until(self, credential: Credential, model: str) -> float:
        return max(credential.refused_until, self._cooling.until(credential, model))

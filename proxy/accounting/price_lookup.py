"""Which price belongs to a model: the price order behind the target's own price.

    prices.file → price_as → host match → model id under the dialect's home vendor → unknown

The table is genai-prices, flattened: vendors with a host pattern, models with a matcher, tariffs with dates. The
first model that matches wins, so the order of the table is part of it.

Two steps end the search although nothing was found, because going on would name a wrong price: a `price_as` that does
not exist, and a host that is known to belong to another vendor than the dialect's own (a model name that Groq and
OpenAI share has two prices).

Pure: the wall clock is handed in, because tariffs begin on dates and some have hours. Not here: where the table comes
from (price_table.py).
"""

from __future__ import annotations

import re
from math import inf
from typing import TYPE_CHECKING, Final

import msgspec

from .prices import Price, Rates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .price_file import PriceFile

DAY: Final = 86400
# Model names come from clients wherever a wildcard route stands: the cache starts anew when it is full.
CACHE_ENTRIES: Final = 4096
HOME_VENDORS: Final = {"gemini": "google", "bedrock": "aws", "vertex": "google"}

_COMPACT_DATE = re.compile(r"-(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


class Match(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Any of these holds. Texts are lower case; `every` are groups of which all must hold."""

    equals: frozenset[str] = frozenset()
    starts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    contains: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()
    every: tuple[tuple[Match, ...], ...] = ()

    def __call__(self, text: str) -> bool:
        """Whether `text`, already lower case, matches."""
        return (
            text in self.equals
            or text.startswith(self.starts)
            or text.endswith(self.ends)
            or any(part in text for part in self.contains)
            or any(re.search(pattern, text) for pattern in self.regex)
            or any(all(match(text) for match in group) for group in self.every)
        )


class Tariff(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Rates that hold from a Unix time on, or during hours of the UTC day (in seconds, possibly across midnight).

    Of a list, the last one that holds counts. `tier` is empty for the standard tariff.
    """

    rates: Rates
    tier: str = ""
    start: int | None = None
    hours: tuple[int, int] | None = None

    def holds(self, now: float) -> bool:
        """Whether it is in force."""
        if self.start is not None:
            return now >= self.start
        if self.hours is not None:
            begin, end = self.hours
            second = now % DAY
            return begin <= second < end if begin <= end else second >= begin or second < end
        return True

    def changes(self, now: float) -> float:
        """The next Unix time at which `holds` may turn; inf for never."""
        if self.start is not None:
            return self.start if self.start > now else inf
        if self.hours is not None:
            midnight = now - now % DAY
            return min(at for base in (midnight, midnight + DAY) for hour in self.hours if (at := base + hour) > now)
        return inf


class Model(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """One priced model of a vendor. The first tariff is the standard one where no other holds."""

    id: str
    match: Match
    tariffs: tuple[Tariff, ...] = ()
    context_window: int | None = None


class Vendor(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Who sells models: known by id or `match`, and by the URLs its `pattern` matches.

    `models` are packed: of some fifty vendors a gateway asks two or three. `sells_for` are vendors whose models it
    sells at their prices, without their service tiers.
    """

    id: str
    pattern: str
    models: msgspec.Raw
    match: Match | None = None
    model_match: Match | None = None
    sells_for: tuple[str, ...] = ()


def pack_models(models: Iterable[Model]) -> msgspec.Raw:
    """Models as a vendor holds them."""
    return msgspec.Raw(msgspec.msgpack.encode(tuple(models)))


_unpack_models = msgspec.msgpack.Decoder(tuple[Model, ...]).decode


class FlatTable(msgspec.Struct, array_like=True, frozen=True):
    """The whole table, as compile_prices.py writes it."""

    format: int
    version: str
    vendors: tuple[Vendor, ...]


class PriceTable:
    """Finds prices and remembers them.

    `wall` is in Unix seconds. `file` is what the operator wrote in `prices.file`; it comes first.
    """

    __slots__ = ("_cache", "_file", "_hosts", "_models", "_vendors", "_wall", "version")

    def __init__(self, table: FlatTable, *, wall: Callable[[], float], file: PriceFile | None = None) -> None:
        self.version = table.version
        self._wall = wall
        self._file = file
        self._vendors = {vendor.id: vendor for vendor in table.vendors}
        self._models: dict[str, tuple[Model, ...]] = {}
        self._hosts: dict[str, Vendor | None] = {}
        self._cache: dict[tuple[str, str, str, str | None, bool], tuple[Price | None, float]] = {}

    def lookup(
        self,
        provider_host: str,
        model: str,
        *,
        dialect: str = "openai",
        price_as: str | None = None,
        self_hosted: bool = False,
    ) -> Price | None:
        """The price of `model` at a provider, now; None when it is unknown.

        `provider_host` is its host or its base URL (some vendors share a host and differ by path). `price_as` is a
        vendor, whose price of the same model is meant, or a model, with its vendor in front (`vendor/model`) or
        without. `self_hosted`: a provider with `endpoints:`, whose models share names with priced ones and cost
        something else.
        """
        key = (provider_host, model, dialect, price_as, self_hosted)
        known = self._cache.get(key)
        if known is not None:
            price, until = known
            if until == inf or self._wall() < until:
                return price
        price, until = self._find(*key)
        if len(self._cache) >= CACHE_ENTRIES:
            self._cache.clear()
        self._cache[key] = (price, until)
        return price

    def _find(
        self, host: str, model: str, dialect: str, price_as: str | None, self_hosted: bool
    ) -> tuple[Price | None, float]:
        vendor = self._vendor_at(host)
        if self._file is not None and (price := self._file.lookup(vendor.id if vendor else "", model)) is not None:
            return price, inf
        home = self._vendors.get(HOME_VENDORS.get(dialect, dialect))
        if price_as is not None:
            found = next(self._candidates(price_as, model, home), None)
            return self._price(*found, "price_as") if found else (None, inf)
        if vendor is not None:
            found_model = self._model(vendor, model)
            return self._price(vendor, found_model, "host") if found_model else (None, inf)
        if self_hosted or home is None:
            return None, inf
        found_model = self._model(home, model)
        return self._price(home, found_model, "vendor") if found_model else (None, inf)

    def _vendor_at(self, host: str) -> Vendor | None:
        """The vendor behind a host or URL. Hosts come from the config, so the map is as small as that."""
        if host not in self._hosts:
            url = host if "://" in host else f"https://{host}"
            self._hosts[host] = next(
                (vendor for vendor in self._vendors.values() if re.match(vendor.pattern, url)), None
            )
        return self._hosts[host]

    def _candidates(self, price_as: str, model: str, home: Vendor | None) -> Iterator[tuple[Vendor, Model]]:
        """Readings of a `price_as`, best first: a vendor, vendor/model, a model of home, a model that tells its
        vendor."""
        if (vendor := self._vendors.get(price_as.lower())) is not None:
            if (found := self._model(vendor, model)) is not None:
                yield vendor, found
            return
        head, slash, tail = price_as.partition("/")
        if slash and (vendor := self._vendor_named(head)) is not None and (found := self._model(vendor, tail)):
            yield vendor, found
        if home is not None and (found := self._model(home, price_as)):
            yield home, found
        for vendor in self._vendors.values():
            if vendor.model_match and vendor.model_match(price_as.lower()) and (found := self._model(vendor, price_as)):
                yield vendor, found

    def _vendor_named(self, name: str) -> Vendor | None:
        name = name.strip().lower()
        if name in self._vendors:
            return self._vendors[name]
        return next((vendor for vendor in self._vendors.values() if vendor.match and vendor.match(name)), None)

    def _model(self, vendor: Vendor, name: str) -> Model | None:
        name = name.lower()
        if (found := self._exactly(vendor, name)) is not None:
            return found
        # LiteLLM and OpenRouter write gpt-5.2-20251211 where the vendor writes gpt-5.2-2025-12-11.
        dashed = _COMPACT_DATE.sub(r"-\1-\2-\3", name)
        return self._exactly(vendor, dashed) if dashed != name else None

    def _exactly(self, vendor: Vendor, name: str) -> Model | None:
        for seller in (vendor, *(self._vendors[other] for other in vendor.sells_for if other in self._vendors)):
            for model in self._models_of(seller):
                if model.match(name):
                    return model
        return None

    def _models_of(self, vendor: Vendor) -> tuple[Model, ...]:
        if vendor.id not in self._models:
            self._models[vendor.id] = _unpack_models(vendor.models)
        return self._models[vendor.id]

    def _price(self, vendor: Vendor, model: Model, source: str) -> tuple[Price | None, float]:
        now = self._wall()
        until = min((tariff.changes(now) for tariff in model.tariffs), default=inf)
        standard: Rates | None = None
        tiers: dict[str, Rates] = {}
        own = any(model is other for other in self._models_of(vendor))
        for tariff in model.tariffs:
            if tariff.tier:
                if own and tariff.holds(now):
                    tiers[tariff.tier] = tariff.rates
            elif standard is None or tariff.holds(now):
                standard = tariff.rates
        if standard is None:
            return None, until
        return Price(standard, source, f"{vendor.id}/{model.id}", tiers, model.context_window, until), until

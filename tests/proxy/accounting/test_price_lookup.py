"""price_lookup: the operator's file, price_as, the host, the home vendor, in this order; then unknown."""

from __future__ import annotations

import pytest

from headgate.proxy.accounting.price_file import PriceFile, parse_price_file
from headgate.proxy.accounting.price_lookup import (
    CACHE_ENTRIES,
    FlatTable,
    Match,
    Model,
    PriceTable,
    Tariff,
    Vendor,
    pack_models,
)
from headgate.proxy.accounting.prices import Rates
from tests_support.clock import FakeClock

DAY = 86400


def rates(usd: float) -> Rates:
    return Rates(((0, usd),), ((0, usd),))


def model(name: str, usd: float, *tariffs: Tariff) -> Model:
    return Model(name, Match(equals=frozenset({name})), (Tariff(rates(usd)), *tariffs), 128_000)


OPENAI = Vendor(
    "openai",
    r"https://api\.openai\.com",
    pack_models(
        [model("gpt-4o", 2.5, Tariff(rates(1.25), "flex")), model("o3", 4.0), model("gpt-5.2-2025-12-11", 5.0)]
    ),
    model_match=Match(starts=("gpt-",)),
)
GROQ = Vendor("groq", r"https://api\.groq\.com(?:/|$)", pack_models([model("llama", 0.5), model("free-lunch", 0.0)]))
AZURE = Vendor(
    "azure", r"https://[^.]+\.openai\.azure\.com", pack_models([model("phi", 0.1)]), sells_for=("openai", "nobody")
)
ANTHROPIC = Vendor(
    "anthropic", r"https://api\.anthropic\.com", pack_models([model("claude", 3.0)]), Match(contains=("anthropic",))
)
GOOGLE = Vendor("google", r"https://generativelanguage\.googleapis\.com", pack_models([model("gemini", 1.0)]))
TABLE = FlatTable(1, "0", (OPENAI, GROQ, AZURE, ANTHROPIC, GOOGLE))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def table(clock: FakeClock) -> PriceTable:
    return PriceTable(TABLE, wall=clock.wall)


def found(table: PriceTable, *args: str, **options: object) -> tuple[str, str, float] | None:
    price = table.lookup(*args, **options)  # type: ignore[arg-type]
    return (price.source, price.model, price.rates.input[0][1]) if price and price.rates.input else None


def test_the_host_tells_the_vendor(table: PriceTable) -> None:
    assert found(table, "https://api.openai.com/v1", "gpt-4o") == ("host", "openai/gpt-4o", 2.5)
    assert found(table, "api.groq.com", "LLaMa") == ("host", "groq/llama", 0.5)


def test_a_free_model_has_a_known_price_of_zero(table: PriceTable) -> None:
    assert found(table, "api.groq.com", "free-lunch") == ("host", "groq/free-lunch", 0.0)


def test_an_unknown_host_falls_to_the_home_vendor_of_the_dialect(table: PriceTable) -> None:
    assert found(table, "https://proxy.example/v1", "gpt-4o") == ("vendor", "openai/gpt-4o", 2.5)
    assert found(table, "proxy.example", "claude", dialect="anthropic") == ("vendor", "anthropic/claude", 3.0)
    assert found(table, "proxy.example", "gemini", dialect="gemini") == ("vendor", "google/gemini", 1.0)
    assert found(table, "proxy.example", "claude") is None
    assert found(table, "proxy.example", "gpt-4o", dialect="esperanto") is None


def test_self_hosted_models_share_names_and_not_prices(table: PriceTable) -> None:
    assert found(table, "http://127.0.0.1:8000/v1", "gpt-4o", self_hosted=True) is None
    assert found(table, "http://127.0.0.1:8000/v1", "gpt-4o", self_hosted=True, price_as="groq/llama") is not None


def test_a_known_host_never_takes_another_vendors_price(table: PriceTable) -> None:
    assert found(table, "https://api.groq.com/openai/v1", "gpt-4o") is None


def test_a_vendor_sells_the_models_of_others_without_their_tiers(table: PriceTable) -> None:
    price = table.lookup("https://mine.openai.azure.com/openai/v1", "gpt-4o")
    assert price is not None
    assert (price.model, price.tiers) == ("azure/gpt-4o", {})
    direct = table.lookup("https://api.openai.com/v1", "gpt-4o")
    assert direct is not None
    assert direct.tiers == {"flex": rates(1.25)}
    assert direct.context_window == 128_000


@pytest.mark.parametrize(
    ("price_as", "expected"),
    [
        ("groq/llama", ("price_as", "groq/llama", 0.5)),
        ("o3", ("price_as", "openai/o3", 4.0)),  # a model of the home vendor
        ("my-anthropic/claude", ("price_as", "anthropic/claude", 3.0)),  # the vendor by another name
        ("groq/gpt-4o", None),
        ("nobody/nothing", None),
    ],
)
def test_price_as_wins_over_the_host_or_ends_the_search(
    table: PriceTable, price_as: str, expected: tuple[str, str, float] | None
) -> None:
    assert found(table, "https://api.openai.com/v1", "gpt-4o", price_as=price_as) == expected


def test_price_as_may_name_the_vendor_whose_list_is_meant(table: PriceTable) -> None:
    assert found(table, "proxy.example", "llama", price_as="groq") == ("price_as", "groq/llama", 0.5)
    assert found(table, "api.groq.com", "gpt-4o", price_as="OpenAI") == ("price_as", "openai/gpt-4o", 2.5)
    assert found(table, "https://api.openai.com/v1", "gpt-4o", price_as="groq") is None


def test_price_as_may_name_a_model_that_tells_its_vendor(table: PriceTable) -> None:
    assert found(table, "x", "m", dialect="anthropic", price_as="gpt-4o") == ("price_as", "openai/gpt-4o", 2.5)


def test_the_operators_file_comes_before_everything(clock: FakeClock) -> None:
    file = parse_price_file(b"gpt-4o: {input: 9, output: 9}\ngroq/llama: {input: 8, output: 8}\n")
    table = PriceTable(TABLE, wall=clock.wall, file=file)
    for options in ({}, {"price_as": "groq/llama"}, {"self_hosted": True}):
        assert found(table, "https://api.openai.com/v1", "gpt-4o", **options) == ("file", "gpt-4o", 9.0)
    assert found(table, "https://api.groq.com/openai/v1", "llama") == ("file", "groq/llama", 8.0)
    assert found(table, "https://api.openai.com/v1", "o3") == ("host", "openai/o3", 4.0)


def test_a_date_written_without_dashes_is_the_same_model(table: PriceTable) -> None:
    assert found(table, "api.openai.com", "gpt-5.2-20251211") == ("host", "openai/gpt-5.2-2025-12-11", 5.0)
    assert found(table, "api.openai.com", "gpt-5.2-20251311") is None


def test_a_price_changes_on_its_day(clock: FakeClock) -> None:
    now = clock.wall()
    changing = model("m", 1.0, Tariff(rates(2.0), "", int(now) + 100), Tariff(rates(0.2), "flex", int(now) + 200))
    table = PriceTable(FlatTable(1, "0", (Vendor("openai", "x", pack_models([changing])),)), wall=clock.wall)
    assert found(table, "", "m") == ("vendor", "openai/m", 1.0)
    clock.advance(99)
    assert found(table, "", "m") == ("vendor", "openai/m", 1.0)
    clock.advance(2)
    assert found(table, "", "m") == ("vendor", "openai/m", 2.0)
    clock.advance(100)
    price = table.lookup("", "m")
    assert price is not None
    assert price.tiers == {"flex": rates(0.2)}


@pytest.mark.parametrize("hours", [(16 * 3600, 20 * 3600), (20 * 3600, 2 * 3600)])
def test_a_price_may_hold_for_some_hours_of_the_day(hours: tuple[int, int]) -> None:
    clock = FakeClock(wall=100 * DAY)
    table = PriceTable(
        FlatTable(
            1, "0", (Vendor("openai", "x", pack_models([model("m", 1.0, Tariff(rates(0.5), "", None, hours))])),)
        ),
        wall=clock.wall,
    )
    begin, end = hours
    for hour in range(48):
        second = hour * 3600 % DAY
        cheap = begin <= second < end if begin < end else second >= begin or second < end
        assert found(table, "", "m") == ("vendor", "openai/m", 0.5 if cheap else 1.0), hour
        price = table.lookup("", "m")
        assert price is not None
        assert clock.wall() < price.until <= clock.wall() + DAY
        clock.advance(3600)


def test_a_model_without_a_tariff_has_no_price(clock: FakeClock) -> None:
    empty = Model("m", Match(equals=frozenset({"m"})))
    table = PriceTable(FlatTable(1, "0", (Vendor("openai", "x", pack_models([empty])),)), wall=clock.wall)
    assert table.lookup("", "m") is None


def test_names_invented_by_clients_do_not_fill_the_memory(table: PriceTable) -> None:
    for number in range(CACHE_ENTRIES + 5):
        assert table.lookup("api.openai.com", f"model-{number}") is None
    assert len(table._cache) <= CACHE_ENTRIES
    assert found(table, "api.openai.com", "gpt-4o") == ("host", "openai/gpt-4o", 2.5)


def test_an_empty_file_of_prices_changes_nothing(clock: FakeClock) -> None:
    table = PriceTable(TABLE, wall=clock.wall, file=PriceFile({}))
    assert found(table, "api.openai.com", "gpt-4o") == ("host", "openai/gpt-4o", 2.5)

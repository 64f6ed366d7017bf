"""The parts of a gateway that its config describes and nothing else decides: prices, the spool, the table of models.

What cannot be had is said in the operator's terms: a ConfigError where the file is wrong, which a reload survives; a
BootError where the machine is.
"""

from __future__ import annotations

from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from ..proxy.accounting.price_file import PriceFileError, read_price_file
from ..proxy.accounting.price_table import PriceTableError, load_price_table
from ..proxy.accounting.prices import own_price
from ..proxy.accounting.spool import Spool
from ..proxy.models import Exhaustion, ModelTable, ModelTarget
from .filter_set import refused
from .process.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..config import GatewayConfig, Price
    from ..config import Target as TargetConfig
    from ..proxy.accounting.price_file import PriceFile
    from ..proxy.accounting.price_lookup import PriceTable
    from ..proxy.clock import Clock
    from ..proxy.upstream.cluster import Cluster


def find_prices(config: GatewayConfig, clock: Clock) -> PriceTable:
    """What answers cost, with the operator's own file on top. Raises ConfigError for that, BootError for the rest."""
    try:
        return load_price_table(wall=clock.wall, file=find_price_file(config))
    except PriceTableError as error:
        raise BootError(f"{error}; it needs the package genai-prices and a folder it may write to") from error


def find_price_file(config: GatewayConfig) -> PriceFile | None:
    """The operator's own prices, if there are any. Raises ConfigError."""
    try:
        return read_price_file(config.prices.file) if config.prices.file is not None else None
    except (PriceFileError, OSError) as error:
        raise refused(f"prices.file: {error}") from error


def open_spool(config: GatewayConfig, worker: str, clock: Clock) -> Spool:
    """Where a worker writes its records. Raises BootError."""
    settings = config.events.spool
    with _spool_errors(config):
        return Spool(
            settings.path, worker, max_size=settings.max_size, on_full=settings.on_full, monotonic=clock.monotonic
        )


def try_spool(config: GatewayConfig) -> None:
    """Make sure that records can be written. Raises BootError."""
    folder = config.events.spool.path
    with _spool_errors(config):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"\n")


@contextmanager
def _spool_errors(config: GatewayConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = config.events.spool.path
        raise BootError(f"cannot write records to {path}: {error.strerror}; set events.spool.path to another") from None


def model_table(config: GatewayConfig, clusters: Mapping[str, Cluster]) -> ModelTable:
    """Who answers for which name."""
    entries: dict[str, Sequence[ModelTarget]] = {
        name: [_target(target, clusters) for target in model.targets] for name, model in config.models.items()
    }
    direct = frozenset(name for name, provider in config.providers.items() if provider.direct)
    exhaustions = {
        name: Exhaustion(model.on_exhausted, model.queue_timeout.total_seconds())
        for name, model in config.models.items()
        if model.on_exhausted != "reject"
    }
    return ModelTable(entries, clusters, direct, exhaustions)


def _target(target: TargetConfig, clusters: Mapping[str, Cluster]) -> ModelTarget:
    price = own_price(_rates(target.price)) if target.price is not None else None
    return ModelTarget(clusters[target.provider], target.model, target.priority, price)


def _rates(price: Price) -> dict[str, float]:
    return {name: float(value) for name, value in price.model_dump().items() if value is not None}

"""What an operator should read at boot, although nothing of it is an error."""

from collections.abc import Iterator, Mapping
from os.path import exists
from urllib.parse import urlsplit

from .checks import READS_HEADGATE_KEY
from .gateway import GatewayConfig
from .listeners import is_loopback
from .providers import Provider


def warnings_of(config: GatewayConfig, dropped: Mapping[str, str | None], env: Mapping[str, str]) -> Iterator[str]:
    """One sentence each. `dropped`: keys that expanded to nothing, by name, and the variable that is empty."""
    for name, origin in dropped.items():
        yield f"auth: the key '{name}' is empty{f' ({origin})' if origin else ''} and is dropped"
    if config.auth_is_open:
        if env.get("HEADGATE_KEY") and "HEADGATE_KEY" not in dropped.values():
            cure = f"HEADGATE_KEY is set, but no auth filter reads it: write {READS_HEADGATE_KEY}"
        elif config.auth is None:
            cure = f"to close it, write {READS_HEADGATE_KEY} and set HEADGATE_KEY"
        else:
            cure = "set HEADGATE_KEY to close it"
        yield f"auth is open: every process of this machine may call; {cure}"
    for name, provider in config.providers.items():
        yield from _provider(name, provider)
    in_a_file = config.auth is not None and config.auth.keys_file
    if in_a_file and not exists(in_a_file):
        yield f"auth: there is no {in_a_file} yet, so it holds no keys; make one with: headgate keys create --name NAME"
    names = {key.name for key in config.auth.keys} | dropped.keys() if config.auth else set()
    for route in config.routes:
        if route.match.key is not None and route.match.key not in names and not in_a_file:
            yield f"the route '{route.name}' never matches: no key is named '{route.match.key}'"


def _provider(name: str, provider: Provider) -> Iterator[str]:
    if provider.unconfigured:
        yield f"providers.{name}: {provider.credential_origin or 'api_key'} is empty, so nothing is sent there"
        return
    for key in provider.api_keys or ():
        if not key.key:
            yield f"providers.{name}: the key '{key.name}' is empty ({key.key.origin or 'api_keys'}) and is dropped"
    if provider.credentials and any(
        place.url.startswith("http://") and not is_loopback(urlsplit(place.url).hostname or "")
        for place in provider.places
    ):
        yield f"providers.{name}: its api_key travels unencrypted; use https"

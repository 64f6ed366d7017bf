"""GatewayMiddleware inside FastAPI, Litestar and Django, each in an environment of its own that is made for it.

They are not among the project's dependencies: where they cannot be had, the tests are skipped and say why.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ASGI = Path(__file__).resolve().parents[1] / "support" / "asgi.py"
APPS = {
    "fastapi": """
from fastapi import FastAPI
plain = FastAPI()
plain.add_api_route("/own", lambda: {"own": True})
app = FastAPI()
app.add_api_route("/own", lambda: {"own": True})
app.add_middleware(GatewayMiddleware, config=CONFIG)
""",
    "litestar": """
from litestar import Litestar, get
@get("/own")
async def own() -> dict[str, bool]:
    return {"own": True}
plain = Litestar([own])
app = GatewayMiddleware(Litestar([own]), CONFIG)
""",
    "django": """
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse
from django.urls import path
urlpatterns = [path("own", lambda request: JsonResponse({"own": True}))]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
plain = get_asgi_application()
app = GatewayMiddleware(get_asgi_application(), CONFIG)
""",
}
SCRIPT = """
import asyncio, importlib.util, json, sys, time
from headgate import GatewayMiddleware
spec = importlib.util.spec_from_file_location("asgi", sys.argv[1])
asgi = importlib.util.module_from_spec(spec)
sys.modules["asgi"] = asgi
spec.loader.exec_module(asgi)
CONFIG = sys.argv[2]
%s

async def timed(app):
    began = time.perf_counter()
    for _ in range(300):
        await asgi.ask(app, "GET", "/own", headers=[("host", "localhost")])
    return (time.perf_counter() - began) / 300 * 1e6

async def main():
    chat = b'{"model": "mock", "messages": [{"role": "user", "content": "hello"}]}'
    async with asgi.Lifespan(app):
        own = await asgi.ask(app, "GET", "/own", headers=[("host", "localhost")])
        answer = await asgi.ask(app, "POST", "/v1/chat/completions", chat, [("content-type", "application/json")])
        health = await asgi.ask(app, "GET", "/v1/health")
        with_gateway = await timed(app)
    print(json.dumps({
        "own": json.loads(own.body), "status": answer.status, "said": json.loads(answer.body)["choices"][0]["message"],
        "health": json.loads(health.body)["status"], "us": [await timed(plain), with_gateway],
    }))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that sees this one's packages, for what is installed into it."""
    folder = tmp_path_factory.mktemp("frameworks") / "venv"
    venv.create(folder, with_pip=True)
    ours = sysconfig.get_path("purelib")
    (folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages" / "ours.pth").write_text(
        f"import site; site.addsitedir({ours!r})\n"
    )
    return folder / "bin" / "python"


@pytest.mark.parametrize("name", APPS)
def test_a_framework_serves_the_gateway_beside_its_own_routes(name: str, environment: Path, tmp_path: Path) -> None:
    install = [str(environment), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", name]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        reason = f"{name} cannot be installed: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}"
        print(reason)
        pytest.skip(reason)
    events = {"path": str(tmp_path / "events.db"), "spool": {"path": str(tmp_path / "spool")}}
    config = tmp_path / "gateway.yaml"
    config.write_text(json.dumps({"providers": {"mock": {"base_url": "mock:"}}, "events": events}))
    script = tmp_path / "app.py"
    script.write_text(SCRIPT % APPS[name])
    command = [str(environment), str(script), str(ASGI), str(config)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert (told["own"], told["status"], told["health"]) == ({"own": True}, 200, "healthy")
    assert "hello" in told["said"]["content"]
    without, with_gateway = told["us"]
    print(f"{name}: own route {without:.0f} us, with the gateway in front {with_gateway:.0f} us")

"""Other people's HTTP/2 servers, as processes on free ports of loopback: nginx and nghttpd, as Debian packs them.

    async with nginx(folder, requests=1_000_000) as base_url: ...

Both serve the files of `folder`. A test that needs one that is not installed is skipped, and says what to install.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PACKAGES = {"nginx": "nginx-light", "nghttpd": "nghttp2-server"}
WITHIN = 10.0

_NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; server_tokens off; keepalive_requests {requests}; http2_max_concurrent_streams 128;
  client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
  uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
  server {{ listen 127.0.0.1:{port} http2; root {files}; error_page 405 =200 $uri; }}
}}
"""


def program(name: str) -> str:
    """Its path; without it the test is skipped."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install {PACKAGES[name]})")
    return found


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@asynccontextmanager
async def _running(port: int, *command: str) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(WITHIN):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    assert process.returncode is None, f"{command[0]} ended with {process.returncode}"
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                await writer.wait_closed()
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def nginx(files: Path, folder: Path, *, requests: int = 1000) -> AsyncIterator[str]:
    """`requests`: after so many it says goodbye to a connection; 1000 is its default. Any method gets the file."""
    port = _free_port()
    path = folder / "nginx.conf"
    (folder / "tmp").mkdir(exist_ok=True)
    path.write_text(_NGINX.format(folder=folder, files=files, port=port, requests=requests))
    async with _running(port, program("nginx"), "-c", str(path), "-e", str(folder / "error.log")) as url:
        yield url


@asynccontextmanager
async def nghttpd(files: Path) -> AsyncIterator[str]:
    """It says goodbye to who resets more than a thousand streams in a row."""
    port = _free_port()
    async with _running(port, program("nghttpd"), "--no-tls", "-a", "127.0.0.1", "-d", str(files), str(port)) as url:
        yield url

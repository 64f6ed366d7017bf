"""What a provider over HTTP/2 costs beside the same provider over HTTP/1.1: CPU of the gateway per request, in one run.

The provider is nginx (Debian: nginx-light), which speaks both and answers from memory. Rounds of the two alternate, and
the ratio is taken within each round, as in perf.bench.

    python -m perf.http2 [--rounds N]
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import contestants, traffic
from .bench import Cores, Subject, choose_cores, free_port, wait_ready
from .load import PROVIDER_ADDRESSES, Load
from .process import running

CONNECTIONS = 64
BAR = 2.5

_CONFIG = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
  uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
  server {{ {listen} location / {{ default_type application/json; return 200 "{answer}"; }} }}
}}
"""


@contextlib.contextmanager
def provider(*, http2: bool, core: int) -> Iterator[int]:
    """nginx on a port of its own."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        sys.exit("nginx is not installed (Debian: apt-get install nginx-light)")
    answer = traffic.ANSWER.partition(b"\r\n\r\n")[2].decode().replace("\\", "\\\\").replace('"', '\\"')
    with tempfile.TemporaryDirectory(prefix="headgate-http2-") as name:
        folder, port = Path(name), free_port()
        (folder / "tmp").mkdir()
        config = folder / "nginx.conf"
        ending = " http2" if http2 else ""
        listen = " ".join(f"listen {address}:{port}{ending};" for address in PROVIDER_ADDRESSES)
        config.write_text(_CONFIG.format(folder=folder, listen=listen, answer=answer))
        process = subprocess.Popen(
            [program, "-c", str(config), "-e", str(folder / "error.log")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        try:
            yield port
        finally:
            process.kill()
            process.wait()


def measure(load: Load, cores: Cores, *, http2: bool, seconds: float) -> float:
    """CPU seconds of the gateway per request."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(provider(http2=http2, core=cores.load))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headgate-http2-")))
        port = free_port()
        launch = contestants.headgate(contestants.ROOT, work, port, upstream)
        if http2:
            text = (work / "gateway.yaml").read_text()
            url = "    endpoints: ["
            if text.count(url) != 1:
                sys.exit("the config of the benchmark does not name endpoints once")
            (work / "gateway.yaml").write_text(text.replace(url, f"    http2: true\n{url}"))
        process = stack.enter_context(running(launch.argv, {**os.environ, **launch.env}, work, cores.gateway))
        subject = Subject(port, launch.headers, process.cpu, process.pss)
        wait_ready(load, process, subject)
        sample = load.plain(
            port, subject.plain(), process.cpu, connections=CONNECTIONS, warm=seconds / 2, seconds=seconds
        )
        if sample.failed or not sample.requests:
            sys.exit(f"{sample.failed} of {sample.requests} requests failed")
        return sample.cpu / sample.requests


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.http2", description="HTTP/2 beside HTTP/1.1 upstream.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    args = parser.parse_args(argv)
    cores = choose_cores()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores.load})
    ratios = []
    try:
        with contextlib.closing(Load()) as load:
            for number in range(args.rounds):
                one, two = (measure(load, cores, http2=http2, seconds=args.seconds) for http2 in (False, True))
                ratios.append(two / one)
                figures = f"HTTP/1.1 {one * 1e6:.1f} µs/request, HTTP/2 {two * 1e6:.1f}, x {two / one:.2f}"
                print(f"round {number + 1}: {figures}")
                time.sleep(0.1)
    finally:
        os.sched_setaffinity(0, before)
    ratio = statistics.median(ratios)
    print(f"HTTP/2 costs x {ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) of HTTP/1.1; the bar is {BAR}")
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())

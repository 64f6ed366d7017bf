# Two stages: the wheel is built in the first and installed, over hash-locked wheels, in the second.
#
#   docker build -t headgate .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL -v headgate:/var/lib/headgate -e HEADGATE_KEY=… -p 8070:8070 headgate
#
# /etc/headgate/gateway.yaml is the root gateway.yaml; mount yours over it. Only /var/lib/headgate is written to.

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements/build.txt
COPY . .
RUN pip wheel --no-cache-dir --no-build-isolation --no-deps --no-index --wheel-dir /wheel .

FROM python:3.11-slim-bookworm
COPY requirements/runtime.txt /tmp/
RUN python -m venv --without-pip /opt/headgate \
 && pip --python /opt/headgate/bin/python install --no-cache-dir --require-hashes --only-binary :all: -r /tmp/runtime.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip --python /opt/headgate/bin/python install --no-cache-dir --no-deps --no-index /wheel/*.whl \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/headgate --shell /usr/sbin/nologin headgate \
 && install -d -o headgate -g headgate -m 0755 /var/cache/headgate \
 && install -d -o headgate -g headgate -m 0750 /var/lib/headgate
COPY gateway.yaml /etc/headgate/gateway.yaml

ENV PATH=/opt/headgate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache \
    HEADGATE_ADDRESS=0.0.0.0
USER 10001:10001
# The price table is compiled here, because the root is read-only later.
RUN ["python", "-c", "import time; from headgate.proxy.accounting.price_table import load_price_table as load; load(wall=time.time)"]
WORKDIR /var/lib/headgate
VOLUME /var/lib/headgate
EXPOSE 8070
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --retries=3 \
  CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8070, timeout=4); c.request('GET', '/v1/health'); assert c.getresponse().status == 200"]
ENTRYPOINT ["headgate", "serve", "/etc/headgate/gateway.yaml"]

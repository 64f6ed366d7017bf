"""stores: a URL of Redis says where, as whom and whether encrypted, and never shows its password."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from pydantic import ValidationError

from headgate.config import Redis, Secret, Stores, dump
from headgate.config.stores import RedisAddress, parse_redis_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://cache", RedisAddress("cache", 6379, 0, None, None, tls=False)),
        ("redis://cache:7000/", RedisAddress("cache", 7000, 0, None, None, tls=False)),
        ("redis://:pw@cache/2", RedisAddress("cache", 6379, 2, None, "pw", tls=False)),
        ("rediss://ann:p%40%2F%3A@cache:7000/3", RedisAddress("cache", 7000, 3, "ann", "p@/:", tls=True)),
        ("redis://[::1]:7000", RedisAddress("::1", 7000, 0, None, None, tls=False)),
    ],
)
def test_a_url_is_read(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    "url", ["", "cache:6379", "http://cache", "redis://", "redis://cache/x", "redis://cache?db=1", "redis://cache/1#x",
            "redis://:p@ss:word@cache:x", "redis://cache:70000", "redis://cache/123456"],
)  # fmt: skip
def test_what_is_no_url_of_redis_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Redis(url=Secret(url))
    assert len(url) < 12 or url not in str(refusal.value)


def test_its_password_is_never_shown() -> None:
    settings = Redis(url=Secret("redis://ann:s3cret-Pw@cache:7000/3"))
    assert settings.address.password == "s3cret-Pw"
    shown = f"{settings!r} {settings} {settings.address} {settings.address!r} {json.dumps(dump(settings))}"
    assert "s3cret" not in shown
    assert dump(settings)["url"] == "***"
    assert str(settings.address) == "cache:7000/3"


def test_a_request_waits_for_a_second_at_most() -> None:
    assert Redis(url=Secret("redis://cache")).timeout == timedelta(milliseconds=5)
    with pytest.raises(ValidationError, match="at most 1s"):
        Redis.model_validate({"url": "redis://cache", "timeout": "2s"})


@pytest.mark.parametrize("more", [{"cert": "a.pem"}, {"key": "a.pem"}])
def test_a_certificate_and_its_key_belong_together(more: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="belong together"):
        Redis.model_validate({"url": "rediss://cache", **more})


def test_files_of_tls_need_tls() -> None:
    with pytest.raises(ValidationError, match="rediss://"):
        Redis.model_validate({"url": "redis://cache", "ca": "a.pem"})
    assert Redis.model_validate({"url": "rediss://cache", "ca": "a.pem"}).address.tls


@pytest.mark.parametrize(
    ("written", "in_redis"),
    [
        ({"redis": {"url": "redis://cache"}}, True),
        ({"default": "auto", "redis": {"url": "redis://cache"}}, True),
        ({"default": "redis", "redis": {"url": "redis://cache"}}, True),
        ({"default": "shared", "redis": {"url": "redis://cache"}}, False),
        ({}, False),
    ],
)
def test_limits_are_counted_in_redis_where_it_is_written(written: dict[str, object], in_redis: bool) -> None:
    assert Stores.model_validate(written).in_redis is in_redis


def test_redis_needs_to_know_where() -> None:
    with pytest.raises(ValidationError, match="needs redis"):
        Stores.model_validate({"default": "redis"})

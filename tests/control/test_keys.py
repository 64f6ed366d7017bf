"""keys: made once, replaced with an overlap, revoked; files for their owner alone; two makers lose nothing."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from headgate.config import AuthConfig, Secret
from headgate.control.keys import BadKeyError, KeyExistsError, KeyRing, NoSuchKeyError, make_pepper
from headgate.filters.auth import Auth
from headgate.filters.keys_file import KeyRecord, KeysFileError
from headgate.proxy.errors import UnauthorizedError

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000.0
DAY = 86400.0
APP = KeyRecord("app", "", 0.0, team="red", models=("gpt-*",))


class Wall:
    """A clock that stands."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.db"


@pytest.fixture
def ring(file: Path, wall: Wall) -> KeyRing:
    return KeyRing(file, None, wall)


def whose(file: Path, key: str, now: float = NOW) -> str | None:
    auth = Auth(AuthConfig(keys_file=file))
    auth.adopt(auth.read())
    try:
        return auth.identify(key.encode(), now).name
    except UnauthorizedError:
        return None


def test_a_key_that_is_made_is_known_and_stands_nowhere(ring: KeyRing, file: Path) -> None:
    key = ring.create(APP)
    assert key.startswith("hg-")
    assert len(key) >= 40
    assert whose(file, key) == "app"
    [record] = ring.records()
    assert (record.name, record.team, record.models, record.created) == ("app", "red", ("gpt-*",), NOW)
    for path in file.parent.iterdir():
        assert key.encode() not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_is_taken_once(ring: KeyRing) -> None:
    ring.create(APP)
    with pytest.raises(KeyExistsError):
        ring.create(APP)
    assert len(ring.records()) == 1


def test_a_key_that_is_replaced_is_good_for_its_overlap(ring: KeyRing, file: Path) -> None:
    old = ring.create(APP)
    new = ring.rotate("app", 3600.0)
    assert whose(file, old, NOW + 3599) == "app"
    assert whose(file, old, NOW + 3600) is None
    assert whose(file, new, NOW + 10 * DAY) == "app"
    assert ring.records()[1].models == ("gpt-*",)


def test_replacing_makes_no_key_live_longer(ring: KeyRing, file: Path) -> None:
    old = ring.create(KeyRecord("app", "", 0.0, expires=NOW + 60))
    new = ring.rotate("app", 3600.0)
    assert whose(file, old, NOW + 60) is None
    assert whose(file, new, NOW + 60) is None
    newest = ring.rotate("app", 0.0, expires=NOW + DAY)
    assert whose(file, new) is None
    assert whose(file, newest, NOW + DAY - 1) == "app"


def test_no_key_is_made_that_is_over_already(ring: KeyRing, wall: Wall, file: Path) -> None:
    with pytest.raises(BadKeyError, match="in the future"):
        ring.create(KeyRecord("app", "", 0.0, expires=NOW))
    assert not file.exists()
    ring.create(KeyRecord("app", "", 0.0, expires=NOW + 60))
    wall.now = NOW + 60
    with pytest.raises(BadKeyError, match="in the future"):
        ring.rotate("app", 0.0)
    assert len(ring.records()) == 1
    assert whose(file, ring.rotate("app", 0.0, expires=NOW + DAY), NOW + 61) == "app"


def test_revoking_takes_every_key_of_the_name(ring: KeyRing, file: Path) -> None:
    keys = [ring.create(APP), ring.rotate("app", 3600.0)]
    other = ring.create(KeyRecord("other", "", 0.0))
    assert ring.revoke("app") == 2
    assert [whose(file, key) for key in keys] == [None, None]
    assert whose(file, other) == "other"
    for act in (ring.revoke, lambda name: ring.rotate(name, 0.0)):
        with pytest.raises(NoSuchKeyError):
            act("app")


def test_what_has_been_over_for_a_month_is_forgotten(ring: KeyRing, wall: Wall) -> None:
    ring.create(KeyRecord("app", "", 0.0, expires=NOW + DAY))
    wall.now += 30 * DAY
    ring.create(KeyRecord("b", "", 0.0))
    assert [record.name for record in ring.records()] == ["app", "b"]
    wall.now += 2 * DAY
    ring.create(KeyRecord("app", "", 0.0))
    assert [record.name for record in ring.records()] == ["b", "app"]


def test_a_pepper_is_made_once_and_never_in_place_of_one_that_is_gone(ring: KeyRing, file: Path) -> None:
    pepper = file.with_name("headgate-pepper")
    key = ring.create(APP)
    made = pepper.read_bytes()
    assert make_pepper(pepper) == made.strip()
    assert pepper.read_bytes() == made
    pepper.unlink()
    with pytest.raises(KeysFileError, match="put it back"):
        ring.create(KeyRecord("b", "", 0.0))
    assert not pepper.exists()
    pepper.write_bytes(made)
    assert whose(file, key) == "app"


def test_a_pepper_of_the_config_is_the_one(file: Path, wall: Wall) -> None:
    KeyRing(file, Secret("0123456789abcdefXYZ"), wall).create(APP)
    assert not file.with_name("headgate-pepper").exists()


def test_makers_at_the_same_time_lose_nothing(file: Path, wall: Wall) -> None:
    def make(number: int) -> str:
        return KeyRing(file, None, wall).create(KeyRecord(f"k{number}", "", 0.0))

    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(make, range(24)))
    assert {whose(file, key) for key in keys} == {f"k{number}" for number in range(24)}
    assert {path.name for path in file.parent.iterdir()} == {"keys.db", "keys.db.lock", "headgate-pepper"}


def test_a_link_stays_a_link(tmp_path: Path, wall: Wall) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "keys.db"
    link.symlink_to(tmp_path / "real" / "keys.db")
    key = KeyRing(link, None, wall).create(APP)
    assert link.is_symlink()
    assert whose(link, key) == "app"

"""`keymoot freeze|unfreeze` with an order in a file: nobody's signature comes under another order than he means."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from appliance.api.jws import ClientKey, generate_client_key, save_client_key
from appliance.api.stop import parse_order, sign_order
from policies.stop_orders import StopOrder
from tests.fakes.command_line import Keymoot

NAMES = ("olga", "otto")


@pytest.fixture
def keymoot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Keymoot:
    return Keymoot(monkeypatch, capsys)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, ClientKey]:
    made = {name: generate_client_key(name) for name in NAMES}
    for name, key in made.items():
        save_client_key(key, tmp_path / f"{name}.key")
    return made


def order(**changes: object) -> StopOrder:
    now_s = int(time.time())
    made = StopOrder("net", "s1", "unfreeze", ("hot/*", "cold/*"), now_s * 1000, now_s + 600, "drill")
    return msgspec.structs.replace(made, **changes)


def signed_by(file: Path) -> list[str]:
    return [part.header.kid for part in parse_order(tuple(file.read_text().split()))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("freeze", "holds an order to unfreeze: name another file by --order for a new one"),
        ("freeze --network net --signer s1", "holds an order to unfreeze"),
        ("unfreeze --network other", "holds an order with --network net"),
        ("unfreeze --signer s2", "holds an order with --signer s1"),
        ("unfreeze --label hot/*", "holds an order with --label cold/* hot/*"),
        ("unfreeze --reason over", "holds an order with --reason drill"),
    ],
)
def test_another_order_than_is_meant_is_not_signed(
    keymoot: Keymoot, keys: dict[str, ClientKey], tmp_path: Path, words: str, said: str
) -> None:
    file = tmp_path / "order"
    file.write_text(sign_order(keys["olga"], order()))
    outcome = keymoot(*words.split(), "--order", str(file), "--operator", "otto", "--key", str(tmp_path / "otto.key"))
    assert (outcome.code, said in outcome.err) == (2, True), outcome.err
    assert signed_by(file) == ["olga"]


def test_an_expired_order_is_not_signed(keymoot: Keymoot, keys: dict[str, ClientKey], tmp_path: Path) -> None:
    file = tmp_path / "order"
    file.write_text(sign_order(keys["olga"], order(expires=int(time.time()) - 1)))
    outcome = keymoot("unfreeze", "--order", str(file), "--operator", "otto", "--key", str(tmp_path / "otto.key"))
    assert (outcome.code, "has expired: name another file" in outcome.err) == (2, True), outcome.err
    assert signed_by(file) == ["olga"]


@pytest.mark.parametrize("words", ["", "--network net --signer s1 --label cold/* --label hot/* --reason drill"])
def test_the_order_that_is_meant_is_signed(
    keymoot: Keymoot, keys: dict[str, ClientKey], tmp_path: Path, words: str
) -> None:
    file = tmp_path / "order"
    file.write_text(sign_order(keys["olga"], order()))
    key = str(tmp_path / "otto.key")
    outcome = keymoot("unfreeze", *words.split(), "--order", str(file), "--operator", "otto", "--key", key)
    assert outcome.code == 0, outcome.err
    assert signed_by(file) == ["olga", "otto"]

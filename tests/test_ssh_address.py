"""Addresses of boards: what makes sense, and that nothing else gets to ssh."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetrl.device_bridge.ssh.address import SshAddress, parse_ssh_address
from hetrl.errors import UsageError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://board", SshAddress("board")),
        ("ssh://pi@board", SshAddress("board", "pi")),
        ("ssh://pi@board:2222", SshAddress("board", "pi", 2222)),
        ("ssh://pi@board.local:22/", SshAddress("board.local", "pi", 22)),
        ("ssh://10.0.0.7?python=/opt/venv/bin/python3.11", SshAddress("10.0.0.7", python="/opt/venv/bin/python3.11")),
        ("ssh://pi@[fe80::1]:22", SshAddress("fe80::1", "pi", 22)),
    ],
)
def test_an_address_is_read(text: str, address: SshAddress) -> None:
    assert parse_ssh_address(text) == address
    assert parse_ssh_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "board",
        "ssh://",
        "ssh://@board",
        "ssh://-oProxyCommand=touch%20pwned",
        "ssh://-oProxyCommand=id@board",
        "ssh://user@-board",
        "ssh://us er@board",
        "ssh://user@board;id",
        "ssh://user@$(id)",
        "ssh://user@board\n",
        "ssh://user@bo\nard",
        "ssh://user@board:0",
        "ssh://user@board:70000",
        "ssh://user@board:ssh",
        "ssh://user@board/path",
        "ssh://user@bürd",
        "ssh://user@board?python=-c",
        "ssh://user@board?python=/bin/sh -c id",
        "ssh://user@board?python=/a&b=c",
        "ssh://user@board?shell=/bin/sh",
        "ssh://user@[board]",
    ],
)
def test_what_makes_no_sense_is_one_clear_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ssh_address(text)
    assert "\n" not in str(caught.value)
    assert caught.value.hint and "ssh://" in caught.value.hint


PARTS = st.lists(
    st.sampled_from(["ssh://", "-", "a", "@", ":", "22", "$(id)", ";", "?python=", "/", "\n", " ", "ü", "[", "]", ".."])
)


@given(PARTS.map("".join) | st.text().map("ssh://{}".format))
def test_no_address_holds_anything_that_ssh_or_a_shell_would_read(text: str) -> None:
    try:
        address = parse_ssh_address(text)
    except UsageError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_@.:][A-Za-z0-9_@.:-]*", address.destination)
    assert re.fullmatch(r"[A-Za-z0-9_/.+@][A-Za-z0-9_/.+@-]*", address.python)

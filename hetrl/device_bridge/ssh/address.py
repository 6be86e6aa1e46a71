"""`ssh://[user@]host[:port][?python=/path/to/python]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hetrl.errors import UsageError

EXAMPLE = "write ssh://user@board or ssh://user@board:22?python=/path/to/python"
# Nothing here may begin with a dash, so that ssh never takes it for an option.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_PYTHON = re.compile(r"/?[A-Za-z0-9_][A-Za-z0-9._+@/-]{0,254}")
_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[^@/?:\[\]]+)@)?(?:\[(?P<ip6>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)\]|(?P<host>[^@/?:\[\]]+))(?::(?P<port>[0-9]{1,5}))?/?"
    r"(?:\?python=(?P<python>[^?&]+))?"
)


@dataclass(frozen=True)
class SshAddress:
    """Where a board is; `host` may be an alias of the user's ssh configuration.

    :param user: None for what ssh itself would take, as for `port`.
    :param python: the interpreter that runs the runner there, a path or a name on its PATH.
    :raises UsageError: a part that makes no sense.
    """

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise UsageError(f"{self.host!r} is no host", EXAMPLE)
        if self.user is not None and not _USER.fullmatch(self.user):
            raise UsageError(f"{self.user!r} is no user", EXAMPLE)
        if self.port is not None and not 1 <= self.port <= 65535:
            raise UsageError(f"{self.port} is no port", EXAMPLE)
        if not _PYTHON.fullmatch(self.python):
            raise UsageError(f"{self.python!r} is no path of an interpreter", EXAMPLE)

    @property
    def destination(self) -> str:
        """As ssh takes it."""
        return self.host if self.user is None else f"{self.user}@{self.host}"

    @property
    def command(self) -> str:
        """What a user types to get there."""
        port = "" if self.port is None else f"-p {self.port} "
        return f"ssh {port}{self.destination}"

    def __str__(self) -> str:
        user = "" if self.user is None else f"{self.user}@"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        python = "" if self.python == "python3" else f"?python={self.python}"
        return f"ssh://{user}{host}{port}{python}"


def parse_ssh_address(text: str) -> SshAddress:
    """Read an address.

    :raises UsageError: it is none.
    """
    match = _ADDRESS.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is no address of a board", EXAMPLE)
    port = match["port"]
    return SshAddress(
        host=match["host"] or match["ip6"],
        user=match["user"],
        port=int(port) if port else None,
        python=match["python"] or "python3",
    )

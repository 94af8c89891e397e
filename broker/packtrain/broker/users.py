"""The broker's users on disk and on a live server: passwords, the ACL file, and one user for each machine that joined.

    <folder>/password      of the admin; older fleets have no other
    <folder>/users/<role>  of the other roles, random, made once
    <folder>/users.acl     what the server reads: hashes and rules

The rules are written anew at each start, so that another version brings its own. Users of machines stand in the ACL
file alone, for only the machine knows its password: their hashes are kept, their rules made anew as well.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import quote, urlsplit, urlunsplit

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from packtrain.broker.access import RIGHTS, SPLIT_VERSION, Role, hashed, line, rules, user_of
from packtrain.broker.errors import SetupError
from packtrain.broker.ids import NodeId
from packtrain.broker.private_files import kept_secret, private_folder, write_private

_MACHINE = user_of(NodeId(""))


class UserFiles:
    """The files of one broker.

    Args:
        folder: Mode 0700.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def acl_file(self) -> Path:
        """For `aclfile` of the server, which may write it, too."""
        return self.folder / "users.acl"

    @property
    def password_file(self) -> Path:
        """Of the admin."""
        return self.folder / "password"

    def password(self, role: Role) -> str:
        """Of a role; made when it has none."""
        if role is Role.ADMIN:
            return kept_secret(self.password_file)
        return kept_secret(private_folder(self.folder / "users") / role.value)

    def acl(self, *, can_split: bool = True) -> str:
        """The text of an ACL file with all roles and the machines that have joined."""
        roles = [Role.ADMIN, *RIGHTS]
        lines = [line(r.value, hashed(self.password(r)), rules(r, can_split=can_split)) for r in roles]
        lines += [line(user_of(node), password, rules(Role.NODE, node=node, can_split=can_split))
                  for node, password in self._machines()]  # fmt: skip
        return "".join(f"{text}\n" for text in lines)

    def write(self, *, can_split: bool = True) -> None:
        """Write the ACL file; the server must not run meanwhile, or be told to load it."""
        write_private(self.acl_file, self.acl(can_split=can_split))

    def _machines(self) -> Iterator[tuple[NodeId, str]]:
        """Ids and password hashes of machines that have joined."""
        if not self.acl_file.exists():
            return
        for text in self.acl_file.read_text().splitlines():
            words = text.split()
            passwords = [word[1:] for word in words if word.startswith("#")]
            if len(words) > 2 and words[0] == "user" and words[1].startswith(_MACHINE) and passwords:
                yield NodeId(words[1].removeprefix(_MACHINE)), passwords[0]


def with_user(url: str, user: str, password: str) -> str:
    """The URL of a broker for another of its users."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    name = "" if user == Role.ADMIN.value else quote(user, safe="")
    return urlunsplit(parts._replace(netloc=f"{name}:{quote(password, safe='')}@{host}"))


def admit(redis: Redis, node: NodeId, *, db: int = 0) -> str | None:
    """Make the user of a machine that joins, or give it a new password; what it had before is refused from now on.

    Returns:
        Its password, or None: this server cannot keep users, or we may not make any.
    """
    password = secrets.token_hex(24)
    words = rules(Role.NODE, node=node, db=db, can_split=can_split(redis))
    try:
        _acl(redis, "SETUSER", user_of(node), "reset", "on", f"#{hashed(password)}", *words)
        try:
            _acl(redis, "SAVE")
        except ResponseError:  # no `aclfile`: it would be refused after a restart of the server
            _acl(redis, "DELUSER", user_of(node))
            return None
    except ResponseError:
        return None
    return password


def revoke(redis: Redis, node: NodeId) -> bool:
    """Refuse a machine that joined from now on, and end its connections.

    Returns:
        False: it has no user of its own.

    Raises:
        SetupError: We may not, or the server could not write that down.
        redis.RedisError
    """
    try:
        gone = bool(_acl(redis, "DELUSER", user_of(node)))
        if gone:
            _acl(redis, "SAVE")
    except ResponseError as error:
        raise SetupError(f"the broker does not let us revoke {node} ({error}); do so on the head") from error
    return gone


def machines(redis: Redis) -> list[NodeId]:
    """Nodes that have a user of their own.

    Raises:
        redis.RedisError: We may not ask, for example.
    """
    users = cast("list[str]", _acl(redis, "USERS"))
    return [NodeId(user.removeprefix(_MACHINE)) for user in sorted(users) if user.startswith(_MACHINE)]


def can_split(redis: Redis) -> bool:
    """Whether the server tells reading from writing. Valkey says which Redis it is like."""
    try:
        said = str(redis.info("server")["redis_version"])
    except (RedisError, KeyError):
        return True
    return tuple(int(part) for part in said.split(".")[:2]) >= SPLIT_VERSION


def _acl(redis: Redis, *words: str) -> object:
    return redis.execute_command("ACL", *words)  # type: ignore[no-untyped-call]

"""The runs this node takes part in, and those it owns, as files of the data directory."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from p2pnode.daemon.data_dir import DataDir, read_secret, write_secret
from p2pnode.errors import (
    ConfigError,
    InvalidKeyError,
    KeyFileError,
    LocalError,
    NotAMemberError,
    ProtocolError,
)
from p2pnode.security.tokens import SCOPES, Membership, RunKey, issue_invite, read_invite
from p2pnode.swarm.description import (
    Kind,
    Option,
    RunDescription,
    open_description,
    seal_description,
)
from p2pnode.wire.peer_id import PeerId

FOREVER: Final = 253_402_300_799.0  # the last second of the year 9999: an owner's own membership
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)


class RunStore:
    """Reads and writes `runs/`; the files are small, so nothing is cached."""

    def __init__(self, data_dir: DataDir) -> None:
        self._data_dir = data_dir

    def create(self, name: str) -> Membership:
        """Make a key for a new run, and become its first member.

        Raises:
            ConfigError: the name is not one, or this node knows a run of that name.
            KeyFileError: a membership of that name cannot be read.
        """
        _check_name(name)
        peer_id = self._data_dir.load_or_create_identity().peer_id
        if not self._key_file(name).exists() and self.get(name) is not None:
            raise ConfigError(
                f"this node is a member of somebody else's run called {name}; choose another name"
            )
        key = RunKey.generate()
        try:
            write_secret(self._key_file(name), key.to_bytes(), replace=False)
        except FileExistsError:
            raise ConfigError(
                f"this node already owns a run called {name}; choose another name"
            ) from None
        text = issue_invite(key, name, scopes=SCOPES, expires_at=FOREVER)
        return self._keep(Membership.accept(text, peer_id))

    def invite(
        self, name: str, *, scopes: Collection[str], expires_at: float, peer: str | None
    ) -> str:
        """Sign an invite to a run this node owns.

        Raises:
            InvalidTokenError: a scope is unknown.
            ConfigError: the run is not ours.
            KeyFileError: the run's key cannot be read.
        """
        key = self._key(name)
        holder = None if peer is None else PeerId.from_text(peer)
        return issue_invite(key, name, scopes=scopes, expires_at=expires_at, peer=holder)

    def describe(
        self,
        name: str,
        *,
        kind: Kind | None = None,
        patterns: Sequence[str] = (),
        options: Mapping[str, Option | None] | None = None,
        now: float,
    ) -> RunDescription:
        """Say what a run that this node owns consists of, and how it is trained.

        Args:
            name: of the run.
            kind: what the patterns stand for; None leaves kind and patterns as they are.
            patterns: of uids without the run.
            options: settings of the section `hosting` for all hosts; None takes one back. Those
                that are not named stay as they are.
            now: the wall clock's time.

        Raises:
            ConfigError: the run is not ours, or what is said does not fit.
            InvalidUidError: a pattern does not fit.
            KeyFileError: the run's key cannot be read.
        """
        key, before = self._key(name), self.description(name)
        description = before or RunDescription(
            run_id=key.run_id, sequence=0, kind=Kind.EXPERTS, patterns=()
        )
        if kind is not None:
            description = replace(description, kind=kind, patterns=tuple(patterns))
        merged = {**description.options, **(options or {})}
        description = replace(
            description,
            sequence=max(round(now * 1000), description.sequence + 1),
            options={each: value for each, value in merged.items() if value is not None},
        )
        try:
            sealed = seal_description(key, description)
        except ProtocolError as error:
            raise ConfigError(str(error)) from error
        write_secret(self._description_file(name), sealed, replace=True)
        return description

    def description(self, name: str) -> RunDescription | None:
        """Return what is known here of what a run consists of.

        Raises:
            KeyFileError: it cannot be read.
        """
        membership, sealed = self.get(name), self.sealed_description(name)
        if membership is None or sealed is None:
            return None
        try:
            return open_description(membership.run_id, sealed)
        except ProtocolError as error:
            path = self._description_file(name)
            raise KeyFileError(f"{path} is corrupt ({error}); remove it") from error

    def sealed_description(self, name: str) -> bytes | None:
        """Return the same as its owner signed it.

        Raises:
            KeyFileError: it cannot be read.
        """
        path = self._description_file(name)
        return read_secret(path) if path.exists() else None

    def keep_description(self, name: str, sealed: bytes) -> None:
        """Keep a description that was found, if it is newer than the one kept here.

        Raises:
            NotAMemberError: we are no member of the run.
            ProtocolError: the run's owner did not sign it.
            KeyFileError, LocalError: the one kept here cannot be read or replaced.
        """
        membership = self.get(name)
        if membership is None:
            raise NotAMemberError(f"this node is not a member of a run called {name}")
        found, known = open_description(membership.run_id, sealed), self.description(name)
        if known is None or found.sequence > known.sequence:
            write_secret(self._description_file(name), sealed, replace=True)

    def accept(self, invite: str) -> Membership:
        """Bind an invite to this node and keep it.

        Raises:
            InvalidTokenError: it is not an invite, or not for this node.
            ConfigError: this node is a member of another run of that name.
        """
        peer_id = self._data_dir.load_or_create_identity().peer_id
        membership = Membership.accept(invite, peer_id)
        _check_name(membership.name)
        known = self.get(membership.name)
        if known is not None and known.run_id != membership.run_id:
            raise ConfigError(
                f"this node is a member of another run called {membership.name} "
                f"({known.run_id}); use another --data-dir for this one"
            )
        return self._keep(membership)

    def get(self, name: str) -> Membership | None:
        """Return our membership of a run, if we have one.

        Raises:
            KeyFileError: its file cannot be read.
        """
        path = self._membership_file(name)
        if not path.exists():
            return None
        try:
            return Membership.from_json(json.loads(read_secret(path)))
        except (ValueError, LookupError, TypeError) as error:
            raise KeyFileError(
                f"the membership file {path} is corrupt; move it away and use the invite again"
            ) from error

    def get_or_open(self, name: str) -> Membership:
        """Return our membership of a run, or that of the open run of this name."""
        _check_name(name)
        return self.get(name) or Membership.open(name)

    def all(self) -> list[Membership]:
        """Return all memberships kept here."""
        found = (self.get(path.stem) for path in sorted(self._data_dir.runs.glob("*.json")))
        return [membership for membership in found if membership is not None]

    def inspect(self, name_or_invite: str) -> dict[str, Any]:
        """Describe an invite, or our membership of a run.

        Raises:
            InvalidTokenError: it looks like an invite and is none.
            LocalError: we have no membership of that name.
        """
        if _NAME.fullmatch(name_or_invite):
            membership = self.get(name_or_invite)
            if membership is None:
                raise LocalError(
                    f"this node is not a member of a run called {name_or_invite}; join it with "
                    "`p2pnode join --invite TOKEN`"
                )
            return membership.summary()
        return read_invite(name_or_invite).summary()

    def _keep(self, membership: Membership) -> Membership:
        data = json.dumps(membership.to_json(), indent=1).encode()
        write_secret(self._membership_file(membership.name), data, replace=True)
        return membership

    def _key(self, name: str) -> RunKey:
        _check_name(name)
        if not self._key_file(name).exists():
            raise ConfigError(
                f"this node does not own a run called {name}; `p2pnode run create {name}` makes one"
            )
        try:
            return RunKey.from_bytes(read_secret(self._key_file(name)))
        except InvalidKeyError as error:
            raise KeyFileError(f"the key file {self._key_file(name)} is corrupt") from error

    def _key_file(self, name: str) -> Path:
        return self._data_dir.runs / f"{name}.key"

    def _description_file(self, name: str) -> Path:
        return self._data_dir.runs / f"{name}.description"

    def _membership_file(self, name: str) -> Path:
        return self._data_dir.runs / f"{name}.json"


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a run name: use up to 64 small letters, digits, '-' and '_'"
        )

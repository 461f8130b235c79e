"""Could the machine of a remote be started? Asked step by step; nothing is made or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from guildsync.compute.account import Account
from guildsync.compute.aws import code_of
from guildsync.compute.group import Groups, own_network
from guildsync.compute.instances import Settings, chosen
from guildsync.compute.pinning import new_key
from guildsync.compute.request import authorized_key, request
from guildsync.errors import GuildsyncError
from guildsync.model.ports import Step

_WOULD = ("DryRunOperation", "InvalidGroup.Duplicate", "IncorrectInstanceState")
"""What AWS says in place of doing it, where it may be done."""
_ON_MACHINES = ("start_instances", "stop_instances", "terminate_instances")


class Readiness:
    """The steps of `check` for one remote. `groups` are made when the account says who calls."""

    def __init__(self, account: Account, groups: Callable[[], Groups], settings: Settings) -> None:
        self._account, self._groups, self._settings = account, groups, settings

    def steps(self) -> Iterator[Step]:
        """Ends after the first one that failed."""
        looks: tuple[tuple[str, Callable[[], str]], ...] = (
            ("credentials", self._credentials),
            ("image", self._image),
            ("key", self._key),
            ("address", self._address),
            ("permissions", self._permissions),
            ("machine", self._machine),
        )
        for name, look in looks:
            try:
                yield Step(name, True, look())
            except GuildsyncError as exc:
                yield Step(name, False, exc.message, exc.hint or "", exc.exit_code)
                return

    def _credentials(self) -> str:
        return f"you are {self._account.owner}"

    def _image(self) -> str:
        return f"{self._settings.ami}: {self._account.image.get('Name', 'without a name')}"

    def _key(self) -> str:
        key = authorized_key(self._settings)
        if self._settings.key_name:
            self._account.aws.call("describe_key_pairs", KeyNames=[self._settings.key_name])
            return f"key pair {self._settings.key_name}"
        return f"a key of type {key.partition(' ')[0]}" if key else "none"

    def _address(self) -> str:
        if self._settings.security_group:
            return f"whom {self._settings.security_group} lets in is up to you"
        return f"ssh is opened for {own_network()} alone"

    def _permissions(self) -> str:
        """DryRun: AWS says whether it would. What needs a machine is asked where there is one."""
        settings, row = self._settings, chosen(self._account.rows())
        asked: list[tuple[str, dict[str, Any]]] = [] if settings.security_group else [self._groups().making()]
        asked.append(("run_instances", request(settings, self._account.owner, "check", self._account.image, new_key())))
        if row is not None:
            asked += [(operation, {"InstanceIds": [row.instance.id]}) for operation in _ON_MACHINES]
        for operation, parameters in asked:
            try:
                self._account.aws.call(operation, **parameters, DryRun=True)
            except GuildsyncError as exc:
                if code_of(exc) not in _WOULD:
                    raise
        return "you may " + ", ".join(operation.replace("_", " ") for operation, _ in asked)

    def _machine(self) -> str:
        row = chosen(self._account.rows())
        return "there is none yet" if row is None else f"{row.instance.id} is {row.instance.state}"

"""A security group of ours: it lets the client in that asks, by its address of now."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from guildsync.compute.aws import Aws, code_of
from guildsync.compute.instances import (
    OWNER,
    REMOTE,
    Settings,
    group_name,
    let_in,
    network_of,
    permission,
    tagged,
    tags_of,
)
from guildsync.compute.patience import Patience
from guildsync.errors import GuildsyncError, Unreachable, Usage

ADDRESS_URL = "https://checkip.amazonaws.com"
"""Answers with the address that the question came from; GUILDSYNC_ADDRESS_URL is asked in its place."""
_DEADLINE, _MOST = 10.0, 100


def own_network() -> str:
    """Where this client is, as others see it. Raises Unreachable."""
    url = os.environ.get("GUILDSYNC_ADDRESS_URL") or ADDRESS_URL
    hint = "it says which address may use ssh; a `security-group` of your own needs no such question"
    if not url.startswith(("https://", "http://")):
        raise Usage(f"GUILDSYNC_ADDRESS_URL: {url!r} is not an address of the web", hint)
    try:
        with urllib.request.urlopen(url, timeout=_DEADLINE) as answer:  # noqa: S310 -- the scheme is checked above
            return network_of(answer.read(_MOST).decode("ascii", "replace"))
    except (OSError, urllib.error.URLError, Usage) as exc:
        raise Unreachable(f"{url} does not say what our address is: {exc}", hint) from exc


class Groups:
    """The groups of one owner's remote. What is not tagged as that is never changed."""

    def __init__(self, aws: Aws, settings: Settings, owner: str, patience: Patience) -> None:
        self._aws, self._settings, self._owner, self._patience = aws, settings, owner, patience
        self._tags = {OWNER: owner, REMOTE: settings.remote}

    def making(self) -> tuple[str, dict[str, Any]]:
        """The call that makes the group for a new machine, and what it says."""
        said = {
            "GroupName": group_name(self._settings.remote, self._owner),
            "Description": "guildsync: ssh from whoever started the machine",
            "VpcId": self._network(),
            "TagSpecifications": tagged(["security-group"], self._tags),
        }
        return "create_security_group", said

    def made(self) -> str:
        """The id of the group for a new machine, made where it is not there. Two clients that make it make one."""
        operation, said = self.making()

        def mine() -> str | None:
            found = self._ours(("vpc-id", [said["VpcId"]]), ("group-name", [said["GroupName"]]))
            return str(found[0]["GroupId"]) if found else None

        if found := mine():
            return found
        try:
            self._aws.call(operation, **said)
        except GuildsyncError as exc:
            if code_of(exc) != "InvalidGroup.Duplicate":
                raise
        return self._patience.until(mine, self._patience.listed, f"no group {said['GroupName']} of ours was seen")

    def admit(self, ids: Sequence[str], network: str, client: str, alone: bool) -> bool:
        """Let `network` use ssh in those of these groups that are ours, and no longer where `client` was before;
        `alone`: nobody else either. First in, then out: nobody locks itself out. True: something was changed."""
        description = f"guildsync {client}"
        changed = False
        for group in self._ours(("group-id", list(ids))) if ids else ():
            allowed = let_in(group.get("IpPermissions", ()))
            where: dict[str, Any] = {"GroupId": group["GroupId"]}
            if network not in allowed:
                self._authorize(where, permission(network, description))
                changed = True
            old = [other for other, said in allowed.items() if other != network and (alone or said == description)]
            for other in old:
                self._revoke(where, permission(other))
                changed = True
        return changed

    def remove(self) -> bool:
        """False where one is still used: it costs nothing, and the next time removes it."""
        gone = True
        for group in self._ours():
            try:
                self._aws.call("delete_security_group", GroupId=group["GroupId"])
            except GuildsyncError as exc:
                if code_of(exc) not in ("InvalidGroup.NotFound", "DependencyViolation"):
                    raise
                gone = gone and code_of(exc) != "DependencyViolation"
        return gone

    def _authorize(self, where: dict[str, Any], rule: dict[str, Any]) -> None:
        try:
            self._aws.call("authorize_security_group_ingress", **where, IpPermissions=[rule])
        except GuildsyncError as exc:
            if code_of(exc) != "InvalidPermission.Duplicate":
                raise

    def _revoke(self, where: dict[str, Any], rule: dict[str, Any]) -> None:
        try:
            self._aws.call("revoke_security_group_ingress", **where, IpPermissions=[rule])
        except GuildsyncError as exc:
            if code_of(exc) != "InvalidPermission.NotFound":
                raise

    def _ours(self, *more: tuple[str, list[str]]) -> list[Any]:
        """By tag, and looked at once more: in a filter, some characters stand for any."""
        wanted = [(f"tag:{key}", [value]) for key, value in self._tags.items()]
        filters = [{"Name": name, "Values": values} for name, values in (*wanted, *more)]
        found = self._aws.pages("describe_security_groups", "SecurityGroups", Filters=filters)
        return [group for group in found if self._tags.items() <= tags_of(group).items()]

    def _network(self) -> str:
        if self._settings.subnet:
            subnets = self._aws.call("describe_subnets", SubnetIds=[self._settings.subnet])["Subnets"]
            return str(subnets[0]["VpcId"])
        filters = [{"Name": "is-default", "Values": ["true"]}]
        found = self._aws.call("describe_vpcs", Filters=filters)["Vpcs"]
        if not found:
            raise Usage(f"there is no default network in {self._settings.region}", "say a `subnet:`")
        return str(found[0]["VpcId"])

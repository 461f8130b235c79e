"""What EC2 says of instances and groups as values, and what follows from it; no I/O."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from guildsync.errors import Usage
from guildsync.model.machine import Instance

OWNER, REMOTE, TOKEN = "guildsync:owner", "guildsync:remote", "guildsync:token"
FIRST_KEY, HOST_KEY = "guildsync:first-key", "guildsync:host-key"
"""Tags with the public host keys: the one a machine was made with, and its own, once that is proved."""

ENDING = ("shutting-down", "terminated")
SSH = 22

_MADE_UP_SESSION = re.compile(r"(?:botocore|aws-go-sdk|aws-sdk-\w+)-(?:session-)?\d+")


@dataclass(frozen=True)
class Settings:
    """What the configuration says of a machine. `public_key`: a key, or the path of one. `root_device_size`: GiB.
    `init`: shell lines for its first boot, which may take `init_timeout` seconds. `stop_after`: seconds."""

    remote: str
    region: str
    ami: str
    instance_type: str
    public_key: str | None = None
    key_name: str | None = None
    root_device_size: int | None = None
    init: str | None = None
    init_timeout: float = 600.0
    security_group: str | None = None
    subnet: str | None = None
    profile: str | None = None
    stop_after: float | None = None
    user: str | None = None
    guild_home: str = "~/.guild"


class Row(NamedTuple):
    """An instance as EC2 lists it, with what only we need to know of it. `reason`: why it is in its state."""

    instance: Instance
    first_key: str
    host_key: str
    groups: tuple[str, ...]
    reason: str


def owner_of(arn: str) -> str:
    """Who calls, in a form that is the same on all clients of one person: where the SDK made up the name of a session,
    it is left out; names that mean something (SSO's are people) stay."""
    head, _, session = arn.rpartition("/")
    return head if ":assumed-role/" in arn and _MADE_UP_SESSION.fullmatch(session) else arn


def row_of(listed: Mapping[str, Any], region: str) -> Row:
    tags = tags_of(listed)
    since = listed.get("LaunchTime")
    address = listed.get("PublicIpAddress") or listed.get("PrivateIpAddress") or listed.get("Ipv6Address") or ""
    instance = Instance(
        str(listed["InstanceId"]),
        str(listed["State"]["Name"]),
        str(listed.get("InstanceType", "")),
        str(address),
        since.isoformat() if since is not None else "",
        tags.get(REMOTE, ""),
        tags.get(OWNER, ""),
        region,
        tags.get(TOKEN, ""),
    )
    groups = tuple(group["GroupId"] for group in listed.get("SecurityGroups", ()))
    reason = str(listed.get("StateReason", {}).get("Message", ""))
    return Row(instance, tags.get(FIRST_KEY, ""), tags.get(HOST_KEY, ""), groups, reason)


def volume_of(listed: Mapping[str, Any], region: str) -> Instance:
    """A volume that no machine has, as a row beside machines."""
    tags = tags_of(listed)
    made = listed.get("CreateTime")
    return Instance(
        str(listed["VolumeId"]),
        str(listed["State"]),
        f"volume, {listed.get('Size', '?')} GiB",
        "",
        made.isoformat() if made is not None else "",
        tags.get(REMOTE, ""),
        tags.get(OWNER, ""),
        region,
        tags.get(TOKEN, ""),
    )


def tags_of(listed: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in listed.get("Tags", ())}


def is_live(row: Row) -> bool:
    return row.instance.state not in ENDING


def chosen(rows: Sequence[Row]) -> Row | None:
    """The one machine of a remote, of those that live: the oldest by the provider's clock. All clients choose alike
    without having heard of each other; none that is in use loses to one that is made now, be it in the same second."""
    return min(
        filter(is_live, rows), key=lambda row: (row.instance.since, not row.host_key, row.instance.id), default=None
    )


def surplus(rows: Sequence[Row], token: str | None) -> Row | None:
    """The machine that this client has just made (by `token`) although another one is the remote's: two clients raced.
    Everybody gives up only its own, and only while nobody has proved its key, which is done before it is used."""
    kept = chosen(rows)
    mine = next((row for row in rows if is_live(row) and row.instance.token == token), None)
    return mine if mine is not None and mine is not kept and not mine.host_key else None


def tagged(kinds: Sequence[str], tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Tags for what is being made, as EC2 takes them: what is made has them from its first moment on."""
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    return [{"ResourceType": kind, "Tags": listed} for kind in kinds]


def group_name(remote: str, owner: str) -> str:
    """The same for all clients of one owner, so that two who make it at once make one."""
    return f"guildsync-{re.sub(r'[^A-Za-z0-9._-]', '-', remote)[:100]}-{hashlib.sha256(owner.encode()).hexdigest()[:8]}"


def network_of(address: str) -> str:
    """One address alone, as a network. Raises Usage for what is none."""
    try:
        found = ipaddress.ip_address(address.strip())
    except ValueError as exc:
        raise Usage(f"{address.strip()[:80]!r} is not an address") from exc
    if found.is_unspecified or found.is_multicast:
        raise Usage(f"{found} is not an address of one machine")
    return f"{found}/{found.max_prefixlen}"


def permission(network: str, description: str | None = None) -> dict[str, Any]:
    """SSH from one network, as EC2 takes it."""
    said = {"Description": description} if description else {}
    six = ":" in network
    ranges = {"Ipv6Ranges": [{"CidrIpv6": network, **said}]} if six else {"IpRanges": [{"CidrIp": network, **said}]}
    return {"IpProtocol": "tcp", "FromPort": SSH, "ToPort": SSH, **ranges}


def let_in(permissions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The networks that may use ssh, with the description of each. What else a group lets in was not done by us."""
    found: dict[str, str] = {}
    for rule in permissions:
        if (rule.get("IpProtocol"), rule.get("FromPort"), rule.get("ToPort")) == ("tcp", SSH, SSH):
            found |= {row["CidrIp"]: row.get("Description", "") for row in rule.get("IpRanges", ())}
            found |= {row["CidrIpv6"]: row.get("Description", "") for row in rule.get("Ipv6Ranges", ())}
    return found

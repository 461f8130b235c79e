"""What a machine is made of: the one request that makes it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from guildsync.compute.firstboot import FirstBoot, user_data
from guildsync.compute.instances import FIRST_KEY, OWNER, REMOTE, TOKEN, Settings, tagged
from guildsync.errors import NotFound, Usage

_KEY = re.compile(r"(?:ssh-|ecdsa-|sk-)[\w@.-]+ [A-Za-z0-9+/]+=*(?: [^\r\n]*)?")
_MOST = 20_000


def authorized_key(settings: Settings) -> str | None:
    """The public key that may log in; None where a key pair says so. Raises Usage, NotFound."""
    text = settings.public_key
    if not text:
        if not settings.key_name:
            raise Usage(f"{settings.remote}: nothing says who may log in", "say `public-key:` or `key-name:`")
        return None
    if not _KEY.fullmatch(text):
        try:
            with open(os.path.expanduser(text), encoding="ascii", errors="replace") as file:
                text = file.read(_MOST).strip()
        except OSError as exc:
            raise NotFound(f"cannot read public-key {text[:80]}: {exc.strerror}", "make one: `ssh-keygen`") from exc
    if not _KEY.fullmatch(text):
        raise Usage("public-key is not one public key", "say the path of a `.pub` file, or its text")
    return text


def request(
    settings: Settings, owner: str, token: str, image: Mapping[str, Any], key: tuple[str, str]
) -> dict[str, Any]:
    """`key`: the host key of its first boot, private and public. Which group it is in is said by whoever sends it."""
    private, public = key
    first = FirstBoot(
        private, public, authorized_key(settings), settings.stop_after, settings.user, settings.guild_home
    )
    tags = {OWNER: owner, REMOTE: settings.remote, TOKEN: token}
    made: dict[str, Any] = {
        "ImageId": settings.ami,
        "InstanceType": settings.instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": token,
        "UserData": user_data(first),
        "BlockDeviceMappings": _disks(image, settings.root_device_size),
        "InstanceInitiatedShutdownBehavior": "stop",
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
        "TagSpecifications": [
            *tagged(["instance"], {**tags, FIRST_KEY: public, "Name": f"guildsync {settings.remote}"}),
            *tagged(["volume"], tags),
        ],
    }
    made |= {"KeyName": settings.key_name} if settings.key_name else {}
    return made | ({"SubnetId": settings.subnet} if settings.subnet else {})


def _disks(image: Mapping[str, Any], root_size: int | None) -> list[dict[str, Any]]:
    """Every disk of the image goes when the machine is destroyed: none is paid for afterwards."""
    found = []
    for mapping in image.get("BlockDeviceMappings", ()):
        if "Ebs" in mapping:
            is_root = root_size is not None and mapping["DeviceName"] == image.get("RootDeviceName")
            size = root_size if is_root else mapping["Ebs"].get("VolumeSize")
            disk = {"DeleteOnTermination": True, **({"VolumeSize": size} if size is not None else {})}
            found.append({"DeviceName": mapping["DeviceName"], "Ebs": disk})
    return found

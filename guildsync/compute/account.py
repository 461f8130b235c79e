"""Questions to EC2 about what is ours in the account; nothing is changed here."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from guildsync.compute.aws import Aws
from guildsync.compute.instances import OWNER, REMOTE, TOKEN, Row, Settings, is_live, owner_of, row_of, volume_of
from guildsync.errors import GuildsyncError, Usage
from guildsync.model.machine import Instance, Say

_REGIONS_AT_ONCE = 8


class Account:
    """An account as one owner's remote sees it."""

    def __init__(self, aws: Aws, settings: Settings) -> None:
        self.aws, self._settings = aws, settings

    @cached_property
    def owner(self) -> str:
        return owner_of(self.aws.call("get_caller_identity", "sts")["Arn"])

    @cached_property
    def image(self) -> Any:
        images = self.aws.call("describe_images", ImageIds=[self._settings.ami])["Images"]
        if not images:
            raise Usage(f"there is no image {self._settings.ami} in {self._settings.region}", "look at `ami:`")
        return images[0]

    def rows(self) -> list[Row]:
        """The remote's machines, ended ones too: by tag, and looked at once more, for in a filter some characters stand
        for any."""
        ours = {OWNER: self.owner, REMOTE: self._settings.remote}
        rows = self._listed([{"Name": f"tag:{key}", "Values": [value]} for key, value in ours.items()])
        return [row for row in rows if [row.instance.owner, row.instance.remote] == list(ours.values())]

    def rows_with(self, token: str) -> list[Row] | None:
        """None while what was made by the token is not among them."""
        rows = self.rows()
        return rows if any(row.instance.token == token for row in rows) else None

    def row(self, machine: str) -> Row | None:
        """By its id: a machine that ended loses its tags."""
        return next(iter(self._listed([{"Name": "instance-id", "Values": [machine]}])), None)

    def everything(self, say: Say) -> Sequence[Instance]:
        """See `model.machine.Machine.all`."""
        regions = [row["RegionName"] for row in self.aws.call("describe_regions")["Regions"]]
        with ThreadPoolExecutor(_REGIONS_AT_ONCE) as pool:
            found = list(pool.map(self._in_region, sorted({*regions, self._settings.region})))
        for region in found:
            if isinstance(region, str):
                say(region)
        return [row for region in found if not isinstance(region, str) for row in region]

    def _in_region(self, region: str) -> list[Instance] | str:
        """Or why it cannot be asked."""
        ours = [{"Name": "tag-key", "Values": [TOKEN]}]
        loose = [*ours, {"Name": "status", "Values": ["available"]}]
        try:
            rows = self._listed(ours, region)
            volumes = self.aws.pages("describe_volumes", "Volumes", region=region, Filters=loose)
            return [row.instance for row in rows if is_live(row)] + [volume_of(each, region) for each in volumes]
        except GuildsyncError as exc:
            return f"{region} cannot be asked: {exc.message}"

    def _listed(self, filters: list[dict[str, Any]], region: str | None = None) -> list[Row]:
        region = region or self._settings.region
        reservations = self.aws.pages("describe_instances", "Reservations", region=region, Filters=filters)
        return [row_of(each, region) for reservation in reservations for each in reservation["Instances"]]

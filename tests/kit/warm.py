"""Imported by the fork server of `tests.kit.machines`: its children have read what is large."""

from __future__ import annotations

import boto3
import botocore.config
import botocore.exceptions  # noqa: F401 -- whoever forks has it already

from tests.kit.machines import read_models_once
from tests.kit.servers import REGION

read_models_once()
for service in ("ec2", "sts"):
    boto3.session.Session().client(service, region_name=REGION)

"""The calls to AWS: one door, where every call has a deadline and every error gets words for people."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from guildsync.errors import GuildsyncError, Refused, Unreachable, Usage

CONNECT, ANSWER, ATTEMPTS = 10, 30, 4
"""Seconds until a connection stands, and until an answer has come; how often a call is tried, with growing pauses."""
_SAID = 300
_REFUSED = (
    "AccessDenied", "AuthFailure", "Blocked", "ExpiredToken", "InvalidClientTokenId", "OperationNotPermitted",
    "OptInRequired", "PendingVerification", "RequestExpired", "SignatureDoesNotMatch", "UnauthorizedOperation",
    "UnrecognizedClientException",
)  # fmt: skip
_LATER = (
    "Capacity", "InternalError", "InternalFailure", "LimitExceeded", "RequestTimeout", "ServiceUnavailable",
    "Throttl", "Unavailable", "Unsupported.Availability",
)  # fmt: skip
_QUOTA = ("InstanceLimitExceeded", "VcpuLimitExceeded", "VolumeLimitExceeded", "MaxSpotInstanceCountExceeded")
_SERVER_ERROR = 500


class Aws:
    """Calls with the credentials of the usual chain (environment, ~/.aws, SSO, instance role) or of `profile`."""

    def __init__(self, profile: str | None, region: str) -> None:
        self.region, self._profile = region, profile
        self._session: Any = None
        self._clients: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()

    def call(self, operation: str, service: str = "ec2", region: str | None = None, **parameters: Any) -> Any:
        """What AWS answers. Raises Refused, Unreachable, Usage or GuildsyncError; `code_of` says with which code."""
        try:
            return getattr(self._client(service, region or self.region), operation)(**parameters)
        except Exception as exc:
            raise _translated(exc) from exc

    def pages(self, operation: str, key: str, region: str | None = None, **parameters: Any) -> Iterator[Any]:
        """The rows below `key` of all pages."""
        token: dict[str, str] = {}
        while True:
            page = self.call(operation, region=region, **parameters, **token)
            yield from page.get(key, ())
            if not page.get("NextToken"):
                return
            token = {"NextToken": page["NextToken"]}

    def _client(self, service: str, region: str) -> Any:
        with self._lock:
            if (service, region) not in self._clients:
                import boto3
                from botocore.config import Config

                self._session = self._session or boto3.session.Session(profile_name=self._profile)
                retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
                config = Config(retries=retries, connect_timeout=CONNECT, read_timeout=ANSWER)
                self._clients[service, region] = self._session.client(service, region_name=region, config=config)
            return self._clients[service, region]


def code_of(error: GuildsyncError) -> str:
    """The code that AWS gave; empty where it gave none."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _translated(exc: Exception) -> GuildsyncError:
    from botocore import exceptions as boto

    if isinstance(exc, boto.ClientError):
        return _answered(exc.response)
    said = str(exc).strip()[:_SAID]
    if isinstance(exc, boto.ProfileNotFound):
        return Usage(f"AWS: {said}", "say `profile:` as one of ~/.aws/config")
    if isinstance(exc, (boto.HTTPClientError, boto.ConnectionError)):
        return Unreachable(f"AWS cannot be reached: {said}", "check the network; then try again")
    if isinstance(exc, (boto.ParamValidationError, boto.InvalidRegionError, boto.UnknownRegionError)):
        return Usage(f"AWS: {said}", "look at the remote's configuration")
    if isinstance(exc, boto.BotoCoreError):  # all that is left of it concerns credentials and how they are had
        hint = "`aws sts get-caller-identity` must work: set AWS_PROFILE, `profile:`, or log in (`aws sso login`)"
        return Refused(f"AWS lets nobody in without credentials: {said}", hint)
    return GuildsyncError(f"AWS: {type(exc).__name__}: {said}")


def _answered(response: Any) -> GuildsyncError:
    error = response.get("Error", {})
    code, said = str(error.get("Code", "")), str(error.get("Message", "")).strip()[:_SAID]
    words = f"AWS: {said or 'no'} ({code})"
    if code.startswith(_REFUSED):
        return Refused(words, "docs/remotes.md lists the permissions that ec2 remotes need")
    if code in _QUOTA:
        return Refused(words, "ask AWS for a larger quota, or choose another instance-type")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= _SERVER_ERROR or any(word in code for word in _LATER):
        return Unreachable(words, "try again: the same command goes on where it stopped")
    if code.startswith(("Invalid", "Missing", "Unsupported")):
        return Usage(words, "look at the remote's configuration")
    return GuildsyncError(words)

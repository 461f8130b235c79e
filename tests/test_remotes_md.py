"""docs/remotes.md: every key of every type of remote, and the permissions, as the code has them."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from guildsync.config import TYPES
from guildsync.schema import ALIASES, KEYS, HostRemote, RemoteConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "remotes.md").read_text()


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    level = title.partition(" ")[0]
    (body,) = re.findall(rf"^{re.escape(title)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return str(body)


def documented(title: str) -> dict[str, str]:
    """Keys of the table below a heading, each with the cell of its default."""
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", section(title), re.MULTILINE)
    return {key: default.strip() for cell, default in rows for key in re.findall(r"`([^`]+)`", cell)}


COMMON = documented("### Keys of every remote")


def table_of(kind: str) -> dict[str, str]:
    """Of a type, with what it shares with others."""
    shared = {key: d for key, d in documented("## Type `ssh`").items() if key not in ("host", "port")}
    return {**(shared if kind == "ec2" else {}), **documented(f"## Type `{kind}`")}


def test_the_common_keys_are_those_of_the_code() -> None:
    names = {field.name.replace("_", "-") for field in dataclasses.fields(RemoteConfig)}
    assert set(COMMON) == (names - {"name"}) | {"type", "extends"}
    assert set(re.findall(r"`(\w+)`", section("### Keys of every remote").split("| `type`")[1].split("\n")[0])) == {
        *TYPES
    }


@pytest.mark.parametrize("kind", TYPES)
def test_every_key_of_a_type_is_there_and_no_other(kind: str) -> None:
    assert set(table_of(kind)) == set(KEYS[TYPES[kind]]) - set(COMMON)


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_needed_and_what_is_the_default(kind: str) -> None:
    for key, said in table_of(kind).items():
        field = KEYS[TYPES[kind]][key]
        is_needed = field.default is field.default_factory is dataclasses.MISSING
        assert (said == "needed") == is_needed, key
        if found := re.fullmatch(r"`(.*)`", said):
            assert field.metadata["parse"](found[1]) == field.default, key
        elif not is_needed:
            assert field.default is None or field.default == "" or field.default_factory is dict, key


def test_other_names_of_keys_are_said() -> None:
    for other, key in ALIASES.items():
        assert f"`{other}`" in TEXT, f"{other} of {key}"


def test_an_ec2_remote_takes_every_key_of_a_host() -> None:
    assert issubclass(TYPES["ec2"], HostRemote)
    assert set(documented("## Type `ssh`")) - {"host", "port"} <= set(KEYS[TYPES["ec2"]])


def policy() -> list[dict[str, Any]]:
    (text,) = re.findall(r"```json\n(.*?)```", section("### Permissions"), re.DOTALL)
    return list(json.loads(text)["Statement"])


def allowed() -> set[str]:
    """The actions of the policy, such as `ec2:RunInstances`."""
    return {action for statement in policy() for action in statement["Action"]}


def asked() -> set[str]:
    """Every action that the code could ask for: what it names as a method of a client of boto3."""
    import boto3

    words = {
        node.value
        for path in (ROOT / "guildsync" / "compute").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    found = set()
    for service in ("ec2", "sts"):
        methods = boto3.client(service, region_name="us-east-1").meta.method_to_api_mapping
        found |= {f"{service}:{methods[word]}" for word in words if word in methods}
    return found


def test_the_policy_allows_what_is_asked_for_and_no_more() -> None:
    assert allowed() == asked()


def test_what_changes_things_is_allowed_for_ours_alone() -> None:
    """But for what makes them, and makes them ours."""
    making = {"ec2:CreateSecurityGroup", "ec2:CreateTags", "ec2:RunInstances"}
    for statement in policy():
        for action in statement["Action"]:
            only_asks = action.partition(":")[2].startswith(("Describe", "Get"))
            assert "Condition" in statement or only_asks or action in making, action

"""Machines that can be started and stopped, each with the host that it is while it runs."""

from __future__ import annotations

import os
from dataclasses import fields

from guildsync.compute.ec2 import Ec2Machine
from guildsync.compute.instances import Settings
from guildsync.compute.memory import Memory
from guildsync.compute.ssh import Host, Ssh, has_terminal
from guildsync.config import Ec2Remote, HostRemote
from guildsync.errors import Refused, Stopped
from guildsync.hosts import Way
from guildsync.model.machine import Instance, Machine, Reach
from guildsync.tree.home import Home


def ec2(config: Ec2Remote, home: Home) -> tuple[Machine, Reach, Way]:
    """The machine of a configuration, how it is talked to while it is started, and the way to it once it runs. What is
    begun with it is remembered in `home`."""
    memory = Memory(os.path.join(os.fsdecode(home.state), "machines", config.name))
    named = {field.name for field in fields(Settings)} - {"remote"}
    settings = Settings(remote=config.name, **{name: getattr(config, name) for name in named})
    machine = Ec2Machine(settings, memory)
    return machine, _reach(config), way_to(machine, config, memory)


def _reach(config: HostRemote) -> Reach:
    return lambda instance, known_hosts: Ssh(_host_at(config, instance, known_hosts), has_terminal()).run


def way_to(machine: Machine, config: HostRemote, memory: Memory) -> Way:
    """The way to the host that a machine is while it runs. One whose key was not learnt by starting it is not connected
    to."""
    start = f"`guildsync remote start {config.name}`"

    def host() -> Host:
        instance = machine.state()
        if instance is None:
            raise Stopped(f"{config.name} has no machine yet", f"{start} makes one")
        if not instance.is_running or not instance.address:
            raise Stopped(f"{config.name} is {instance.state}", f"{start} starts it")
        if memory.pinned(instance.id) is None:
            raise Refused(
                f"{config.name} runs, and its host key is not known here",
                f"{start} learns it, and finishes what was begun",
            )
        return _host_at(config, instance, memory.known_hosts)

    return Way(host, machine.admit)


def _host_at(config: HostRemote, instance: Instance, known_hosts: str) -> Host:
    return Host(
        instance.address,
        config.user,
        None,
        config.private_key,
        config.proxy,
        config.connect_timeout,
        known_hosts=known_hosts,
        alias=instance.id,
    )

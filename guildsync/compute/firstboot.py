"""What a machine of ours is told for its first boot, and what it says of itself: texts and their meaning, no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guildsync.compute.ssh import quoted
from guildsync.errors import Usage

SCRIPT = "/usr/local/sbin/guildsync-machine"
"""On the machine, to be executed as root with one word: see the script itself."""
MOST_BYTES = 16384
"""That the provider takes of user data."""

_UNIT = "/etc/systemd/system/guildsync-idle"
_BEGIN, _END = "-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----"
_KEY = re.compile(r"(ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI[0-9A-Za-z+/]{43})(?: .*)?")


@dataclass(frozen=True)
class FirstBoot:
    """`private_key` and `public_key`: the host key that the machine shows until it has its own. `authorized`: whose
    key may log in; None leaves it to the provider. `stop_after`: seconds that nothing was active until the machine
    stops itself, None: it never does. `user`, `guild_home`: where runs lie."""

    private_key: str
    public_key: str
    authorized: str | None
    stop_after: float | None
    user: str | None
    guild_home: str


def user_data(first: FirstBoot) -> str:
    """What cloud-init is told, as JSON, which is YAML. The one thing in it that is secret is a host key that counts no
    longer once somebody has seen it: whoever is on the machine can read all of this. Raises Usage."""
    files = [_file(SCRIPT, "0755", script(first))]
    commands: list[list[str]] = []
    if first.stop_after is not None:
        files += [_file(f"{_UNIT}.service", "0644", _SERVICE), _file(f"{_UNIT}.timer", "0644", _TIMER)]
        commands = [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", "guildsync-idle.timer"]]
    told = {
        "bootcmd": [["sh", "-c", f"[ ! -x {SCRIPT} ] || {SCRIPT} show"]],
        "runcmd": commands,
        "ssh": {"emit_keys_to_console": False},
        "ssh_authorized_keys": [first.authorized] if first.authorized else [],
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": first.private_key, "ed25519_public": first.public_key},
        "write_files": files,
    }
    text = "#cloud-config\n" + json.dumps(told, sort_keys=True) + "\n"
    if len(text.encode()) > MOST_BYTES:
        raise Usage("what the machine is told for its first boot is too long", "is `public-key` one key?")
    return text


def _file(path: str, permissions: str, content: str) -> Mapping[str, Any]:
    return {"path": path, "permissions": permissions, "content": content}


def script(first: FirstBoot) -> str:
    """What lies at SCRIPT."""
    after = 0 if first.stop_after is None else max(60, round(first.stop_after))
    values = {"after": str(after), "user": first.user or "", "guild_home": first.guild_home}
    return "#!/bin/sh\n" + "".join(f"{name}={quoted([value])}\n" for name, value in values.items()) + _SCRIPT


def public_key(line: str) -> str | None:
    """An Ed25519 key without its comment; None for what is none."""
    found = _KEY.fullmatch(line.strip())
    return found[1] if found else None


def console_keys(console: str, first: str | None) -> list[str]:
    """The host keys in the last whole section that the console shows of them, but for `first`, which every machine is
    made with: whoever read the user data could show that one. Only lines that hold nothing else count: a log that
    quotes what a stranger sent cannot make one."""
    sections: list[list[str]] = []
    lines: list[str] | None = None
    for line in (line.strip("\r") for line in console.split("\n")):
        if line == _BEGIN:
            lines = []
        elif line == _END and lines is not None:
            sections.append(lines)
            lines = None
        elif lines is not None:
            lines.append(line)
    found = [[key for key in map(public_key, lines) if key and key != first] for lines in sections]
    return next((keys for keys in reversed(found) if keys), [])


_SERVICE = f"""[Unit]
Description=Stop this machine when no run and no login has been active

[Service]
Type=oneshot
ExecStart={SCRIPT} idle
TimeoutStartSec=50
"""
_TIMER = """[Unit]
Description=Look every minute whether this machine is still needed

[Timer]
OnBootSec=60
OnUnitActiveSec=60
AccuracySec=1

[Install]
WantedBy=timers.target
"""

_SCRIPT = r"""# guildsync's, for a machine that it made. As root, one of:
#   key     print the machine's own host key, made where there is none; it is not shown to anybody yet
#   switch  show that key instead of the one that the machine was made with
#   show    print it to the console
#   init    run what stdin says as whoever logged in: once, detached
#   state   of that: waiting, running, done, or failed and its exit status (cut: the machine went down); then its output
#   idle    stop the machine where nothing has been active for so many seconds
# Each can be said again, by several at a time, wherever it was interrupted.
set -eu
umask 022
root=${GUILDSYNC_ROOT:-}
state=$root/var/lib/guildsync
shown=$root/etc/ssh/ssh_host_ed25519_key
boot=$(cat /proc/sys/kernel/random/boot_id)

# What is put there by `ln` is there whole, and the first one stays.
first() { ln "$1" "$2" 2>/dev/null || [ -e "$2" ]; rm -f "$1"; }

public() { ssh-keygen -y -f "$state/host_key" | cut -d' ' -f1,2; }

show() {
    {
        echo
        echo "-----BEGIN SSH HOST KEY KEYS-----"
        public
        echo "-----END SSH HOST KEY KEYS-----"
    } 2>/dev/null >"$root/dev/console" || :
}

# Nothing where the process has ended.
started() {
    tr '\n' ' ' 2>/dev/null <"/proc/$1/stat" | sed 's/.*) //' | {
        read -r status _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ start _ || :
        case "${status:-Z}" in Z | X | x) ;; *) echo "$start" ;; esac
    }
}

is_alive() { [ "$3" = "$boot" ] && [ -r "/proc/$1/stat" ] && [ "$(started "$1")" = "$2" ]; }

worker_is_alive() { read -r pid start its_boot <"$state/worker" && is_alive "$pid" "$start" "$its_boot"; }

# Is one of the two processes that a supervisor's file names alive? `supervisor` is the second one's id.
ours_is_alive() {
    supervisor=
    [ -f "$1" ] || return 1
    found=$(head -c 4096 "$1" | tr -d ' "' | tr '{},' '\n\n\n')
    its_boot= pid= alive=
    for word in $found; do
        case $word in
            boot:*) its_boot=${word#boot:} ;;
            pid:*) pid=${word#pid:} supervisor=$pid ;;
            start:*)
                case $pid in '' | *[!0-9]*) continue ;; esac
                is_alive "$pid" "${word#start:}" "$its_boot" && alive=yes || : ;;
        esac
    done
    [ -n "$alive" ]
}

# Guild AI's own LOCK: a process that was there when it was written.
lock_is_alive() {
    pid=$(head -c 20 "$1")
    case $pid in '' | *[!0-9]*) return 1 ;; esac
    [ "$pid" != "$supervisor" ] && [ -r "/proc/$pid/stat" ] || return 1
    ticks=$(started "$pid")
    [ -n "$ticks" ] || return 1
    since=$(($(sed -n 's/^btime //p' /proc/stat) + ticks / $(getconf CLK_TCK)))
    [ "$since" -le $(($(stat -c %Y "$1") + 2)) ]
}

homes() {
    if [ "${guild_home#"~/"}" = "$guild_home" ]; then
        echo "$guild_home"
    elif [ -n "$user" ]; then
        echo "$(getent passwd "$user" | cut -d: -f6)/${guild_home#"~/"}"
    else
        for home in "$root/root" "$root"/home/*; do echo "$home/${guild_home#"~/"}"; done
    fi
}

run_is_active() {
    homes | while IFS= read -r home; do
        for lock in "$home"/runs/*/.guild/LOCK; do
            [ -f "$lock" ] || continue
            if ours_is_alive "${lock%LOCK}sync/process" || lock_is_alive "$lock"; then echo yes; break; fi
        done
    done | grep -q yes
}

# A terminal on which something was typed or shown.
login_is_active() {
    span=-$((after / 60))
    [ -n "$(find "$root/dev/pts" -name '[0-9]*' \( -amin "$span" -o -mmin "$span" \) 2>/dev/null)" ]
}

init_is_active() { [ -f "$state/worker" ] && [ ! -e "$state/ended" ] && worker_is_alive; }

is_active() { run_is_active || login_is_active || init_is_active; }

case ${1:-} in
key)
    mkdir -p "$state"
    if [ ! -e "$state/host_key" ]; then
        rm -f "$state/key.$$" "$state/key.$$.pub"
        ssh-keygen -q -t ed25519 -N '' -C guildsync -f "$state/key.$$"
        rm -f "$state/key.$$.pub"
        first "$state/key.$$" "$state/host_key"
    fi
    public
    ;;
switch)
    if [ ! -e "$state/switched" ] || ! cmp -s "$state/host_key" "$shown"; then
        cp "$state/host_key" "$shown.$$"
        chmod 600 "$shown.$$"
        public >"$shown.pub.$$"
        mv "$shown.$$" "$shown"
        mv "$shown.pub.$$" "$shown.pub"
        ! command -v restorecon >/dev/null || restorecon -F "$shown" "$shown.pub" || :
        systemctl restart ssh 2>/dev/null || systemctl restart sshd
        : >"$state/switched"
        show
    fi
    ;;
show)
    [ ! -e "$state/switched" ] || show
    ;;
init)
    mkdir -p "$state"
    (umask 077 && cat >"$state/lines.$$")
    [ -z "${SUDO_USER:-}" ] || chown "$SUDO_USER" "$state/lines.$$"
    first "$state/lines.$$" "$state/lines"
    [ -e "$state/worker" ] || setsid sh "$0" work </dev/null >/dev/null 2>&1 &
    ;;
work)
    echo "$$ $(started $$) $boot" >"$state/worker.$$"
    ln "$state/worker.$$" "$state/worker" 2>/dev/null && mine=yes || mine=
    rm -f "$state/worker.$$"
    [ -n "$mine" ] || exit 0
    if [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then as="sudo -n -u $SUDO_USER -H"; else as=; fi
    $as sh -c 'cd && exec sh "$0"' "$state/lines" >"$state/log" 2>&1 && code=0 || code=$?
    echo "$code" >"$state/ended.$$"
    mv "$state/ended.$$" "$state/ended"
    ;;
state)
    # what was there when the worker was seen dead: it may just have ended
    if [ ! -e "$state/worker" ]; then echo waiting
    elif [ ! -e "$state/ended" ] && worker_is_alive; then echo running
    elif [ ! -e "$state/ended" ]; then echo failed cut
    elif [ "$(cat "$state/ended")" = 0 ]; then echo "done"
    else echo "failed $(cat "$state/ended")"
    fi
    tail -c 2000 "$state/log" 2>/dev/null || :
    ;;
idle)
    now=$(cut -d. -f1 /proc/uptime)
    mkdir -p "$root/run/guildsync"
    last=$root/run/guildsync/active
    if [ ! -s "$last" ] || is_active; then
        echo "$now" >"$last"
    elif [ $((now - $(cat "$last"))) -ge "$after" ]; then
        echo "guildsync: nothing was active for $after seconds: stopping"
        shutdown -h now
    fi
    ;;
*)
    echo "no such word" >&2
    exit 2
    ;;
esac
"""

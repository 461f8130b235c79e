"""A store on an account that speaks SFTP alone: nobody but the known host, all or nothing, and no waiting for ever."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from guildsync import remotes
from guildsync.api import Context, open_context
from guildsync.compute.ssh import Host, effective
from guildsync.errors import GuildsyncError, NoRoom, Refused, Unreachable, Usage
from guildsync.store import sftp
from guildsync.store.fs import Absent, open_url
from guildsync.store.sftp import Door, Sftp, open_sftp
from tests.kit.sshd import Client, Sshd, client, sshd
from tests.kit.trees import MIB, assert_same, noise, run_ids, ugly_run, write_run

pytestmark = pytest.mark.servers

RUN, OTHER = run_ids(2)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where SFTP starts."""
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def shared(start: Path) -> Iterator[Sshd]:
    with sshd({"ForceCommand": f"internal-sftp -d {start}"}) as server:
        yield server


@pytest.fixture
def server(start: Path) -> Iterator[Sshd]:
    """One of the test alone, which it may stop and kill."""
    with sshd({"ForceCommand": f"internal-sftp -d {start}"}) as server:
        yield server
        kill(server, signal.SIGKILL)


@pytest.fixture
def who(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with client(tmp_path / "who") as who:
        for name, value in who.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        yield who


@pytest.fixture
def opened(tmp_path: Path, who: Client) -> Callable[..., Context]:
    """A home, with the remote `box` of the host `box`; further keys of the remote as arguments."""

    def opened(home: str = "home", **keys: object) -> Context:
        said = {"type": "ssh", "host": "box", "layout": "store", "guild-home": str(tmp_path / "far" / "runs"), **keys}
        file = tmp_path / f"{home}.yml"
        file.write_text("remotes:\n  box:\n" + "".join(f"    {key}: {value}\n" for key, value in said.items()))
        return open_context(str(tmp_path / home), str(file), cwd=str(tmp_path))

    return opened


def sessions(server: Sshd) -> list[int]:
    found: list[int] = []
    left = [server.pid]
    while left:
        pid = left.pop()
        try:
            below = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            continue
        found += below
        left += below
    return found


def kill(server: Sshd, sent: int) -> None:
    for pid in sessions(server):
        try:
            os.kill(pid, sent)
        except ProcessLookupError:
            pass


def door_of(server: Sshd, known_hosts: Path) -> Door:
    known_hosts.write_text(server.known_hosts_line)
    user = effective(Host("127.0.0.1"))["user"][0]
    return Door("box", "127.0.0.1", user, server.port, "127.0.0.1", (str(known_hosts),), (str(server.user_key),))


@pytest.fixture
def door(shared: Sshd, who: Client, tmp_path: Path) -> Door:
    return door_of(shared, tmp_path / "known")


# -- runs go there and come back


def test_ugly_runs_come_back_as_they_were(
    opened: Callable[..., Context], who: Client, shared: Sshd, tmp_path: Path
) -> None:
    who.add("box", shared)
    ugly_run(tmp_path / "home", RUN)
    write_run(tmp_path / "home", OTHER, {"big": noise(1, 3 * MIB)})
    assert opened().push("box").problems == []
    assert opened("other").pull("box").problems == []
    for run in (RUN, OTHER):
        assert_same(tmp_path / "home" / "runs" / run, tmp_path / "other" / "runs" / run)
    assert opened().verify("box").problems == []
    assert all(step.ok for step in opened().check("box"))
    assert not list((tmp_path / "far").rglob("*.tmp"))


def test_a_folder_below_the_home_there(
    opened: Callable[..., Context], who: Client, shared: Sshd, tmp_path: Path, start: Path
) -> None:
    who.add("box", shared)
    write_run(tmp_path / "home", RUN)
    context = opened(**{"guild-home": "~/below/here"})
    assert context.push("box").problems == []
    assert (start / "below" / "here" / "guildsync.json").exists()
    assert [record.run for record in context.runs("box")] == [RUN]
    with pytest.raises(Usage, match="~somebody"):
        opened(**{"guild-home": "~somebody/x"}).remote("box")


def test_two_push_at_the_same_time(opened: Callable[..., Context], who: Client, shared: Sshd, tmp_path: Path) -> None:
    who.add("box", shared)
    runs = run_ids(8)
    for n, run in enumerate(runs):
        write_run(tmp_path / f"home{n % 2}", run, {"own": noise(n, 200_000)})
    contexts = [opened(f"home{n}") for n in range(2)]
    failed: list[object] = []

    def push(context: Context) -> None:
        try:
            failed.extend(context.push("box").problems)
        except GuildsyncError as exc:
            failed.append(exc)

    threads = [threading.Thread(target=push, args=(context,)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {record.run for record in contexts[0].runs("box")} == set(runs)
    assert contexts[0].verify("box").problems == []


# -- nobody but the known host


@pytest.mark.parametrize("checking", ["ask", "no", "accept-new"])
def test_a_host_that_is_not_known_is_not_spoken_to(
    opened: Callable[..., Context], who: Client, shared: Sshd, checking: str
) -> None:
    who.add("box", shared, known=False, StrictHostKeyChecking=checking)
    before = shared.log.count("Connection from")
    with pytest.raises(Refused, match="not a known host") as caught:
        opened().runs("box")
    assert caught.value.exit_code == 4
    assert "fingerprint" in (caught.value.hint or "")
    assert shared.log.count("Connection from") == before
    assert who.known_hosts.read_text() == ""


@pytest.mark.parametrize("checking", ["ask", "no"])
def test_a_host_with_another_key_is_told_nothing(
    opened: Callable[..., Context], who: Client, shared: Sshd, server: Sshd, checking: str
) -> None:
    who.add("box", server, known=False, StrictHostKeyChecking=checking)
    other = shared.known_hosts_line.partition(" ")[2]
    who.known_hosts.write_text(f"# a comment\n[127.0.0.1]:{server.port} {other}")
    before = who.known_hosts.read_text()
    with pytest.raises(Refused, match=f"another host key than the one in {who.known_hosts}:2") as caught:
        opened().runs("box")
    assert caught.value.exit_code == 4
    time.sleep(0.2)
    assert "publickey" not in server.log
    assert "Accepted" not in server.log
    assert "for user" not in server.log
    assert who.known_hosts.read_text() == before


def test_a_key_that_is_not_let_in(
    opened: Callable[..., Context], who: Client, shared: Sshd, server: Sshd, tmp_path: Path
) -> None:
    who.add("box", shared, IdentityFile=str(server.user_key))
    with pytest.raises(Refused, match="refused to let us in") as caught:
        opened().runs("box")
    assert caught.value.exit_code == 4
    assert [(step.ok, step.exit_code) for step in opened().check("box")] == [(False, 4)]
    keyed = opened("keyed", **{"private-key": str(shared.user_key)})
    write_run(tmp_path / "keyed", RUN)
    assert keyed.push("box").problems == []


def test_a_key_with_a_passphrase_waits_for_nobody_and_an_agent_has_it(
    opened: Callable[..., Context], who: Client, server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who.add("box", server)
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(who.runtime / "agent")], stdout=subprocess.DEVNULL)
    try:
        while not (who.runtime / "agent").exists():
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(who.runtime / "agent"))
        subprocess.run(["ssh-add", "-q", str(server.user_key)], check=True)
        passphrase = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(server.user_key)]
        subprocess.run(passphrase, check=True, stdout=subprocess.DEVNULL)
        write_run(tmp_path / "home", RUN)
        assert opened().push("box").problems == []
        monkeypatch.delenv("SSH_AUTH_SOCK")
        with pytest.raises(Refused, match="refused to let us in") as caught:
            opened().runs("box")
        assert "ssh-add" in (caught.value.hint or "")
    finally:
        agent.kill()
        agent.wait()


def test_through_another_host_and_it_is_checked_too(
    opened: Callable[..., Context], who: Client, shared: Sshd, tmp_path: Path
) -> None:
    with sshd() as bastion:
        who.add("bastion", bastion)
        who.add("box", shared, ProxyJump="bastion")
        write_run(tmp_path / "home", RUN)
        assert opened().push("box").problems == []
        assert "direct-tcpip" in bastion.log or "Accepted" in bastion.log
        known = who.known_hosts.read_text()
        who.known_hosts.write_text(known.replace(bastion.known_hosts_line, ""))
        with pytest.raises(Refused, match="bastion is not a known host"):
            opened().runs("box")
        who.known_hosts.write_text(known.replace(shared.known_hosts_line, ""))
        with pytest.raises(Refused, match="box is not a known host"):
            opened().runs("box")
        who.known_hosts.write_text(known)
        who.add("command", shared, ProxyCommand=f"ssh -F {who.config} -W %h:%p bastion")
        assert [record.run for record in opened(host="command").runs("box")] == [RUN]


def test_hosts_that_jump_in_a_circle(opened: Callable[..., Context], who: Client, shared: Sshd) -> None:
    who.add("one", shared, ProxyJump="box")
    who.add("box", shared, ProxyJump="one")
    with pytest.raises(Usage):
        opened().runs("box")


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "a b", "$(touch x)", "h;touch x", "h`touch x`"])
def test_no_name_of_a_host_is_a_command(opened: Callable[..., Context], tmp_path: Path, host: str) -> None:
    for key in ("host", "proxy"):
        with pytest.raises(Usage):
            opened(**{key: f"'{host}'"}).runs("box")
    assert not (tmp_path / "x").exists()


def test_what_known_hosts_says(tmp_path: Path, shared: Sshd, server: Sshd, who: Client) -> None:
    known = tmp_path / "known"
    door = Door("n", "h.example", "u", 2222, "h.example", (str(tmp_path / "no"), str(known)))
    one = shared.known_hosts_line.partition(" ")[2].strip()
    two = server.known_hosts_line.partition(" ")[2].strip()

    def says(*lines: str) -> tuple[list[str], ...] | None:
        known.write_text("".join(line + "\n" for line in lines))
        try:
            kinds = sftp._known(door)
        except Refused:
            return None
        return tuple(sorted({key.export_public_key().decode().strip() for key in keys}) for keys in kinds)

    assert says() is None
    assert says(f"other {one}", f"10.0.0.1 {one}", f"[h.example]:23 {one}") is None
    assert says("rubbish", "@wrong h.example x y", f"[h.example]:2222 {one}") == ([one], [], [])
    assert says(f"h.example {one}") == ([one], [], []), "as OpenSSH does"
    assert says(f"h.example {one}", f"[h.example]:2222 {two}") == ([two], [], [])
    assert says(f"*.example {one}") == ([one], [], [])
    assert says(f"!h.example,*.example {one}") is None
    assert says(f"@revoked * {one}", f"h.example {two}") == ([two], [], [one])
    assert says(f"@revoked * {one}") is None
    assert says(f"@cert-authority *.example {one}") == ([], [one], [])
    known.write_text(f"h.example {one}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert says(*known.read_text().splitlines()) == ([one], [], [])


@pytest.mark.parametrize("url", ["sftp://box/x", "ssh://u@box/x", "simplecache::sftp://box/x"])
def test_urls_that_would_trust_any_host_are_refused(url: str) -> None:
    with pytest.raises(Usage, match="host key") as caught:
        open_url(url)
    assert "layout: store" in (caught.value.hint or "")
    with pytest.raises(Usage):
        open_url("filecache://x", {"target_protocol": "sftp", "target_options": {"host": "box"}})


# -- all or nothing, and not for ever


def test_a_host_that_does_not_answer(opened: Callable[..., Context], who: Client, server: Sshd) -> None:
    who.add("box", server)
    os.kill(server.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        opened(**{"connect-timeout": 1}).runs("box")
    assert caught.value.exit_code == 5
    assert time.monotonic() - began < 10
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(Unreachable):
        opened().runs("box")


def test_a_server_that_stops_in_the_middle(
    server: Sshd, tmp_path: Path, who: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "KEEPALIVE", 0.3)
    monkeypatch.setattr(sftp, "DELAYS", (0.1, 0.1))
    door = replace(door_of(server, tmp_path / "known"), connect_timeout=1.0)
    files = open_sftp(Sftp(door, f"{tmp_path}/far"))
    files.put("a/b", b"x")
    os.kill(server.pid, signal.SIGSTOP)
    kill(server, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(Unreachable):
        files.put("a/c", noise(1, MIB))
    assert time.monotonic() - began < 15
    os.kill(server.pid, signal.SIGCONT)
    kill(server, signal.SIGCONT)
    files.put("a/c", b"y")
    assert files.get("a/c") == b"y"


class Cutter:
    """Ends all sessions of a server each time that another file is on its way to it, so many times."""

    def __init__(self, server: Sshd, folder: Path, times: int) -> None:
        self.cuts = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(server, folder, times))

    def _run(self, server: Sshd, folder: Path, times: int) -> None:
        seen: set[Path] = set()
        while self.cuts < times and not self._done.is_set():
            if new := set(folder.rglob("*.tmp")) - seen:
                seen |= new
                kill(server, signal.SIGKILL)
                self.cuts += 1
            time.sleep(0.0005)

    def __enter__(self) -> Cutter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def big_home(tmp_path: Path) -> None:
    for n, run in enumerate(run_ids(3)):
        write_run(tmp_path / "home", run, {"big": noise(n, 12 * MIB)})


def test_lost_connections_are_made_anew(
    opened: Callable[..., Context], who: Client, server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "DELAYS", (0.05, 0.1, 0.1, 0.1))
    who.add("box", server)
    big_home(tmp_path)
    (tmp_path / "far").mkdir()
    with Cutter(server, tmp_path / "far", 2) as cutter:
        assert opened().push("box").problems == []
    assert cutter.cuts == 2
    assert opened().verify("box").problems == []


def test_a_push_that_broke_off_is_made_again(
    opened: Callable[..., Context], who: Client, server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who.add("box", server)
    big_home(tmp_path)
    (tmp_path / "far").mkdir()
    with monkeypatch.context() as patch, Cutter(server, tmp_path / "far", 1) as cutter:
        patch.setattr(sftp, "DELAYS", ())
        with pytest.raises(Unreachable):
            opened().push("box")
    assert cutter.cuts == 1
    context = opened()
    assert context.push("box").problems == []
    assert context.verify("box").problems == []
    assert len(context.runs("box")) == 3


def test_a_name_that_an_interrupted_put_left_is_no_entry(
    opened: Callable[..., Context], who: Client, shared: Sshd, tmp_path: Path
) -> None:
    who.add("box", shared)
    write_run(tmp_path / "home", RUN)
    context = opened()
    assert context.push("box").problems == []
    for folder in ("", "journal", "packs", "index"):
        left = tmp_path / "far" / "runs" / folder / ".0123456789abcdef0123456789abcdef.tmp"
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"half")
    other = opened("other")
    assert [record.run for record in other.runs("box")] == [RUN]
    assert other.verify("box").problems == []
    assert other.pull("box").problems == []


# -- files


def test_files_by_literal_names(door: Door, tmp_path: Path) -> None:
    files = open_sftp(Sftp(door, f"{tmp_path}/far"))
    assert files.list("") == files.list("", deep=True) == {}
    with pytest.raises(Absent):
        files.get("a")
    data = noise(1, 3 * MIB)
    files.put("d/e/a", data)
    files.put("d/e/a", data)
    files.put("d/b", b"")
    assert files.get("d/e/a") == data
    assert files.get("d/b") == b""
    assert files.read("d/e/a", MIB - 5, 2 * MIB + 7) == data[MIB - 5 : 2 * MIB + 7]
    assert files.read("d/e/a", 3 * MIB - 5, 4 * MIB) == data[-5:]
    assert files.read("d/e/a", 5 * MIB, 6 * MIB) == files.read("d/e/a", 7, 7) == b""
    assert files.fs.cat_file(f"{tmp_path}/far/d/e/a", start=-5) == data[-5:]
    assert files.list("d") == {"d/b": 0}
    assert files.list("", deep=True) == {"d/b": 0, "d/e/a": 3 * MIB}
    assert abs((files.list("d")["d/b"].modified or 0) - time.time()) < 60
    files.remove("d/b")
    files.remove("d/b")
    assert files.list("", deep=True) == {"d/e/a": 3 * MIB}
    with pytest.raises(Absent):
        files.read("d/b", 0, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all folders")
def test_a_folder_that_may_not_be_listed_is_not_empty(door: Door, tmp_path: Path) -> None:
    files = open_sftp(Sftp(door, f"{tmp_path}/far"))
    files.put("d/e/a", b"x")
    (tmp_path / "far/d/e").chmod(0)
    with pytest.raises(Refused):
        files.list("", deep=True)
    (tmp_path / "far/d/e").chmod(0o700)


def test_a_put_that_fails_leaves_nothing(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = open_sftp(Sftp(door, f"{tmp_path}/far"))
    (tmp_path / "far" / "d" / "taken").mkdir(parents=True)
    with pytest.raises(Unreachable):
        files.put("d/taken", b"x")
    assert list((tmp_path / "far" / "d").iterdir()) == [tmp_path / "far" / "d" / "taken"]


def test_servers_without_extensions(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cannot replace a file: the same bytes are welcome, and others an error."""

    async def unsupported(*_: object) -> None:
        raise asyncssh.SFTPOpUnsupported("not known here")

    monkeypatch.setattr(asyncssh.SFTPClient, "posix_rename", unsupported)
    monkeypatch.setattr(asyncssh.SFTPClientFile, "fsync", unsupported)
    files = open_sftp(Sftp(door, f"{tmp_path}/far"))
    files.put("a", b"x")
    files.put("a", b"x")
    with pytest.raises(Unreachable):
        files.put("a", b"y")
    assert files.get("a") == b"x"
    assert list(files.list("")) == ["a"]


def test_a_host_without_sftp(tmp_path: Path, who: Client) -> None:
    with sshd({"Subsystem": "nothing /bin/false"}) as server:
        files = open_sftp(Sftp(door_of(server, tmp_path / "known"), "x"))
        with pytest.raises(Refused, match="offers no SFTP"):
            files.list("")


def test_a_full_disk_says_so(door: Door, tmp_path: Path) -> None:
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("only root mounts a small filesystem")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        files = open_sftp(Sftp(door, f"{small}/far"))
        files.put("a", b"x")
        with pytest.raises(NoRoom, match="No space"):
            files.put("b", noise(1, 2 * MIB))
        assert list(files.list("")) == ["a"]
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_the_remote_is_named_by_host_and_folder(
    opened: Callable[..., Context], who: Client, shared: Sshd, tmp_path: Path
) -> None:
    who.add("box", shared)
    folder = tmp_path / "far" / "runs"
    context = opened(user="somebody", port=7)
    remote = context.remote("box")
    assert (remote.where, remote.layout) == (f"ssh:somebody@box:7 {folder}", "store")
    files = remotes._files(remote)
    assert files.where == f"ssh:somebody@127.0.0.1:7 {folder}"
    assert files.where in remotes._location(remote.config, files)

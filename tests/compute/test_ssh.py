"""OpenSSH as it is driven: whose configuration counts, who is let in, what is said when it fails, what a shell sees."""

from __future__ import annotations

import os
import pty
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guildsync.compute.ssh import Host, Ssh, effective, quoted
from guildsync.errors import GuildsyncError, NotFound, Refused, Unreachable, Usage
from tests.kit.sshd import Client, Sshd, client, sshd
from tests.kit.wire import wire

pytestmark = pytest.mark.servers

PAYLOADS = (
    "$(touch {0})", "`touch {0}`", "; touch {0}", "| touch {0}", "& touch {0} &", "' ; touch {0} ; '", "> {0}", "$IFS",
    '" ; touch {0} ; "', "\\' ; touch {0} ; #", "-oProxyCommand=touch {0}", "~", "*", "{{a,b}}", "!!", "%h", "\\",
    "a b", "\t", "é",
)  # fmt: skip


def there(user: Client, **options: object) -> Ssh:
    return Ssh(Host("far", **options), interactive=False)  # type: ignore[arg-type]


def masters(user: Client) -> list[Path]:
    return [path for path in user.runtime.rglob("*") if path.is_socket()]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_words_arrive_as_they_are(ssh_user: Client, tmp_path: Path, payload: str) -> None:
    word = payload.format(tmp_path / "canary")
    program = "import os,sys;os.write(1,os.fsencode(sys.argv[1]))"
    assert there(ssh_user).run(["python3", "-c", program, word]) == os.fsencode(word)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("word", ["a\nb", "a\0b"])
def test_words_that_no_shell_takes(word: str) -> None:
    with pytest.raises(Usage):
        quoted(["echo", word])


@pytest.mark.parametrize("payload", [p for p in PAYLOADS if p not in ("~", "%h", "é", "\\")])
def test_hosts_users_and_proxies_that_a_shell_could_take_for_more(
    ssh_user: Client, tmp_path: Path, payload: str
) -> None:
    """Some configurations hand them to one: `ProxyCommand nc %h %p`, `Match exec`."""
    word = payload.format(tmp_path / "canary")
    for what in ({"host": word}, {"host": "far", "proxy": word}, {"host": "far", "user": word}):
        if what.get("user") in ("$IFS", "*", "{a,b}", "!!", "a b"):
            continue  # nothing that OpenSSH itself refuses
        with pytest.raises(Usage):
            Ssh(Host(**what), interactive=False).run(["true"])  # type: ignore[arg-type]
    assert not (tmp_path / "canary").exists()


def test_one_connection_serves_all_and_is_ours_alone(ssh_user: Client, ssh_host: Sshd) -> None:
    before = ssh_host.log.count("Accepted publickey")
    for _ in range(3):
        assert there(ssh_user).run(["echo", "hello"]) == b"hello\n"
    assert ssh_host.log.count("Accepted publickey") == before + 1
    (socket,) = masters(ssh_user)
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(socket.stat().st_mode) & 0o077 == 0


def pinned(host: Sshd, path: Path, key: str | None = None) -> Ssh:
    """To `far`, known by the name `i-0` in a file of its own; `key`: what the file says in place of the right key."""
    known = " ".join(host.host_key.with_suffix(".pub").read_text().split()[:2])
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"i-0 {key or known}\n")
    return Ssh(Host("far", known_hosts=str(path), alias="i-0"), interactive=True)


def test_a_pinned_key_alone_counts(ssh_user: Client, ssh_host: Sshd, tmp_path: Path) -> None:
    """Whatever the user's own files say, whoever could be asked, and whatever connection is already there."""
    other = ssh_host.user_key.with_suffix(".pub").read_text().strip()
    assert there(ssh_user).run(["echo", "mine"]) == b"mine\n"
    for number, key in enumerate((other, "# nothing")):
        file = tmp_path / f"100% {number}" / "known hosts"
        before = ssh_host.log.count("Accepted publickey")
        with pytest.raises(Refused):
            pinned(ssh_host, file, key).run(["echo"])
        assert ssh_host.log.count("Accepted publickey") == before
    ssh_user.known_hosts.write_text(f"i-0 {other}\n")
    far = pinned(ssh_host, tmp_path / "100% good" / "known hosts")
    before = ssh_host.log.count("Accepted publickey")
    assert [far.run(["echo", "yes"]) for _ in range(2)] == [b"yes\n"] * 2
    assert ssh_host.log.count("Accepted publickey") == before + 1
    assert effective(far.host)["hostkeyalias"] == ["i-0"]
    assert effective(far.host)["userknownhostsfile"] == [far.host.known_hosts]


def test_a_live_connection_of_the_users_own_is_used(ssh_user: Client, ssh_host: Sshd) -> None:
    with tempfile.TemporaryDirectory(prefix="gs-", dir="/tmp") as directory:
        path = f"{directory}/mine"
        ssh_user.add("shared", ssh_host, ControlPath=path)
        own = ["ssh", "-F", str(ssh_user.config), "-oControlMaster=yes", "-Nf", "shared"]
        subprocess.run(own, check=True, timeout=20, stdin=subprocess.DEVNULL)
        try:
            before = ssh_host.log.count("Accepted publickey")
            assert Ssh(Host("shared"), interactive=False).run(["echo", "hello"]) == b"hello\n"
            assert ssh_host.log.count("Accepted publickey") == before
            assert masters(ssh_user) == []
        finally:
            subprocess.run(["ssh", "-F", "none", "-O", "exit", f"-oControlPath={path}", "x"], check=True, timeout=20)


def test_a_directory_that_others_may_enter_holds_no_sockets(ssh_user: Client) -> None:
    (ssh_user.runtime / "guildsync").mkdir()
    (ssh_user.runtime / "guildsync").chmod(0o755)
    with pytest.raises(Refused, match="only you"):
        there(ssh_user).run(["true"])


def test_a_directory_whose_name_is_too_long_for_sockets_shares_nothing(
    ssh_user: Client, ssh_host: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    before = ssh_host.log.count("Accepted publickey")
    for _ in range(2):
        assert there(ssh_user).run(["echo", "hello"]) == b"hello\n"
    assert ssh_host.log.count("Accepted publickey") == before + 2


@pytest.fixture
def impostor(ssh_host: Sshd) -> Iterator[Sshd]:
    """Another host with another key that would let everybody in whom `ssh_host` does."""
    with sshd() as other:
        (other.directory / "authorized").write_text(ssh_host.user_key.with_suffix(".pub").read_text())
        yield other


def test_an_unknown_host_hears_nothing_of_us(ssh_user: Client, ssh_host: Sshd, impostor: Sshd) -> None:
    ssh_user.add("stranger", impostor, known=False, IdentityFile=str(ssh_host.user_key), StrictHostKeyChecking="no")
    with pytest.raises(Refused, match="not a known host"):
        Ssh(Host("stranger"), interactive=False).run(["true"])
    assert "Accepted" not in impostor.log
    assert "userauth" not in impostor.log.lower()
    assert ssh_user.known_hosts.read_text().count("\n") == 1


def test_a_changed_host_key_is_refused_and_the_line_named(ssh_user: Client, ssh_host: Sshd, impostor: Sshd) -> None:
    ssh_user.add("moved", impostor, known=False, IdentityFile=str(ssh_host.user_key), StrictHostKeyChecking="no")
    kind, key = ssh_host.host_key.with_suffix(".pub").read_text().split()[:2]
    with ssh_user.known_hosts.open("a") as file:
        file.write(f"[127.0.0.1]:{impostor.port} {kind} {key}\n")
    for interactive in (False, True):
        with pytest.raises(Refused, match=f"{ssh_user.known_hosts}:2") as caught:
            Ssh(Host("moved"), interactive).run(["true"])
        assert caught.value.exit_code == 4
    assert "Accepted" not in impostor.log
    assert "userauth" not in impostor.log.lower()


def test_a_jump_through_another_host(ssh_user: Client, ssh_host: Sshd, impostor: Sshd) -> None:
    ssh_user.add("bastion", impostor, IdentityFile=str(ssh_host.user_key))
    before = impostor.log.count("Accepted publickey")
    assert there(ssh_user, proxy="bastion").run(["echo", "hello"]) == b"hello\n"
    assert impostor.log.count("Accepted publickey") == before + 1


def test_a_jump_through_an_unknown_host_is_refused(ssh_user: Client, ssh_host: Sshd, impostor: Sshd) -> None:
    """Strictness holds on the way, too, whatever the user's configuration says."""
    ssh_user.add("bastion", impostor, known=False, IdentityFile=str(ssh_host.user_key), StrictHostKeyChecking="no")
    with pytest.raises((Refused, Unreachable)):
        there(ssh_user, proxy="bastion").run(["true"])
    assert "userauth" not in impostor.log.lower()


def test_what_the_users_configuration_says_wins_over_our_defaults(ssh_user: Client, ssh_host: Sshd) -> None:
    ssh_user.add("mine", ssh_host, Ciphers="chacha20-poly1305@openssh.com", ServerAliveInterval="7")
    words = Ssh(Host("mine"), interactive=False).argv(["true"])
    shown = subprocess.run([words[0], "-G", *words[1:]], capture_output=True, text=True, check=True, timeout=20).stdout
    said = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    assert said["ciphers"] == "chacha20-poly1305@openssh.com"
    assert said["serveraliveinterval"] == "7"
    assert said["stricthostkeychecking"] == "true"
    assert said["batchmode"] == "yes"
    assert said["clearallforwardings"] == "yes"
    asked = Ssh(Host("far"), interactive=True).argv(["true"])
    shown = subprocess.run([asked[0], "-G", *asked[1:]], capture_output=True, text=True, check=True, timeout=20).stdout
    assert "stricthostkeychecking ask\n" in shown
    assert "ciphers aes128-gcm@openssh.com," in shown


@pytest.mark.parametrize(
    ("host", "error", "words"),
    [
        (Host("no.such.host.invalid"), Unreachable, "resolve"),
        (Host("127.0.0.1", port=1), Unreachable, "refused"),
        (Host("far", user="nobody"), Refused, "let us in"),
    ],
)
def test_what_cannot_be_reached(ssh_user: Client, host: Host, error: type[GuildsyncError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        Ssh(host, interactive=False).run(["true"])
    assert caught.value.hint


def test_programs_that_are_not_there_or_fail(ssh_user: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="Python"):
        there(ssh_user).run(["no-such-program"])
    with pytest.raises(GuildsyncError, match="what went wrong"):
        there(ssh_user).run(["sh", "-c", "echo what went wrong >&2; exit 3"])
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nonexistent")
        with pytest.raises(NotFound, match="no program `ssh`"):
            there(ssh_user).run(["true"])


def test_a_host_that_says_nothing_has_a_deadline(ssh_user: Client, ssh_host: Sshd) -> None:
    with wire(ssh_host.port) as line:
        ssh_user.add("slow", ssh_host, Port=str(line.port), HostKeyAlias=f"[127.0.0.1]:{ssh_host.port}")
        slow = Ssh(Host("slow"), interactive=False)
        began = time.monotonic()
        with pytest.raises(Unreachable, match="in time"):
            slow.run(["sleep", "60"], timeout=1.0)
        assert time.monotonic() - began < 30


def test_sessions_are_counted(ssh_user: Client, ssh_host: Sshd) -> None:
    there(ssh_user).run(["true"])
    assert there(ssh_user).sessions(4) == 4
    with sshd({"MaxSessions": "2"}) as narrow:
        ssh_user.add("narrow", narrow)
        through = Ssh(Host("narrow"), interactive=False)
        through.run(["true"])
        assert through.sessions(4) == 2


@pytest.mark.parametrize("shell", ["bash", "dash", "zsh", "fish", "tcsh", "csh"])
def test_the_agents_command_in_every_shell(shell: str) -> None:
    from guildsync.agent.bootstrap import command

    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    given = b'import os\nos.write(1, b"here: " + os.read(0, 9))\0and after'
    ran = subprocess.run(
        [program, "-c", quoted(command("python3"))], input=given, capture_output=True, timeout=30, check=True
    )
    assert ran.stdout == b"here: and after"


def test_nobody_elses_home_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any configuration of the user's own, too."""
    with client(tmp_path) as user:
        for name, value in user.environment().items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Unreachable):
            Ssh(Host("127.0.0.1", port=1), interactive=False).run(["true"])


def test_ssh_asks_on_the_terminal_where_there_is_one(ssh_user: Client, ssh_host: Sshd, tmp_path: Path) -> None:
    """For the passphrase of a key; nobody is asked without a terminal."""
    key = tmp_path / "locked"
    shutil.copy(ssh_host.user_key, key)
    key.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(key)], check=True, timeout=30)
    ssh_user.add("locked", ssh_host, IdentityFile=str(key), IdentityAgent="none")
    with pytest.raises(Refused, match="let us in"):
        Ssh(Host("locked"), interactive=False).run(["true"])
    argv = [sys.executable, "-m", "guildsync", "-H", str(tmp_path / "guild"), "check", "-r", "ssh:locked"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        os.execv(sys.executable, argv)
    said = b""
    while b"passphrase for" not in said:
        assert select.select([terminal], [], [], 30)[0], said
        said += os.read(terminal, 1000)
    os.write(terminal, b"open sesame\n")
    while b"can be used" not in said:
        assert select.select([terminal], [], [], 30)[0], said
        said += os.read(terminal, 1000)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(terminal)

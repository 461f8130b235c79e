"""Makes a few runs as Guild AI lays them out, pushes them, loses the home, and gets all of it back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path


def write(path: Path, data: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def make_run(home: Path, number: int) -> None:
    """A finished training run: source code, flags, output, metrics and a checkpoint."""
    rate = 0.1 / 10**number
    run, started = uuid.uuid4().hex, (int(time.time()) - 3600 + 600 * number) * 1_000_000
    top = home / "runs" / run
    write(top / "train.py", "lr = 0.1\nprint('training with', lr)\n")
    write(top / "checkpoints" / "model.pt", os.urandom(400_000 + 800_000 * number))
    write(top / "metrics.csv", "step,loss\n" + "".join(f"{step},{1 / (step + 1):.4f}\n" for step in range(100)))
    write(top / ".guild" / "output", f"training with {rate:g}\nloss: 0.0{number}\n")
    attributes = {
        "id": run,
        "initialized": started,
        "started": started,
        "stopped": started + 300_000_000,
        "exit_status": 0,
        "flags": f"lr: {rate:g}",
        "label": f"lr={rate:g}",
        "env": f"USER: demo\nAWS_SECRET_ACCESS_KEY: not-a-real-one-{number}",
    }
    for name, value in attributes.items():
        write(top / ".guild" / "attrs" / name, f"{value}\n")
    write(top / ".guild" / "opref", "script:/demo/train.py '' '' train.py")


def guildsync(home: Path, *words: str) -> None:
    print(f"\n$ guildsync {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "guildsync", "--home", str(home), *words], check=False).returncode
    if code:
        sys.exit(code)


def contents(home: Path) -> dict[str, bytes]:
    """Every file of every run but captured environments, which are redacted on their way out by design."""
    found = sorted(path for path in (home / "runs").rglob("*") if path.is_file() and path.name != "env")
    return {str(path.relative_to(home)): path.read_bytes() for path in found}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="guildsync-demo-") as folder:
        os.environ["XDG_CONFIG_HOME"] = folder  # nobody's own configuration
        home, store = Path(folder, "home"), f"file://{folder}/store"
        for number in range(3):
            make_run(home, number)
        before = contents(home)
        guildsync(home, "runs")
        guildsync(home, "push", store)
        guildsync(home, "push", store)
        print("\n$ rm -r the home", flush=True)
        shutil.rmtree(home)
        guildsync(home, "pull", store)
        guildsync(home, "verify", "-r", store)
        guildsync(home, "runs", "list", "-r", store)
        if contents(home) != before:
            sys.exit("error: what came back is not what was pushed")
        print(f"\nAll {len(before)} files came back as they were.")


if __name__ == "__main__":
    main()

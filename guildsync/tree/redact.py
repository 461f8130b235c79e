"""The redacted view: captured environments as every replica but this one sees them."""

from __future__ import annotations

import re

PATHS = frozenset((b".guild/attrs/env", b".guild/ENV"))
"""Files of a run that hold captured environment variables."""

LIMIT = 16 << 20
"""A captured environment larger than this is not read, and so not sent."""

VERSION = 1
"""Of the rules below: what one version shows says nothing about another's."""

REPLACEMENT = b"redacted"

_LINE = re.compile(rb"(?P<before>(?:export )?)(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<sign>: |:$|=)(?P<value>.*)\Z", re.S)
_ALLOWED = re.compile(
    rb"(?:CONDA_DEFAULT_ENV|CONDA_PREFIX|CMD_DIR|CUDA_[A-Z_]+|DISPLAY|HOME|HOSTNAME|HOSTTYPE|LANG|LANGUAGE|LC_[A-Z]+"
    rb"|LD_LIBRARY_PATH|LOCAL_RANK|LOCAL_WORLD_SIZE|LOGNAME|MASTER_ADDR|MASTER_PORT|MKL_[A-Z_]+|NCCL_[A-Z_]+|NUMEXPR_[A-Z_]+"
    rb"|OLDPWD|OMP_[A-Z_]+|OPENBLAS_[A-Z_]+|PATH|PWD|PYTHON[A-Z_]+|RANK|RUN_DIR|RUN_ID|SHELL|SHLVL|SLURM_[A-Z_]+|TERM"
    rb"|TF_[A-Z_]+|TORCH_[A-Z_]+|TMPDIR|TZ|USER|VIRTUAL_ENV|WORLD_SIZE|XLA_[A-Z_]+)\Z"
)
_SUSPICIOUS = re.compile(rb"KEY|TOKEN|SECRET|PASS|CRED|AUTH|COOKIE|SESSION")


def redact(data: bytes) -> bytes:
    """`data`, one variable a line, with the values of all variables that are not known to be harmless replaced.

    Pure and idempotent. Lines that continue the value of a harmless variable stay; all other lines that name no
    variable are dropped.
    """
    out = []
    keeping = False
    for line in data.splitlines(keepends=True):
        body = line.rstrip(b"\r\n")
        found = _LINE.match(body)
        if found is None:
            keeping = keeping and body[:1] in (b"", b" ", b"\t")
            if keeping and body:
                out.append(line)
            continue
        keeping = _harmless(found["name"])
        if keeping:
            out.append(line)
            continue
        sign = b": " if found["sign"].startswith(b":") else b"="
        out.append(found["before"] + found["name"] + sign + REPLACEMENT + line[len(body) :])
    return b"".join(out)


def _harmless(name: bytes) -> bool:
    return _ALLOWED.match(name) is not None and _SUSPICIOUS.search(name) is None

"""Profiles as Snakemake reads them, and the commands of clusters that tests make up."""

import json
import subprocess
import sys
from pathlib import Path

from tests.project import ROOT

READ = """
import json, sys
from snakemake.profiles import ProfileConfigFileParser
with open(sys.argv[1]) as file:
    print(json.dumps(ProfileConfigFileParser().parse(file)))
"""


def profile(name: str, variables: dict[str, str]) -> dict:
    """The entries of a profile of this project, read with these variables."""
    command = [sys.executable, "-c", READ, str(ROOT / "profiles" / name / "profile.yaml")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PARTITIONS = (
    "PartitionName=cpu Default=YES MaxTime=1-00:00:00 MaxCPUsPerNode=UNLIMITED MaxMemPerNode=UNLIMITED State=UP",
    "PartitionName=gpu Default=NO MaxTime=UNLIMITED MaxCPUsPerNode=12 MaxMemPerNode=UNLIMITED State=UP",
)
NODES = ("cpu|4|16000|(null)", "cpu|64+|8000|(null)", "gpu|128|900000|gpu:a100:4(S:0-1),shard:8")


def commands(folder: Path, accounting: bool, age: int = 300, default: bool = True) -> Path:
    """Write commands that answer as those of a cluster do; the folder that holds them."""
    kind = "slurmdbd" if accounting else "none"
    config = f"AccountingStorageType   = accounting_storage/{kind}\nMinJobAge               = {age} sec"
    described = "\n".join(PARTITIONS) if default else "\n".join(PARTITIONS).replace("Default=YES", "Default=NO")
    said = {
        "scontrol": f'case "$*" in *config*) cat <<E\n{config}\nE\n;; *) cat <<E\n{described}\nE\n;; esac',
        "sinfo": "cat <<E\n" + "\n".join(NODES) + "\nE",
        "sacctmgr": 'case "$*" in *association*) printf "lab\\nother\\n" ;; *) echo lab ;; esac',
        "sacct": "exit 1",
        "squeue": "exit 1",
    }
    folder.mkdir()
    for name, text in said.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder

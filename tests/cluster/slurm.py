"""A real Slurm over the nodes of a cluster: controller, accounting and its database on one node, daemons on the others.

Nothing of the machine's own Slurm, munge or MariaDB is used but their programs: every file lies in one folder, and the
processes are those of the nodes, which end with them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.nodes import Cluster, Command, Node, until

HEAD = "head"
PACKAGES = "apt-get install slurm-wlm slurmdbd munge mariadb-server"
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")

# Times are those of a test: a requeued job waits `cred_expire` (2 minutes by default) before it may start again, and a
# heterogeneous job, which TorchX makes of several nodes, is started by the backfill scheduler alone.
SLURM_CONF = """
ClusterName=segue
SlurmctldHost={head}({head_address})
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2
KillWait=30
SlurmdTimeout=20
ReturnToService=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={head_address}
AccountingStoragePass={folder}/munge/socket
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={head}
DbdAddr={head_address}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=root
"""


def why_not() -> str:
    """What this machine lacks for a Slurm; empty if nothing."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    return f"{', '.join(missing)} missing: {PACKAGES}" if missing else ""


class Slurm:
    """Slurm, ready for jobs.

    Args:
        cluster: has a node `head`, where operators type their lines; Slurm runs jobs on the others.
        folder: empty; holds all that the daemons write.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.head = cluster[HEAD]
        self.nodes = {name: node for name, node in cluster.nodes.items() if name != HEAD}
        self.folder = folder
        self._daemons: list[Command] = []
        self._configure()
        self._start_munge()
        self._start_accounting()
        self._start(self.head, "slurmctld", "slurmctld", "-D")
        for node in self.nodes.values():
            self.start_daemon(node)
        until(self._is_ready, f"srun runs on all nodes; see {folder}/*.log", seconds=60)

    def start_daemon(self, node: Node) -> None:
        """What makes a node part of the cluster; it has to be started again after `Node.kill`."""
        self._start(node, f"slurmd-{node.name}", "slurmd", "-D", "-N", node.name)

    def run(self, *command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run an operator's line on the head to its end, whatever its status."""
        return self.head.run(command, self.environment, cwd)

    def ask(self, *command: str | Path, cwd: Path | None = None) -> str:
        """What an operator's line prints; it must succeed."""
        done = self.run(*command, cwd=cwd)
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """An operator's: the virtual environment is active, and this Slurm is the one that is asked."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHX_"))}
        return {**mine, "PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")}

    def _configure(self) -> None:
        places = {"folder": self.folder, "head": self.head.name, "head_address": self.head.address}
        # More cores and memory than there are: jobs ask for those of real machines, and take little.
        nodes = [
            f"NodeName={name} NodeAddr={node.address} CPUs=16 RealMemory=32000" for name, node in self.nodes.items()
        ]
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(nodes="\n".join(nodes), **places))
        # Named, or slurmd looks for a mounted one and does not start where there is none; nothing here uses it.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        accounting = self.folder / "slurmdbd.conf"
        accounting.write_text(SLURMDBD_CONF.format(**places))
        accounting.chmod(0o600)
        for name in ("state", "munge", "database", *(f"spool-{name}" for name in self.nodes)):
            (self.folder / name).mkdir(mode=0o755)

    def _start_munge(self) -> None:
        """One for all nodes: a socket in the file system is reached from every network namespace."""
        folder = self.folder / "munge"
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        files = {"key-file": key, "socket": folder / "socket", "pid-file": folder / "pid", "seed-file": folder / "seed"}
        options = [f"--{name}={path}" for name, path in files.items()]
        self._start(self.head, "munged", "munged", "--foreground", "--force", *options)
        until((folder / "socket").exists, f"munged answers; see {self.folder}/munged.log")

    def _start_accounting(self) -> None:
        data = f"--datadir={self.folder}/database"
        self.ask("mariadb-install-db", "--no-defaults", data, "--user=root", "--skip-test-db")
        local = ["--bind-address=127.0.0.1", f"--socket={self.folder}/database.socket", "--skip-grant-tables"]
        self._start(self.head, "mariadbd", "mariadbd", "--no-defaults", data, "--user=root", *local)
        until((self.folder / "database.socket").exists, f"MariaDB answers; see {self.folder}/mariadbd.log", seconds=60)
        self._start(self.head, "slurmdbd", "slurmdbd", "-D")
        accounting = ("sacctmgr", "--immediate", "add", "cluster", "segue")
        until(lambda: self.run(*accounting).returncode == 0, f"accounting; see {self.folder}/slurmdbd.log", seconds=60)

    def _start(self, node: Node, name: str, *command: str) -> None:
        log = self.folder / f"{name}.log"
        self._daemons.append(node.start(command, log, self.environment))

    def _is_ready(self) -> bool:
        ended = [daemon.log for daemon in self._daemons if not daemon.is_running]
        assert not ended, f"{ended[0].name}: {ended[0].read_text()[-4000:]}"
        said = self.run("srun", f"-N{len(self.nodes)}", "--immediate=5", "hostname").stdout
        return sorted(said.split()) == sorted(self.nodes)


def _path() -> str:
    """Where programs are looked for: the virtual environment first, and daemons where Debian has them."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"

"""A slurm of two nodes with one GPU each, in name, on this machine alone; needs root, and slurm installed."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.harness.children import free_port

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'srun', 'scancel', 'squeue', 'sinfo')

# The processes of a job meet at the name of its first node.
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmctldPidFile={folder}/ctld.pid
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool.%n
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
ReturnToService=2
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 Gres=gpu:1
NodeName={host}-b NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 Gres=gpu:1
PartitionName=part Nodes={host},{host}-b Default=YES State=UP
"""


def why_not() -> str | None:
    """The reason why slurm cannot be started here."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        return f'{missing[0]} is not installed'
    return None if os.geteuid() == 0 else 'slurmd needs root'


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; gives the variables with which srun and others find it."""
    host, folder = socket.gethostname(), folder / 'slurm'
    (folder / 'state').mkdir(parents=True)
    (folder / 'slurm.conf').write_text(
        CONF.format(folder=folder, host=host, ports=[free_port() for _ in range(3)])
    )
    (folder / 'gres.conf').write_text('Name=gpu File=/dev/null\n')
    (folder / 'key').write_bytes(os.urandom(1024))
    (folder / 'key').chmod(0o600)
    munge = [f'--{name}-file={folder}/{name}' for name in ('key', 'log', 'pid', 'seed')]
    commands = [
        ['munged', '--foreground', '--force', f'--socket={folder}/munge.socket', *munge],
        ['slurmctld', '-D'],
        *(['slurmd', '-D', '-N', name] for name in (host, f'{host}-b')),
    ]
    variables = dict(SLURM_CONF=str(folder / 'slurm.conf'))
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with ExitStack() as daemons:
        for command in commands:
            daemon = daemons.enter_context(subprocess.Popen(command, env=os.environ | variables, **quiet))
            daemons.callback(daemon.terminate)
            # The next one needs its socket.
            time.sleep(1)
        yield variables

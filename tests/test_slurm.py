"""Jobs of deploy/slurm/ under a real Slurm of one node, where Debian's slurm-wlm is installed."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tf_autoctx.models import layers  # noqa: F401  # which saved networks are made of

ROOT = pathlib.Path(__file__).resolve().parent.parent
DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits as long as its credentials are valid.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=1
NodeName={host} CPUs=4
PartitionName=main Nodes=ALL Default=YES State=UP
"""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(shutil.which(name) for name in DAEMONS),
    reason="a Slurm of one node needs slurm-wlm and root",
)


def free_ports():
    with contextlib.ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Runs a command of Slurm, and returns what it prints."""
    folder = tmp_path_factory.mktemp("slurm")
    for above in (folder, folder.parent):
        above.chmod(0o755)  # or munged refuses its socket
    host, configuration = socket.gethostname().split(".")[0], folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports()))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = {"key-file": key, "socket": "munge.socket", "pid-file": "munge.pid"}
    munge |= {"log-file": "munge.log", "seed-file": "munge.seed"}
    flags = [f"--{name}={folder / place}" for name, place in munge.items()]
    env = {**os.environ, "SLURM_CONF": str(configuration), "TF_CONFIG": ""}
    commands = (
        ["munged", "--force", "--foreground", *flags],
        ["slurmctld", "-D", "-c", "-L", folder / "slurmctld.log"],
        ["slurmd", "-D", "-c", "-N", host, "-L", folder / "slurmd.log"],
    )
    processes = []

    def run(*command):
        words = [*map(str, command)]
        return subprocess.run(words, env=env, check=True, capture_output=True, text=True).stdout

    try:
        for command in commands:
            with open(folder / f"{command[0]}.out", "w") as told:
                processes.append(subprocess.Popen(command, env=env, stdout=told, stderr=told))
            time.sleep(0.5)
        wait_for(lambda: "idle" in run("sinfo", "--noheader", "--format=%T"), processes)
        yield run
        run("scancel", "--user=root")
        wait_for(lambda: not run("squeue", "--noheader"), processes)
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(timeout=20)


def wait_for(condition, processes=(), seconds=600):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it takes too long"
        assert all(process.poll() is None for process in processes), "a daemon has ended"
        time.sleep(0.1)


def submitted(slurm, folder, script, flags, command):
    """Number of a job of deploy/slurm/, whose output goes to job.out in a folder."""
    where = (f"--chdir={ROOT}", f"--output={folder}/job.out", "--parsable")
    return slurm("sbatch", *where, *flags, ROOT / "deploy" / "slurm" / script, *command).strip()


def state(slurm, job):
    """{name: value} of a job."""
    told = slurm("scontrol", "show", "job", job)
    return dict(word.split("=", 1) for word in told.split() if "=" in word)


def completed(slurm, job, folder):
    wait_for(lambda: state(slurm, job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    told = (folder / "job.out").read_text()
    assert state(slurm, job)["JobState"] == "COMPLETED", told[-3000:]
    return told


CODE = """
import sys
sys.path.insert(0, "tests")
import running
with running.unfinished():
    running.train("fetal_head", *sys.argv[1:])
"""
TRAIN = (
    sys.executable,
    "-c",
    CODE,
    "--level=1",
    "--base_filters=2",
    "--steps=30",
    "--samples_per_epoch=4",
    "--precision=float32",
    "--phantom_size=24,16,28",
    "--phantom_cases=3,2",
)


def history(folder):
    """Lines of the epochs of a run: their losses, and the seconds that they took."""
    path = folder / "run" / "level_1" / "history.csv"
    return path.read_text().splitlines()[1:] if path.exists() else []


def test_two_tasks_killed_and_requeued_train_what_unbroken_ones_do(slurm, tmp_path):
    jobs, folders = {}, {name: tmp_path / name for name in ("unbroken", "killed")}
    for name, folder in folders.items():
        folder.mkdir()
        flags, run = ("--nodes=1", "--ntasks-per-node=2"), f"--work_dir={folder / 'run'}"
        jobs[name] = submitted(slurm, folder, "train.sbatch", flags, (*TRAIN, run))
    wait_for(lambda: len(history(folders["killed"])) > 1)
    slurm("scontrol", "requeue", jobs["killed"])
    first = history(folders["killed"])[0]
    told = {name: completed(slurm, job, folders[name]) for name, job in jobs.items()}
    started = "on 2 CPU devices, precision float32, batch 1 x 2 replicas"
    assert [each.count(started) for each in told.values()] == [1, 2]
    assert state(slurm, jobs["killed"])["Restarts"] == "1"
    # It went on: the first epoch was not trained again, which would have taken another time.
    assert history(folders["killed"])[0] == first and len(history(folders["killed"])) == 15
    weights, those = (
        keras.models.load_model(folder / "run" / "level_1" / "model.keras").get_weights()
        for folder in folders.values()
    )
    for one, other in zip(weights, those, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_array_is_told_its_parts(slurm, tmp_path):
    code = "import pathlib, sys; pathlib.Path(sys.argv[1], ' '.join(sys.argv[2:])).touch()"
    (tmp_path / "told").mkdir()
    command = (sys.executable, "-c", code, tmp_path / "told", "--resume")
    job = submitted(slurm, tmp_path, "parts.sbatch", ("--array=0-1",), command)
    wait_for(lambda: not slurm("squeue", "--noheader", f"--job={job}"))
    told = sorted(path.name for path in (tmp_path / "told").iterdir())
    assert told == [f"--resume --num_parts=2 --part_id={k}" for k in (0, 1)]

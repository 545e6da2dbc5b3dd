"""TF_CONFIG of the variables of engines, as they are in a task of Slurm and a pod of Kubernetes."""

import json
import os
import re
import subprocess
import sys
import types

import pytest
import running
import tensorflow as tf
import test_training

from tf_autoctx.errors import UserError
from tf_autoctx.systems.shared import opening
from tf_autoctx.training import cluster, devices

# Of the second of three tasks, two of which are on node9; see tests/test_slurm.py for real ones.
SLURM = {
    "SLURM_JOB_ID": "41007",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURMD_NODENAME": "node9",
    "SLURM_STEP_NODELIST": "node[9-10]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_STEP_NUM_TASKS": "3",
}
KUBERNETES = {
    "JOB_COMPLETION_INDEX": "1",
    "TF_AUTOCTX_SERVICE": "fetal-head",
    "TF_AUTOCTX_WORKERS": "2",
}
TINY = (
    "--level=1",
    "--steps=2",
    "--samples_per_epoch=2",
    "--base_filters=2",
    "--precision=float32",
    "--phantom_size=24,16,28",
    "--phantom_cases=3,2",
)


@pytest.fixture
def told(monkeypatch):
    """TF_CONFIG of variables, as an object; None: there is none."""
    for name in ("TF_CONFIG", *cluster.SLURM, "SLURM_STEP_NUM_TASKS", *cluster.KUBERNETES):
        monkeypatch.delenv(name, raising=False)

    def run(variables):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            return json.loads(cluster.tf_config() or "null")

    return run


def test_a_task_of_slurm_is_the_worker_on_its_node(told):
    """Ports from 10000 on, 20 for each of 1000 jobs; nodes in whatever order, but the same one."""
    workers = ["node10:10140", "node9:10140", "node9:10141"]
    places = (("node9", "0", "0", 1), ("node9", "1", "1", 2), ("node10", "0", "2", 0))
    for node, local, rank, index in places:
        changed = {"SLURMD_NODENAME": node, "SLURM_LOCALID": local, "SLURM_PROCID": rank}
        assert told(SLURM | changed) == {
            "cluster": {"worker": workers},
            "task": {"type": "worker", "index": index},
        }


def test_tasks_that_go_round_the_nodes_are_found_too(told):
    """`srun --distribution=cyclic`: of ranks 0 to 3, 1 and 3 are on b."""
    cyclic = {"SLURM_STEP_NODELIST": "a,b", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    found = []
    for rank in range(4):
        place = {"SLURMD_NODENAME": "ab"[rank % 2], "SLURM_LOCALID": str(rank // 2)}
        made = told(SLURM | cyclic | place | {"SLURM_STEP_NUM_TASKS": "4"})
        found.append(made["cluster"]["worker"][made["task"]["index"]])
    assert found == ["a:10140", "b:10140", "a:10141", "b:10141"]


def test_steps_of_a_job_have_ports_of_their_own(told):
    first, second = (
        {
            worker.split(":")[1]
            for worker in told(SLURM | {"SLURM_STEP_ID": step})["cluster"]["worker"]
        }
        for step in "01"
    )
    assert first and second and not first & second


def test_a_pod_of_kubernetes_is_the_worker_of_its_index(told):
    workers = ["fetal-head-0.fetal-head:2222", "fetal-head-1.fetal-head:2222"]
    assert told(KUBERNETES) == {
        "cluster": {"worker": workers},
        "task": {"type": "worker", "index": 1},
    }


def test_what_is_alone_has_no_cluster(told):
    assert told({}) is None
    assert told({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}) is None  # no step: sbatch alone
    assert told({"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert told({"JOB_COMPLETION_INDEX": "3"}) is None  # of parts or folds
    assert told(KUBERNETES | {"JOB_COMPLETION_INDEX": "0", "TF_AUTOCTX_WORKERS": "1"}) is None


def test_a_tf_config_wins(told):
    given = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    for engine in (SLURM, KUBERNETES):
        assert told({"TF_CONFIG": json.dumps(given), **engine}) == given
        assert told({"TF_CONFIG": "{}", **engine}) != given


@pytest.mark.parametrize("name", [name for name in SLURM if name != "SLURM_STEP_NUM_TASKS"])
def test_a_variable_of_slurm_that_is_missing_is_named(told, name):
    with pytest.raises(UserError, match=rf"^Slurm: {name} is not set; expected SLURM_JOB_ID, "):
        told({key: value for key, value in SLURM.items() if key != name})


@pytest.mark.parametrize("name", KUBERNETES)
def test_a_variable_of_kubernetes_that_is_missing_is_named(told, name):
    with pytest.raises(UserError, match=rf"^Kubernetes: {name} is not set; expected JOB_COMPLET"):
        told({key: value for key, value in KUBERNETES.items() if key != name})


def test_variables_that_contradict_each_other_are_one_sentence(told):
    with pytest.raises(UserError, match="this task, node8:10141, is none of the workers node10:"):
        told(SLURM | {"SLURMD_NODENAME": "node8"})
    for wrong in ({"JOB_COMPLETION_INDEX": "2"}, {"TF_AUTOCTX_WORKERS": "two"}):
        with pytest.raises(UserError, match="expected the completions of the Job"):
            told(KUBERNETES | wrong)


def test_the_strategy_is_made_of_what_an_engine_tells(told, monkeypatch):
    """One of several processes is never made alone, unless it is told so."""
    made = []
    monkeypatch.setattr(
        tf.distribute,
        "MultiWorkerMirroredStrategy",
        lambda: made.append(json.loads(devices.os.environ["TF_CONFIG"])["task"]["index"]),
    )
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    assert devices.strategy("single") is tf.distribute.get_strategy() and not made
    for name in ("auto", "multi_worker"):
        monkeypatch.setenv("TF_CONFIG", "")
        devices.strategy(name)
    assert made == [1, 1]


def start(tmp_path, *words, **environment):
    """A training of another process, which is never to come to its first step."""
    flags = [f"--work_dir={tmp_path / 'run'}", *TINY, *words]
    command = [sys.executable, "train_fetal_head.py", *flags]
    variables = {**os.environ, **environment}
    return subprocess.Popen(
        running.last_of_each(command),
        cwd=running.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=variables,
    )


def of_two(index, ports):
    """TF_CONFIG of a worker on this machine."""
    workers = [f"localhost:{port}" for port in ports]
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": workers}, "task": task})


def test_workers_of_other_flags_and_folders_are_refused(tmp_path):
    """As of `srun -n2 ... --fold=$((SLURM_PROCID+1)) --work_dir=runs/fold_...`."""
    ports = test_training.free_ports(2)
    workers = [
        start(
            tmp_path,
            "--folds=2",
            f"--fold={k + 1}",
            f"--work_dir={tmp_path / str(k)}",
            TF_CONFIG=of_two(k, ports),
        )
        for k in range(2)
    ]
    told = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [1, 1], told
    for each in told:
        assert "Traceback" not in each
        assert (
            f"one was started with --fold=1, --work_dir={tmp_path / '0'}, another with --fold=2, "
            f"--work_dir={tmp_path / '1'}; expected the same command of all, or "
            "--strategy=single for a training each."
        ) in each
    assert not [*tmp_path.iterdir()]


def test_a_port_that_is_taken_is_one_sentence(monkeypatch):
    def taken():  # what TensorFlow 2.21 raises
        raise tf.errors.UnknownError(None, None, "Could not start gRPC server")

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", taken)
    monkeypatch.setenv("TF_CONFIG", of_two(0, (7, 8)))
    with pytest.raises(UserError, match=r"Could not start gRPC server for TF_CONFIG .*localhost:7"):
        devices.strategy("auto")


def test_the_others_wait_until_the_chief_has_finished(monkeypatch):
    order = []
    monkeypatch.setattr(opening.Opened, "_finish", lambda *_: order.append("finished"))
    monkeypatch.setattr(cluster, "wait_for_all", lambda strategy: order.append(strategy))
    for chief in (True, False):
        session = types.SimpleNamespace(strategy=chief)
        monkeypatch.setattr(devices, "is_chief", lambda strategy: strategy)
        opening.Opened(None, session, [], None).finish(None)
    assert order == ["finished", True, False]


def test_workers_of_other_data_or_precision_are_refused(tmp_path, monkeypatch):
    """They compare both as soon as they are known, before anything is cached."""
    compared = []

    def require_alike(strategy, told):
        compared.append(told)
        if len(compared) == 2:
            raise UserError("they differ")

    monkeypatch.setattr(cluster, "require_alike", require_alike)
    with pytest.raises(SystemExit):
        running.train("fetal_head", f"--work_dir={tmp_path}", *TINY)
    started_with, found = compared
    assert started_with["work_dir"] == f"`work_dir={tmp_path.resolve()}`"
    assert "data_dir" not in started_with and started_with["system"] == "the system fetal_head"
    assert re.fullmatch("data [0-9a-f]{12}", found["data"])
    assert found["precision"] == "`precision=float32`"
    assert not (tmp_path / "cache").exists() and not (tmp_path / "config.json").exists()

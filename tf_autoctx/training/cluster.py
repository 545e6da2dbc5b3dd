"""The cluster that this process was started in, by whatever engine, as TF_CONFIG, and what its
workers agree on before they train."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tf_autoctx.errors import UserError

SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURMD_NODENAME",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE",
)
KUBERNETES = ("JOB_COMPLETION_INDEX", "TF_AUTOCTX_SERVICE", "TF_AUTOCTX_WORKERS")
PORT = 2222  # of every worker in Kubernetes, where each has an address of its own


def tf_config() -> str:
    """TF_CONFIG, if it names a cluster, or what stands for it in the environment: of Slurm, in a
    step of several tasks, or of Kubernetes, in an Indexed Job; "" where this process is alone.

    Raises:
      UserError: some variables of an engine are missing, or contradict each other.
    """
    given = os.environ.get("TF_CONFIG", "").strip()
    if given not in ("", "{}"):
        return given
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _of_slurm()
    if any(os.environ.get(name) for name in KUBERNETES[1:]):
        return _of_kubernetes()
    return ""


def _of_slurm() -> str:
    """TF_CONFIG of a task of a step.

    `SlurmClusterResolver` sorts nodes by their letters, node10 before node9, and takes for granted
    that tasks fill one node after the other. Which of its workers this task is, its node and its
    number there tell, not its rank.
    """
    values = _required("Slurm", SLURM)
    tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
    # Jobs that share a node differ, and steps of a job.
    first = 10_000 + 20 * ((int(values["SLURM_JOB_ID"]) + 37 * int(values["SLURM_STEP_ID"])) % 1000)
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=first,
        # It would count GPUs with nvidia-smi, fail without it, and want one for each task.
        gpus_per_node=tasks,
        gpus_per_task=1,
        auto_set_gpu=False,
    )
    workers = resolver.cluster_spec().job_tasks("worker")
    own = f"{values['SLURMD_NODENAME']}:{first + int(values['SLURM_LOCALID'])}"
    if own not in workers:
        raise UserError(
            f"Slurm: this task, {own}, is none of the workers {', '.join(workers)}; expected "
            "SLURM_STEP_NODELIST and SLURM_STEP_TASKS_PER_NODE to name it."
        )
    return _written(workers, workers.index(own))


def _of_kubernetes() -> str:
    """TF_CONFIG of a pod of an Indexed Job, which has the name of its headless service."""
    index, service, count = _required("Kubernetes", KUBERNETES).values()
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(
            f"Kubernetes: JOB_COMPLETION_INDEX is {index}, TF_AUTOCTX_WORKERS is {count}; expected "
            "the completions of the Job, and an index below."
        )
    workers = [f"{service}-{k}.{service}:{PORT}" for k in range(int(count))]
    return _written(workers, int(index)) if len(workers) > 1 else ""


def _required(engine: str, names: Sequence[str]) -> dict[str, str]:
    """Variables of the environment; raises a `UserError` where one is missing."""
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"{engine}: {', '.join(missing)} is not set; expected {', '.join(names)}, or "
            "`strategy=single`."
        )
    return {name: os.environ[name] for name in names}


def _written(workers: Sequence[str], index: int) -> str:
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": [*workers]}, "task": task})


def require_alike(strategy: tf.distribute.Strategy, told: Mapping[str, str]) -> None:
    """Waits for all workers, and compares what they were started with: processes of one step may
    have been meant for a training each.

    Args:
      strategy: of the training; but for several workers there is nothing to compare.
      told: {what it is: how a sentence names it}, such as {"fold": "`fold=1`"}.

    Raises:
      UserError: they differ; each worker raises it.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    first, *others = map(json.loads, gathered(strategy, json.dumps(told)))
    for other in others:
        differ = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if differ:
            one, another = (
                ", ".join(each.get(name, f"no `{name}`") for name in differ[:3])
                for each in (first, other)
            )
            raise UserError(
                "the workers of a cluster train one model together, and of these one was started "
                f"with {one}, another with {another}; expected the same command of all, or "
                "`strategy=single` for a training each."
            )


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns once all workers have come here, however long that takes."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        _rows(strategy, np.zeros(1))


def gathered(strategy: tf.distribute.Strategy, text: str) -> list[str]:
    """The texts of the processes of all replicas, in their order; each waits for the others."""
    own = np.frombuffer(text.encode(), np.uint8)
    length = int(_rows(strategy, np.array([own.size])).max())
    rows = _rows(strategy, np.pad(own, (0, length - own.size)))
    return [bytes(row).rstrip(b"\0").decode() for row in rows.astype(np.uint8)]


def _rows(strategy: tf.distribute.Strategy, own: np.ndarray) -> np.ndarray:
    """(replicas, n) of each replica's (n,): a sum, as is taken of gradients, of its row and 0."""
    return _table(strategy, tf.constant(own, tf.float64)).numpy()


@tf.function(autograph=False)
def _table(strategy: tf.distribute.Strategy, values: tf.Tensor) -> tf.Tensor:
    def row() -> tf.Tensor:
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        of_replicas = tf.one_hot(number, strategy.num_replicas_in_sync, dtype=tf.float64)
        return of_replicas[:, None] * values

    return strategy.reduce("SUM", strategy.run(row), axis=None)

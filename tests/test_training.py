"""The loop, its checkpoints and its strategies, on a network of two weights; the run folder."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_autoctx.errors import FieldError, UserError, sentence
from tf_autoctx.training import devices, loop, runs
from tf_autoctx.training.configuration import Settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTINGS = {
    "seed": 0,
    "steps": 12,
    "samples_per_epoch": 4,
    "checkpoint_steps": 3,
    "batch_size": 1,
    "learning_rate": 0.1,
    "learning_rate_decay": "polynomial",
    "beta_1": 0.9,
    "patience": 0,
}


class Line:
    """Fits y = truth * x: sample n of the data is x = n % 5 - 2.

    Args:
      settings: of the loop.
      stop_at: the step in which the loss is no number, as if the run were killed.
      truth: the slope.
      scores: of the validations; by default how near the slope is.
      keeps_last: see `loop.Task`.
      spoils_at: the update after which a weight is no number.
    """

    validates = True
    later = 0.0

    def __init__(
        self, settings, stop_at=None, truth=3.0, scores=(), keeps_last=False, spoils_at=None
    ):
        self.network = keras.Sequential(
            [keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")]
        )
        self.adam = loop.adam(settings, self.network.trainable_variables)
        self.networks, self.optimizers = {"network": self.network}, {"adam": self.adam}
        self.settings, self.stop_at, self.truth = settings, stop_at, truth
        self.scores, self.keeps_last, self.spoils_at = iter(scores), keeps_last, spoils_at

    def batches(self, first_step, context):
        per_step = self.settings.batch_size * context.num_replicas_in_sync
        x = tf.cast(tf.range(self.settings.steps * per_step) % 5 - 2, tf.float32)
        x = x[first_step * per_step :]
        data = tf.data.Dataset.from_tensor_slices({"x": x[:, None], "y": self.truth * x[:, None]})
        if self.stop_at is not None:
            data = data.enumerate().map(
                lambda i, d: {
                    "x": d["x"] / tf.where(i + first_step < self.stop_at, 1.0, 0.0),
                    "y": d["y"],
                }
            )
        return data.batch(self.settings.batch_size, drop_remainder=True).shard(
            context.num_input_pipelines, context.input_pipeline_id
        )

    def augmented(self, batch):
        return batch

    def step(self, batch):
        def losses():
            y = tf.cast(self.network(batch["x"], training=True), tf.float32)
            return tf.reduce_mean(tf.square(y - batch["y"]), axis=-1)

        variables = self.network.trainable_variables
        logs = loop.minimize({"loss": loop.Term(self.adam, variables, losses)})
        if self.spoils_at is not None:
            added = tf.where(self.adam.iterations == self.spoils_at, np.nan, 0.0)
            variables[0].assign_add([[added]])
        return logs

    def validate(self):
        slope = float(self.network.get_weights()[0][0, 0])
        return {"DSC": next(self.scores, -abs(slope - self.truth))}


def fit(directory, line=None, **changes):
    """Trains a line of the given arguments: its weights at the end, and the history."""
    settings = Settings(**{**SETTINGS, **changes})
    keras.utils.set_random_seed(0)
    task = Line(settings, **(line or {}))
    history = loop.fit(task, directory, tf.distribute.get_strategy(), settings)
    return flat(task.network.get_weights()), history


def flat(weights):
    return np.concatenate([np.ravel(array) for array in weights])


def last_weights(directory):
    """Weights in the newest checkpoint, without the loop."""
    path = tf.train.latest_checkpoint(directory / "last")
    return {
        name: tf.train.load_variable(path, name)
        for name, shape in tf.train.list_variables(path)
        if "VARIABLE" in name and shape
    }


def test_first_adam_step_moves_each_weight_by_the_learning_rate(tmp_path):
    weights, history = fit(tmp_path, steps=1, samples_per_epoch=1, learning_rate_decay="constant")
    # Sample 0 is x = -2, y = -6: the prediction -2 is too high: the kernel rises, the bias falls.
    np.testing.assert_allclose(weights, [1.1, -0.1], atol=1e-5)
    assert history[0]["loss"] == pytest.approx(16.0)


@pytest.mark.parametrize("decay", ["constant", "polynomial"])
def test_adam_is_that_of_keras(decay):
    settings = Settings(**{**SETTINGS, "learning_rate_decay": decay, "beta_1": 0.5})
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(6, 3, 4))
    schedule = keras.optimizers.schedules.PolynomialDecay(
        0.1, settings.steps, end_learning_rate=0.0
    )
    ends = []
    for make in (
        lambda variables: loop.adam(settings, variables),
        lambda _: keras.optimizers.Adam(0.1 if decay == "constant" else schedule, beta_1=0.5),
    ):
        variable = keras.Variable(start, dtype="float32")
        optimizer = make([variable])
        for gradient in gradients:
            optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
        ends.append(variable.numpy())
    np.testing.assert_allclose(*ends, atol=1e-5)
    assert np.abs(ends[0] - start).min() > 1e-3


def test_history_is_logged_everywhere(tmp_path):
    _, history = fit(tmp_path, steps=40)
    assert len(history) == 10  # 40 samples, 4 an epoch
    logged = np.genfromtxt(tmp_path / "history.csv", delimiter=",", names=True)
    np.testing.assert_allclose(logged["loss"], [logs["loss"] for logs in history])
    assert history[-1]["loss"] < history[0]["loss"]
    assert list((tmp_path / "tensorboard" / "train").glob("events*"))


def without_seconds(history):
    return [
        {name: value for name, value in logs.items() if not name.startswith("seconds")}
        for logs in history
    ]


@pytest.mark.parametrize("stop_at", [2, 5, 8, 11])
def test_a_stopped_run_ends_in_the_same_weights(tmp_path, stop_at):
    whole, history = fit(tmp_path / "whole")
    with pytest.raises(UserError, match=f"step {stop_at + 1};.*last good checkpoint"):
        fit(tmp_path / "broken", {"stop_at": stop_at})
    resumed, resumed_history = fit(tmp_path / "broken")
    np.testing.assert_array_equal(whole, resumed)
    assert without_seconds(history) == without_seconds(resumed_history)
    a, b = last_weights(tmp_path / "whole"), last_weights(tmp_path / "broken")
    assert a.keys() == b.keys() and len(a) >= 6  # two weights, two slots of Adam each
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_the_last_weights_are_kept_where_the_task_says_so(tmp_path):
    for keeps_last in (False, True):
        line = {"scores": [0.9, 0.5, 0.1], "keeps_last": keeps_last}
        weights, history = fit(tmp_path / str(keeps_last), line)
        assert [logs["val_DSC"] for logs in history] == [0.9, 0.5, 0.1]
        ended = {float(w.ravel()[0]) for w in last_weights(tmp_path / str(keeps_last)).values()}
        assert set(weights.tolist()) <= ended if keeps_last else not set(weights.tolist()) & ended


def test_a_finished_run_is_not_trained_again(tmp_path):
    weights, _ = fit(tmp_path)
    again, history = fit(tmp_path, {"stop_at": 0})
    np.testing.assert_array_equal(weights, again)
    assert len(history) == 3


def test_the_best_weights_win(tmp_path):
    constant = {"learning_rate_decay": "constant"}
    after_one_epoch, _ = fit(tmp_path / "one", steps=4, **constant)
    after_three, _ = fit(tmp_path / "three", **constant)
    best, _ = fit(tmp_path / "best", {"scores": [0.9, 0.5, 0.8]}, **constant)
    np.testing.assert_array_equal(best, after_one_epoch)
    assert not np.array_equal(best, after_three)


def test_early_stopping_remembers_over_a_resume(tmp_path):
    # Best at epoch 1; patience 2 ends the run after epoch 3 of 5, also if it is broken after 2.
    scores = [0.5, 0.4, 0.3, 0.2, 0.1]
    many = {"steps": 20, "patience": 2}
    _, whole = fit(tmp_path / "whole", {"scores": scores}, **many)
    with pytest.raises(UserError):
        fit(tmp_path / "broken", {"stop_at": 9, "scores": scores}, **many)
    _, resumed = fit(tmp_path / "broken", {"scores": scores[2:]}, **many)
    assert len(whole) == len(resumed) == 3


def test_more_steps_go_on_after_patience_ended_a_training(tmp_path, capsys):
    scores = [0.5, 0.4, 0.3, 0.6, 0.2, 0.1, 0.0]
    _, short = fit(tmp_path, {"scores": scores}, steps=20, patience=2)
    assert len(short) == 3
    _, longer = fit(tmp_path, {"scores": scores[3:]}, steps=40, patience=2)
    assert "goes on from step 12 to 40; its learning rate begins again" in capsys.readouterr().out
    assert [logs["val_DSC"] for logs in longer] == scores[:6]  # patience counts anew
    # Broken off and resumed, it is as if unbroken.
    fit(tmp_path / "broken", {"scores": scores}, steps=20, patience=2)
    with pytest.raises(UserError):
        given = {"stop_at": 17, "scores": scores[3:]}
        fit(tmp_path / "broken", given, steps=40, patience=2)
    _, resumed = fit(tmp_path / "broken", {"scores": scores[4:]}, steps=40, patience=2)
    assert [logs["val_DSC"] for logs in resumed] == scores[:6]


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    whole, _ = fit(tmp_path)
    newest = pathlib.Path(tf.train.latest_checkpoint(tmp_path / "last") + ".data-00000-of-00001")
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    resumed, history = fit(tmp_path)
    assert "damaged" in caplog.text and newest.name.split(".")[0] in caplog.text
    np.testing.assert_array_equal(whole, resumed)
    assert len(history) == 3


def test_a_damaged_list_of_checkpoints_does_not_hide_them(tmp_path):
    fit(tmp_path)
    (tmp_path / "last" / "checkpoint").write_text("model_checkpo")
    _, history = fit(tmp_path, {"stop_at": 0})  # nothing is trained again
    assert len(history) == 3


def test_no_readable_checkpoint_is_one_sentence(tmp_path):
    fit(tmp_path)
    for file in (tmp_path / "last").glob("*.data*"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="none of its 2 checkpoints can be read"):
        fit(tmp_path)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(UserError, match="a weight was no longer finite at step 7"):
        fit(tmp_path, {"spoils_at": 7}, checkpoint_steps=1)
    assert tf.train.latest_checkpoint(tmp_path / "last").endswith("step-6")


def test_a_damaged_best_checkpoint_gives_way_to_the_newest(tmp_path, caplog):
    fit(tmp_path)
    for file in (tmp_path / "best").glob("*.data*"):
        file.write_bytes(b"")
    _, history = fit(tmp_path)
    assert len(history) == 3 and "newest checkpoint" in caplog.text


def test_float16_scales_the_loss(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        settings = Settings(**{**SETTINGS, "steps": 40})
        task = Line(settings)
        assert isinstance(task.adam, keras.optimizers.LossScaleOptimizer)
        history = loop.fit(task, tmp_path, tf.distribute.get_strategy(), settings)
    finally:
        keras.config.set_dtype_policy("float32")
    assert history[-1]["loss"] < history[0]["loss"]


def test_polynomial_decay_ends_at_zero():
    optimizer = loop.adam(Settings(**SETTINGS), [keras.Variable(1.0)])
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
    optimizer.iterations.assign(6)
    assert float(optimizer.learning_rate) == pytest.approx(0.05)


# The best weights are not the last.
SCORES = [0.9, 0.5, 0.8, 0.1, 0.1, 0.1]
WORKER = textwrap.dedent("""
    import pathlib
    import sys
    import tensorflow as tf
    if sys.argv[2] == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
    sys.path.insert(0, "tests")
    from tf_autoctx.training import devices, loop
    from tf_autoctx.training.configuration import Settings
    strategy = devices.strategy(sys.argv[2])
    import test_training as t
    settings = Settings(**{**t.SETTINGS, "samples_per_epoch": 8})
    with strategy.scope():
        task = t.Line(settings, scores=t.SCORES)
    loop.fit(task, pathlib.Path(sys.argv[1]), strategy, settings)
    weights = t.flat(task.network.get_weights())
    print("WEIGHTS", *weights, flush=True)
    print("REPLICAS", strategy.num_replicas_in_sync, flush=True)
    """)


def worker(directory, strategy, **environment):
    command = [sys.executable, "-c", WORKER, str(directory), strategy]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, **environment},
    )


def outcome(process):
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error[-3000:]
    return {
        line.split()[0]: [float(word) for word in line.split()[1:]]
        for line in output.splitlines()
        if line[:8] in ("WEIGHTS ", "REPLICAS")
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one device trains with twice the batch."""
    assert devices.strategy("single").num_replicas_in_sync == 1
    changes = {"batch_size": 2, "samples_per_epoch": 8}
    return fit(tmp_path_factory.mktemp("alone"), {"scores": SCORES}, **changes)[0]


def test_mirrored_replicas_train_what_one_device_trains_with_twice_the_batch(alone, tmp_path):
    mirrored = outcome(worker(tmp_path / "mirrored", "mirrored"))
    assert mirrored["REPLICAS"] == [2.0]
    np.testing.assert_allclose(mirrored["WEIGHTS"], alone, rtol=1e-6)


def cluster(index, ports):
    workers = [f"localhost:{port}" for port in ports]
    return {
        "TF_CONFIG": json.dumps(
            {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        )
    }


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_two_workers_train_what_one_process_trains_with_twice_the_batch(alone, tmp_path):
    ports = free_ports(2)
    workers = [worker(tmp_path / "two", "multi_worker", **cluster(i, ports)) for i in range(2)]
    first, second = [outcome(process) for process in workers]
    assert first["REPLICAS"] == [2.0] and first == second
    # The mean over two samples is summed in another order: one rounding.
    np.testing.assert_allclose(first["WEIGHTS"], alone, rtol=1e-6)
    again = [worker(tmp_path / "two", "multi_worker", **cluster(i, ports)) for i in range(2)]
    assert [outcome(process)["WEIGHTS"] for process in again] == [
        first["WEIGHTS"]
    ] * 2  # each finds the best weights
    with pytest.raises(UserError, match="began on 2 replicas, now there are 1"):
        fit(tmp_path / "two", batch_size=2)


def test_multi_worker_without_a_cluster_is_one_sentence(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(FieldError, match="strategy=multi_worker: TF_CONFIG is not set"):
        devices.strategy("multi_worker")
    for wrong in ("{", '{"cluster": {"worker": []}, "task": {"type": "worker", "index": 0}}'):
        monkeypatch.setenv("TF_CONFIG", wrong)
        with pytest.raises(FieldError, match=r"TF_CONFIG is \{"):
            devices.strategy("multi_worker")


FLAGS = {
    "seed": 1,
    "variant": "USegNet",
    "level": 2,
    "work_dir": "a",
    "phantom_size": (1, 2, 3),
}


def making(system="fetal_head", fingerprint="abc", **changes):
    return runs.Making(system, FLAGS | changes, fingerprint, {"level", "work_dir"})


def trained(folder):
    """Marks a run folder as one in which something was trained, which alone binds it."""
    (folder / "level_1" / "last").mkdir(parents=True)
    (folder / "level_1" / "last" / "step-3.index").write_bytes(b"")


def test_run_folder_refuses_other_flags_and_data(tmp_path):
    folder = tmp_path / "run"
    run = runs.open_run(folder, making())
    trained(folder)
    assert run.flags == json.loads((folder / "config.json").read_text())["flags"]
    assert run.flags == FLAGS | {"phantom_size": [1, 2, 3]}
    assert (run.folder, run.system, run.fingerprint) == (folder, "fetal_head", "abc")
    more = runs.open_run(folder, making(level=3, work_dir="b"))  # more levels are welcome
    assert more.flags["level"] == 3 and runs.load(folder).facts == more.facts
    with pytest.raises(UserError) as refused:
        runs.open_run(folder, making(variant="USegNet-DS", phantom_size=[1, 2, 4]))
    told = (
        "made with `variant` 'USegNet' (now 'USegNet-DS'), `phantom_size` [1, 2, 3] (now [1, 2, 4])"
    )
    assert told in str(refused.value) and told.replace("`variant`", "--variant").replace(
        "`phantom_size`", "--phantom_size"
    ) in sentence(refused.value)
    with pytest.raises(UserError, match="other data"):
        runs.open_run(folder, making(fingerprint="abd"))
    with pytest.raises(UserError, match=r"system fetal_head \(now embryo\)"):
        runs.open_run(folder, making("embryo"))
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: is not JSON .*expected a run's conf"):
        runs.open_run(folder, making())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a folder that can be written"):
        runs.open_run(tmp_path / "file" / "run", making())


def test_what_a_run_notes_stays(tmp_path):
    run = runs.open_run(tmp_path, making()).note(labels={2: "liver"}, spacing=[[1.0], [2.0]])
    assert run.labels == runs.load(tmp_path).labels == {2: "liver"}
    assert run.note(labels={2: "liver"}).spacing == [[1.0], [2.0]]
    with pytest.raises(UserError, match=r"made with the labels .*'liver'.*expected the same"):
        run.note(labels={2: "spleen"})
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none: no config.json; expected a run folder"):
        runs.load(tmp_path / "none")
    with pytest.raises(UserError, match="a run of 'fetal_head'; expected one of 'embryo'"):
        runs.load_of(tmp_path, "embryo")
    with pytest.raises(UserError, match=r"config.json: 'labels' is missing or wrong"):
        runs.open_run(tmp_path / "bare", making()).labels


def test_what_went_on_with_a_run_stays_on_record(tmp_path, monkeypatch):
    first = runs.open_run(tmp_path, making())
    trained(tmp_path)
    assert first.facts["seed"] == 1 and "resumed" not in first.facts
    assert runs.open_run(tmp_path, making()).facts["resumed"] == []  # the same code and versions
    monkeypatch.setattr(runs, "_git_revision", lambda: "another")
    for _ in range(2):
        run = runs.open_run(tmp_path, making())
        (resumed,) = run.facts["resumed"]
        assert resumed == {"git_revision": "another", "versions": run.facts["versions"]}
    assert run.facts["git_revision"] == first.facts["git_revision"]


def git(folder, *words):
    command = [
        "git",
        "-C",
        str(folder),
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@localhost",
        *words,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def revision_in(folder):
    """What a package at `folder` writes as the revision of its source."""
    code = "from tf_autoctx.training import runs; print(runs.__file__, runs._git_revision())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    file, revision = done.stdout.split()
    assert file == str(folder / "tf_autoctx" / "training" / "runs.py")
    return revision


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_the_revision_is_that_of_the_package_s_own_checkout(tmp_path):
    """Not of a repository around the environment that the package is installed in."""
    installed = tmp_path / "environment"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tf_autoctx", installed / "tf_autoctx", ignore=ignored)
    assert revision_in(installed) == "None"
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "--message=another project")
    assert revision_in(installed) == "None"
    git(tmp_path, "add", "environment")
    git(tmp_path, "commit", "--quiet", "--message=its own checkout")
    assert revision_in(installed) == git(tmp_path, "rev-parse", "HEAD")

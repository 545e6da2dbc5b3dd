"""What the benchmarks time: tasks that learn what the systems learn, convolutions that are counted,
pages that hold what was measured."""

import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import running
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "benchmarks"))
import convolutions
import few_cases
import gpu
import gpu_page
import harness
import made_up_sides
import our_sides
import pages
import peer_sides
import performance_page
import speed
import speed_rows
import tasks

from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.systems.renderer import terms

ROOT = running.ROOT


# Tasks


@pytest.mark.parametrize("kind", [tasks.FetalHeadTask, tasks.MultiOrganTask, tasks.EmbryoTask])
def test_a_task_s_loss_is_that_of_its_stage(kind):
    task = kind(tiny=True)
    system, networks = our_sides.system_of(task, "float32")
    stage, _ = our_sides.stage_of(task, system)
    learning = task.trained(networks)
    (((term,),)) = task.passes
    expected = stage.losses({"network": next(iter(learning.values()))}, task.batch())
    np.testing.assert_allclose(term.loss(networks, task.batch()), expected, rtol=1e-5)


@pytest.mark.parametrize("online", [False, True])
def test_the_renderer_s_terms_are_those_of_an_iteration(online):
    task = tasks.RendererTask(tiny=True)
    networks, batch = task.networks(), task.batch()
    plan = terms.groups(networks, task.objective, online)
    passes = task.online if online else task.passes
    assert len(plan) == len(passes)
    outputs = terms.Outputs(networks, batch, training=not online)
    of_terms = {term: outputs.losses(term, task.objective) for term in plan[-1]}
    judges = {name: of_terms.pop(name) for name in networks if name in of_terms}
    generators, *others = passes[-1]
    assert generators.networks == ("renderer", "segmentor")
    # Moving averages are looked at by nobody in training, so that a second run tells the same.
    np.testing.assert_allclose(generators.loss(networks, batch), sum(of_terms.values()), rtol=1e-4)
    assert [term.networks for term in others] == [(name,) for name in judges]
    for term, expected in zip(others, judges.values()):
        np.testing.assert_allclose(term.loss(networks, batch), expected, rtol=1e-4)


def test_weights_follow_from_names():
    task = tasks.EmbryoTask(tiny=True)
    first, second = task.networks()["embryo"], task.networks()["embryo"]
    for a, b in zip(first.get_weights(), second.get_weights()):
        np.testing.assert_array_equal(a, b)
        assert a.std() > 0 or a.size == 1
    assert tasks.parameters({"a": first}) == first.count_params()


# Convolutions


def test_convolutions_of_a_graph_are_counted_and_run():
    layers = [keras.layers.Conv3D(4, 3, padding="same") for _ in range(2)]
    network = keras.Sequential([keras.Input((6, 5, 4, 4)), *layers, keras.layers.Conv3D(1, 1)])

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.nn.relu(network(x)))
        return tape.gradient(loss, network.trainable_variables)

    counts = convolutions.listed(step.get_concrete_function(tf.TensorSpec((1, 6, 5, 4, 4))).graph)
    by_type = {}
    for (kind, _, _), count in counts.items():
        by_type[kind] = by_type.get(kind, 0) + count
    # The first layer's input learns nothing.
    expected = {"Conv3D": 3, "Conv3DBackpropFilterV2": 3, "Conv3DBackpropInputV2": 2}
    assert by_type == expected
    assert max(counts.values()) == 2  # two layers are alike, and are run once
    assert 0 < convolutions.alone(counts)() < 10
    with pytest.raises(ValueError, match="expected known sizes"):
        unknown = tf.TensorSpec((1, None, 5, 4, 4))
        convolutions.listed(step.get_concrete_function(unknown).graph)


def test_a_profile_tells_operations_and_the_share_of_convolutions():
    kernel = tf.random.normal((5, 5, 5, 8, 8))

    @tf.function
    def step(x):
        return tf.reduce_sum(tf.nn.conv3d(tf.exp(x), kernel, [1] * 5, "SAME"))

    x = tf.random.normal((1, 16, 16, 16, 8))
    seconds = convolutions.profiled(lambda: step(x).numpy())
    assert {"Conv3D", "Exp", "Sum", convolutions.BETWEEN} <= set(seconds)
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)
    assert 0 < convolutions.convolution_share(seconds) < 1
    share = convolutions.convolution_share({"Conv3D": 2, "Conv2DBackpropInput": 1, "Mul": 1})
    assert share == 0.75


def test_time_inside_is_not_counted_twice():
    picoseconds = 10**12
    spans = [(0, 10 * picoseconds, "If"), (2 * picoseconds, 5 * picoseconds, "Mul")]
    assert sorted(convolutions._nested(iter(spans))) == [("If", 7.0), ("Mul", 3.0)]


# Sides


def test_windows_tell_the_seconds_of_all_windows():
    task = tasks.EmbryoTask(tiny=True)
    ready = our_sides.sliding_windows(task, "float32", fraction=0.5, batch=4, window=16)
    assert ready.step() > 0


def test_scores_agree_whoever_computes_them():
    spacing = (0.5, 0.5, 0.5)
    ours = our_sides.scoring((20, 24, 28), spacing).answer()
    assert 0.5 < ours[0] < 1 and 0.5 < ours[1] < 3
    if harness.version("surface-distance"):
        theirs = peer_sides.surface_distance((20, 24, 28), spacing).answer()
        np.testing.assert_allclose(theirs, ours, atol=0.6)


def test_the_same_network_in_pytorch_answers_the_same(tmp_path):
    if harness.version("torch") is None:
        pytest.skip("PyTorch is of the benchmarks' extra")
    task = tasks.EmbryoTask(tiny=True)
    code = (
        "import numpy as np, peer_sides, tasks, sys; task = tasks.EmbryoTask(tiny=True);"
        "answers = [peer_sides.pytorch(task, kind, 'float32', 'channels last') for kind in"
        " ('inference', 'training')]; assert 'tensorflow' not in sys.modules;"
        "np.savez(sys.argv[1], *(a.answer() for a in answers),"
        " parameters=answers[0].facts['parameters'])"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), *sys.path])
    environment = {**os.environ, **peer_sides.ON_TORCH, "PYTHONPATH": path}
    words = [sys.executable, "-c", code, str(tmp_path / "a.npz")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, networks = np.load(tmp_path / "a.npz"), task.networks()
    ours = task.infer(networks, task.image())["probability"]
    np.testing.assert_allclose(theirs["arr_0"], ours, atol=1e-4)
    ((term,),) = task.passes
    np.testing.assert_allclose(theirs["arr_1"], term.loss(networks, task.batch()), rtol=1e-4)
    assert theirs["parameters"] == tasks.parameters(networks)


# Rows


def test_rows_name_their_sides_and_peers(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "called", lambda *_, **__: "made")
    monkeypatch.setattr(speed_rows.command_sides, "run", lambda *_: None)
    for name, row in speed_rows.ROWS.items():
        sides = row.sides(tmp_path, True)
        names = [side.name for side in sides]
        assert len(set(names)) == len(names) and (sides or name == "profiles")
        assert not any(side.needs for side in sides[:1]), "ours come first"
    usegnet = [side.name for side in speed_rows.ROWS["usegnet"].sides(tmp_path, True)]
    assert "PyTorch, compiled, channels last, bfloat16" in usegnet
    assert "convolutions alone, float32" in usegnet and usegnet[0] == "export, float32"


@pytest.mark.parametrize("apart", [None, 1, 2])
def test_sides_are_timed_apart_where_all_would_not_fit(tmp_path, apart):
    def sides(folder, tiny):
        return [
            harness.Side(f"{name}, {precision}", made_up_sides.alone, given)
            for name in ("own", "b", "c")
            for precision in ("float32", "bfloat16")
            for given in [{"folder": folder, "precision": precision}]
        ]

    row = speed_rows.Row("large", sides, apart=apart)
    told = row.measured(tmp_path, True, harness.Quiet(2, 1e9))
    precisions = ("float32", "bfloat16") if apart else ("float32",)
    measured = {f"{name}, {precision}" for name in ("own", "b", "c") for precision in precisions}
    assert set(told["sides"]) == measured and told["rounds"] == 2
    assert set(told["left_out"].values()) == (set() if apart else {"ValueError: float32 lives"})
    lived = [path.name.split()[0] for path in tmp_path.iterdir()]
    assert lived.count("float32") == {None: 3, 1: 4, 2: 3}[apart]  # ours twice where needed


def test_a_row_is_measured_and_kept(tmp_path, capsys):
    output = tmp_path / "results.json"
    words = ["--rows=scoring", "--tiny", "--rounds=1", "--most_others=1000", f"--output={output}"]
    with pytest.raises(SystemExit) as ended:
        speed.command.perform(words)
    assert ended.value.code == 0
    row = json.loads(output.read_text())["scoring"]
    assert row["sides"]["ours"]["median"] > 0 and row["tiny"] and row["rounds"] == 1
    told = capsys.readouterr().out
    assert "scoring: scoring of a pair, 388x258x440 (tiny)\n  ours: " in told
    if harness.version("monai") is None:
        assert row["left_out"]["MONAI"].endswith("monai is not installed")
        assert "MONAI: left out" in told
    with pytest.raises(FieldError, match="no row of that name; expected usegnet, "):
        speed.Speed(rows=("nonsense",))


# Pages


def side(seconds, **facts):
    return {"seconds": [seconds], "median": seconds, "peak_gib": 1.5, **facts}


RECORD = {
    "usegnet": {
        "made": "2026-01-02T03:04:05+00:00",
        "machine": {
            "processor": "A",
            "extensions": ["avx2"],
            "cores": 2,
            "memory_gib": 24.0,
            "python": "3.12",
            "versions": {"keras": "3"},
            "revision": "abc",
        },
        "tiny": False,
        "rounds": 7,
        "thrown_away": 2,
        "left_out": {"OpenVINO, float32": "openvino is not installed"},
        "sides": {
            "export, float32": side(0.5),
            "convolutions alone, float32": side(0.46),
            "PyTorch, compiled, float32": side(0.625),
            "PyTorch, channels last, float32": side(0.7),
            "PyTorch, compiled, bfloat16": {**side(0.1), "median": None},
        },
    }
}


def line(text, start):
    (cells,) = [row for row in text.splitlines() if row.startswith(f"| {start}")]
    return [cell.strip() for cell in cells.strip("|").split("|")]


def test_a_table_of_what_was_measured():
    text = performance_page.networks(RECORD)
    start = "USegNet-DS-HAS, inference, 64x48x72, "
    expected = ["0.5", "0.625 (compiled)", "1.25", "92 %"]
    assert line(text, f"{start}float32")[1:] == expected
    assert line(text, f"{start}bfloat16")[1:] == ["–"] * 4  # no round was quiet
    told = performance_page.conditions(RECORD)
    assert line(told, "`usegnet`")[1:] == [
        "2026-01-02, abc",
        "7 (2 thrown away)",
        "OpenVINO, float32: openvino is not installed",
    ]
    assert line(told, "`ct`")[1] == "not measured"
    assert "A (avx2), 2 cores, 24.0 GiB; Python 3.12, keras 3." in told


def test_a_table_of_profiles():
    operations = {"Conv3D": 6.0, "Mul": 3.0, "between operations": 1.0}
    profile = {"operations": operations, "convolutions": 0.6}
    record = {"profiles": {"profiles": {"embryo": {"bfloat16": profile}}}}
    (cells,) = [row for row in performance_page.profiles(record).splitlines() if "60 %" in row]
    assert "embryo" in cells and "bfloat16" in cells
    assert "Mul 30 %, between operations 10 %" in cells


@pytest.mark.parametrize(
    "page, tables, results",
    [
        ("performance", performance_page.TABLES, "performance.json"),
        ("gpu", gpu_page.TABLES, "gpu.json"),
    ],
)
def test_a_page_holds_what_is_in_its_file(page, tables, results):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    record = harness.read_record(ROOT / "docs" / results)
    made = {name: make(record) for name, make in tables.items()}
    assert pages.filled(text, made) == text, f"run benchmarks/{page}_page.py"


def test_a_page_without_a_mark_is_refused():
    text = "a\n<!-- table: x -->\nold\n<!-- end -->\nb\n"
    assert pages.filled(text, {"x": "new"}) == "a\n<!-- table: x -->\n\nnew\n\n<!-- end -->\nb\n"
    with pytest.raises(UserError, match="has the tables x; expected x, y"):
        pages.filled(text, {"x": "new", "y": "new"})


@pytest.mark.parametrize(
    "command, record",
    [
        (performance_page.command, {"usegnet": {**RECORD["usegnet"], "tiny": True}}),
        (gpu_page.command, {"tiny": True}),
    ],
)
def test_tiny_results_make_no_page(command, record, tmp_path, capsys):
    results = tmp_path / "results.json"
    results.write_text(json.dumps(record))
    with pytest.raises(SystemExit) as ended:
        command.perform([f"--results={results}", f"--page={tmp_path / 'page.md'}"])
    assert ended.value.code == 1 and "tiny networks" in capsys.readouterr().err


# On a GPU


class Instant:
    """A process that measures at once; the second entry of a system never ends."""

    def __init__(self, framework):
        self.framework = framework

    def measured(self, entry, tiny, limit):
        assert entry.framework == self.framework and tiny
        if entry.framework == "torch":
            return {"failed": f"not done in {min(limit, 9):.0f} s"}
        answer = [0.25, 0.5 + 0.1 * (entry.precision == "bfloat16")]
        return {"seconds": 2.0, "seconds_to_ready": 9.0, "answer": answer, "peak_gib": 3.0}

    def close(self):
        pass


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The file of a GPU benchmark that was stopped after 20 entries."""
    monkeypatch.setattr(gpu, "Waiting", Instant)
    monkeypatch.setattr(gpu.harness, "version", lambda name: "1.0")
    clock = iter(range(10**6))
    monkeypatch.setattr(gpu, "monotonic", lambda: float(next(clock)))
    path = tmp_path / "gpu.json"
    gpu.command.perform([f"--output={path}", "--tiny", "--deadline=45"])
    return path


def test_the_most_wanted_come_first_and_what_is_not_reached_is_named(results, capsys):
    record = json.loads(results.read_text())
    measured = list(record["entries"])
    assert measured + record["not_reached"] == [entry.name for entry in gpu.ENTRIES]
    assert 5 < len(measured) < 40
    assert measured[:2] == [
        "fetal_head, inference, bfloat16, jax",
        "fetal_head, inference, bfloat16, torch, channels last",
    ]
    assert record["entries"][measured[0]]["tf32"] is None
    assert record["entries"][measured[1]]["failed"].startswith("not done in")
    tf32 = [told for told in record["entries"].values() if told["precision"] == "tf32"]
    assert tf32 and all(told["tf32"] is True for told in tf32)
    off = record["entries"]["fetal_head, inference, bfloat16, jax"]
    assert off["difference_from"] == "fetal_head, inference, tf32, jax"
    assert off["difference"] == pytest.approx(0.1)
    assert "answer" not in off


def test_every_entry_is_measured_once_and_float32_says_whether_tf32_was_on():
    names = [entry.name for entry in gpu.ENTRIES]
    assert len(set(names)) == len(names) == 4 * 2 * (3 * 2 + 1)
    for entry in gpu.ENTRIES:
        assert entry.tf32 is {"bfloat16": None, "tf32": True, "float32": False}[entry.precision]


def test_a_page_of_what_was_reached(results):
    record = json.loads(results.read_text())
    row = line(gpu_page.speed(record), "fetal head: a volume of 388x258x440, two levels | bfloat16")
    assert row[2:] == ["", "2", "3.0", "–", "–", "–"]
    row = line(
        gpu_page.speed(record), "fetal head: a volume of 388x258x440, two levels | float32 | on"
    )
    assert row[2:5] == ["on", "2", "3.0"]
    missing = gpu_page.missing(record)
    assert "- renderer, training, float32, torch, channels last: not reached" in missing
    assert re.search(r"- fetal_head, inference, bfloat16, torch, channels last: not done", missing)
    assert "1.0e-01" in gpu_page.agreement(record)
    assert gpu_page.conditions({}) == "Nothing has been measured yet."


def test_an_entry_that_takes_too_long_is_given_up():
    waiting = gpu.Waiting("no such framework")
    entry = gpu.Entry("embryo", "inference", "bfloat16", "torch")
    told = waiting.measured(entry, True, limit=60)
    assert told["failed"] and "not done" not in told["failed"]
    waiting = gpu.Waiting("no such framework")
    assert waiting.measured(entry, True, limit=0.0)["failed"] == "not done in 0 s"


# Few cases of a new site


def test_few_cases_are_the_same_for_both_and_none_is_held_out(tmp_path):
    for part, numbers in (("Tr", range(3)), ("Ts", (3, 4))):
        (tmp_path / f"images{part}").mkdir()
        for number in numbers:
            (tmp_path / f"images{part}" / f"{number}.png").touch()
    chosen = few_cases.FewCases(output="", cases=(2,), first_steps=9, steps=5)
    sites = tmp_path / "first", tmp_path
    first, scratch, tuned = few_cases.planned(sites, tmp_path / "runs", 7, chosen)
    assert tuned.flags == {**scratch.flags, "initial_weights": first.folder}
    assert scratch.flags["data_dir"].read_text().splitlines() == [
        "image,label,split",
        "imagesTr/0.png,labelsTr/0.png,train",
        "imagesTr/1.png,labelsTr/1.png,train",
        "imagesTs/3.png,labelsTs/3.png,test",
        "imagesTs/4.png,labelsTs/4.png,test",
    ]
    assert (first.flags["data_dir"], first.flags["steps"], scratch.flags["steps"]) == (
        sites[0],
        9,
        5,
    )
    assert {run.flags["seed"] for run in (first, scratch, tuned)} == {7}


def test_a_gain_of_fine_tuning_is_that_of_each_seed():
    chosen = few_cases.FewCases(output="", seeds=(0, 1), cases=(5,))
    scores = {"5 cases, scratch": [90.0, 94.0], "5 cases, tuned": [93.0, 93.0]}
    assert few_cases.table(scores, chosen) == [
        "| DSC (%) | mean | seed 0 | seed 1 |",
        "|---|---|---|---|",
        "| 5 cases, scratch | 92.00 | 90.00 | 94.00 |",
        "| 5 cases, tuned | 93.00 | 93.00 | 93.00 |",
        "| 5 cases, tuned - scratch | +1.00 | +3.00 | -1.00 |",
    ]

"""The renderer system from outside: train, resume, predict, export, tables, and mistakes."""

import csv
import functools
import json
import pathlib
import shutil

import numpy as np
import pytest
import running
import SimpleITK as sitk
import tensorflow as tf
from helpers import plain_networks

from tf_autoctx import configuration, metrics
from tf_autoctx.commands import train_renderer, training
from tf_autoctx.data import datasets, pipeline
from tf_autoctx.data.configuration import Augmentation
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.systems.renderer import source
from tf_autoctx.systems.renderer import training as self_play
from tf_autoctx.systems.renderer.configuration import (
    DECLARATION,
    DISCRIMINATORS,
    VARIANTS,
    Appearance,
    Objective,
    Online,
    Phantoms,
)
from tf_autoctx.systems.renderer.system import RendererSystem
from tf_autoctx.systems.shared import prediction
from tf_autoctx.training import runs

TINY = [
    "--size=16",
    "--base_filters=2",
    "--initializer=he",
    "--steps=4",
    "--samples_per_epoch=4",
    "--batch_size=2",
    "--precision=float32",
    "--generator_updates=1",
    "--phantom_size=20,24",
    "--phantom_cases=6,2",
]

ONLINE = {
    "online_discriminator_rate": 1e-3,
    "online_segmentor_step": 0.3,
    "online_averaging": 0.8,
    "online_patience": 3,
    "segmentation_loss": "hybrid",
    "update_order": "summed",
}
LIGHT = [*TINY, "--variant=S2T-sp"]
train = functools.partial(running.train, "renderer")


def networks_of(folder):
    """{name: network} of a finished run."""
    run = runs.load(folder)
    return RendererSystem.of_run(run).finished(run)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of all networks."""
    folder = tmp_path_factory.mktemp("runs") / "s2t"
    train(f"--work_dir={folder}", *TINY)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with one discriminator, of networks of one convolution each."""
    folder = tmp_path_factory.mktemp("runs") / "sp"
    with running.unexported(), plain_networks():
        train(f"--work_dir={folder}", *LIGHT)
    return folder


@pytest.fixture
def light(trained):
    """`trained`, as long as new networks are of one convolution each: online rendering has some."""
    with plain_networks():
        yield trained


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A finished run of the segmentor alone."""
    folder = tmp_path_factory.mktemp("runs") / "orig"
    train(f"--work_dir={folder}", *TINY, "--variant=Orig-S2T")
    return folder


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def write(path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=array.ndim == 3), str(path))
    return path


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_run_folder_is_complete(run):
    assert {path.stem for path in (run / "networks").iterdir()} == set(VARIANTS["S2T"])
    assert len(list((run / "rendered").iterdir())) == 5  # of six, one validates
    network = networks_of(run)["renderer"]
    for entry in source.rendered(run):
        image, label = (
            pipeline.stored(entry[name], name).numpy() for name in ("image2d", "label2d")
        )
        case = pathlib.Path(entry["image2d"]).parent.name
        (cached,) = (run / "cache").glob(f"*/{case}")
        expected = network(pipeline.stored(str(cached / "image2d"), "image2d")[None])[
            "rendered"
        ].numpy()[0]
        expected = (expected - expected.min()) / np.ptp(expected)
        np.testing.assert_allclose(image, expected, atol=1e-4)
        np.testing.assert_array_equal(label, pipeline.stored(str(cached / "label2d"), "label2d"))
    spread = json.loads((run / "source.json").read_text())
    assert set(spread) == {"mean of S", "SD of S", "mean of S'", "SD of S'"}
    rows = table(run / "evaluation" / "cases.csv")
    assert {row["system"] for row in rows} == {"renderer"}
    assert {row["case"] for row in rows} == {"source_006", "source_007"} and "Hdb_pixel" in rows[0]
    for file in ("source.png", "evaluation/source_006.png", "self_play/history.png"):
        assert (run / file).exists()


def test_every_optimizer_is_in_the_checkpoint(run):
    path = tf.train.latest_checkpoint(run / "self_play" / "last")
    names = {name for name, _ in tf.train.list_variables(path)}
    for optimizer in ("generators", *DISCRIMINATORS):
        assert any(name.startswith(f"optimizers/{optimizer}/") for name in names), optimizer


def test_a_killed_run_ends_in_the_same_weights(plain, tmp_path, monkeypatch):
    command = [f"--work_dir={tmp_path}", *TINY, "--variant=Orig-S2T", "--checkpoint_steps=1"]

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(self_play.metrics, "dice", killed)  # in the first validation, after two steps
        with pytest.raises(KeyboardInterrupt):
            train(*command)
    assert not (tmp_path / "networks").exists()
    train(*command, "--export_precision=bfloat16")
    running.check_bfloat16(tmp_path, pixels(20, 24))
    mine, whole = networks_of(tmp_path), networks_of(plain)
    for name in whole:
        for a, b in zip(mine[name].get_weights(), whole[name].get_weights()):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("which", ["run", "plain"])
def test_export_predicts_as_predict(which, request):
    folder, image = request.getfixturevalue(which), pixels(1, 21, 30, 1).astype(np.float32)
    answer = running.served(folder / "saved_model" / "1", image)
    assert {name: x.shape for name, x in answer.items()} == dict.fromkeys(
        ("rendered", "probability", "label"), image.shape
    )
    mine = prediction.load(folder, iterations=0)(image[0, ..., 0], (1, 1), probabilities=True)
    np.testing.assert_allclose(
        answer["probability"][0, ..., 0], mine["probability"]["head"], atol=1e-5
    )
    loaded = prediction.load(folder / "saved_model" / "1")(
        image[0, ..., 0], (1, 1), probabilities=True
    )
    np.testing.assert_allclose(
        loaded["probability"]["head"], mine["probability"]["head"], atol=1e-5
    )
    if which == "plain":
        np.testing.assert_allclose(answer["rendered"].mean(), image.mean(), rtol=0.02)


def test_predict_without_iterations_reads_no_discriminator(light, tmp_path):
    folder, image = shutil.copytree(light, tmp_path / "run"), pixels(21, 30).astype(np.float32)
    (folder / "networks" / "d_app.keras").write_bytes(b"damaged")
    mine, theirs = (prediction.load(of, iterations=0)(image)["label"] for of in (folder, light))
    np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(UserError, match=r"d_app.keras: not a network"):
        prediction.load(folder, iterations=1)


def test_the_export_is_what_a_server_needs(run, tmp_path):
    running.check_export(run / "saved_model" / "1", pixels(2, 20, 24), tmp_path)


def test_online_rendering_takes_no_mirror_images(light, tmp_path):
    folder = with_flags(light, tmp_path / "run", flips=True)
    with pytest.raises(FieldError, match="mirrors=True: online rendering has a mirror ima"):
        prediction.load(folder, mirrors=True, iterations=1)
    assert prediction.load(folder, mirrors=True, iterations=0)


def test_predict_on_files_of_every_kind(light, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    grey = pixels(20, 26)
    write(source / "grey.png", grey)
    write(source / "colour.png", np.repeat(grey[..., None], 3, axis=-1))
    sitk.WriteImage(
        sitk.GetImageFromArray(grey[None].astype(np.float32)), str(source / "volume.nii.gz")
    )
    sitk.WriteImage(sitk.GetImageFromArray(grey[None]), str(source / "frame.dcm"))
    before = {path: path.read_bytes() for path in (light / "networks").iterdir()}
    command = [f"--model={light}", f"--input={source}", f"--output={output}", "--iterations=1"]
    running.call("predict", *command, "--every_iteration", "--masks", "--probabilities")
    written = [path for path in output.rglob("[!.]*") if path.is_file()]
    found = sorted(str(path.relative_to(output)) for path in written)
    names = {"grey": ".png", "colour": ".png", "frame": ".nii.gz", "volume": ".nii.gz"}
    expected = [f"{kind}{name}{end}" for name, end in names.items() for kind in ("", "masks/")]
    expected += [f"probabilities/{name}.nii.gz" for name in names] + [
        f"strips/{name}.png" for name in names
    ]
    expected += [
        f"iterations/{name}/{k:02d}_{kind}{end}"
        for name, end in names.items()
        for k in range(2)
        for kind in ("label", "rendered")
    ]
    assert found == sorted(expected)
    label = read(output / "grey.png")
    assert label.shape == (20, 26) and set(np.unique(label)) <= {0, 255}
    np.testing.assert_array_equal(label, read(output / "colour.png"))
    np.testing.assert_array_equal(label > 0, read(output / "frame.nii.gz").reshape(20, 26) > 0)
    np.testing.assert_array_equal(label > 0, read(output / "probabilities" / "grey.nii.gz") > 0.5)
    assert {path: path.read_bytes() for path in (light / "networks").iterdir()} == before


def test_online_rendering_is_repeatable_and_depends_on_its_seed(run):
    image = pixels(20, 26).astype(np.float32)
    one, two = (prediction.load(run, iterations=2, online_seed=seed) for seed in (1, 2))
    first, other, again = (
        segment(image, (1, 1), probabilities=True) for segment in (one, two, one)
    )
    for a, b in zip(first["iterations"], again["iterations"]):
        np.testing.assert_array_equal(a["probability"], b["probability"])
        np.testing.assert_array_equal(a["rendered"], b["rendered"])
    assert len(first["iterations"]) == 3
    assert (first["iterations"][2]["rendered"] != other["iterations"][2]["rendered"]).any()
    np.testing.assert_array_equal(
        first["probability"]["head"], first["iterations"][first["kept"]]["probability"]
    )


def test_tables_of_a_corpus(run, plain, tmp_path):
    sizes = tmp_path / "sizes.csv"
    sizes.write_text("name,millimetres_per_pixel\nnear_006,0.5\nnear_007,0.5\n")
    command = [f"--runs={run},{plain}", f"--corpus={run / 'phantoms' / 'near'}"]
    command += [f"--output={tmp_path / 'tables'}", "--iterations=2", f"--pixel_sizes={sizes}"]
    done = running.script("eval/renderer_tables.py", *command)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "tables" / "table.txt").read_text(encoding="utf-8")
    assert text.strip() in done.stdout
    rows = table(tmp_path / "tables" / "cases.csv")
    assert {row["system"] for row in rows} == {"renderer"}
    of_iterations = [f"S2T, {which}" for which in ("iteration 0", "iteration 2", "best iteration")]
    methods = ["Orig-S2T", "S2T", *of_iterations]
    assert list(dict.fromkeys(row["method"] for row in rows)) == methods
    assert {row["case"] for row in rows} == {"near_006", "near_007"}
    lines = table(tmp_path / "tables" / "iterations.csv")
    assert len(lines) == 2 * (3 + 1)
    for case in ("near_006", "near_007"):
        dice = {row["method"]: float(row["DSC_percent"]) for row in rows if row["case"] == case}
        curve = [
            float(line["DSC_percent"])
            for line in lines
            if line["case"] == case and line["variant"] == "S2T"
        ]
        assert dice["S2T, iteration 0"] == curve[0] and dice["S2T, best iteration"] == max(curve)
        assert dice["S2T"] in curve and dice["S2T, iteration 2"] == curve[2]
        for row in rows:
            if row["case"] == case and row["Hdb_pixel"] not in ("", "inf", "0.0"):
                assert float(row["Hdb_mm"]) == pytest.approx(float(row["Hdb_pixel"]) / 2)
    for name in ("gains_S2T.png", "curves.png"):
        assert (tmp_path / "tables" / name).exists()
    assert len(list((tmp_path / "tables" / "strips" / "s2t").glob("*.png"))) == 2

    file = tmp_path / "tables" / "cases" / "s2t" / "online_seed_0" / "near_006.json"
    stamp = file.stat().st_mtime_ns
    running.call("renderer_tables", *command)
    assert file.stat().st_mtime_ns == stamp  # scored once
    assert (tmp_path / "tables" / "table.txt").read_text(encoding="utf-8") == text
    assert "S2T against Orig-S2T" in text and "S2T against S2T, iteration 0" in text
    assert "S2T, iteration 2 against S2T, iteration 0" in text and "one training of each" in text
    assert "best iteration against" not in text and "against S2T, best" not in text
    sizes.write_text("name,millimetres_per_pixel\nnear_006,2\nnear_007,\n")
    running.call("renderer_tables", f"--runs={plain}", *command[1:])
    rows = table(tmp_path / "tables" / "cases.csv")
    for row in rows:  # scored anew, and 007 in pixels alone
        if row["Hdb_pixel"] not in ("inf", "0.0"):
            mm = {"near_006": str(2 * float(row["Hdb_pixel"])), "near_007": ""}[row["case"]]
            assert row["Hdb_mm"] == mm


def with_flags(run, folder, without=(), **changes):
    """A copy of a run whose config.json has other flags, or lacks some."""
    config = json.loads((shutil.copytree(run, folder) / "config.json").read_text())
    flags = config["flags"] | changes
    config["flags"] = {name: value for name, value in flags.items() if name not in without}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_images_that_a_run_has_seen_are_left_out(plain, tmp_path, capfd, caplog):
    """Of all runs of its seed; the corpus has no test cases, and the run has seen all of its six
    images, or all but one."""
    corpus = tmp_path / "corpus"
    for kind in ("images", "labels"):
        shutil.copytree(plain / "phantoms" / "source" / f"{kind}Tr", corpus / kind)
    command = [f"--corpus={corpus}", f"--output={tmp_path / 'tables'}"]
    with pytest.raises(SystemExit):
        running.call("renderer_tables", f"--runs={plain}", *command)
    told = f"{corpus}: all 6 cases with a label trained or validated {plain}; expected some that"
    assert told in capfd.readouterr().err
    held_out = datasets.load(corpus, 0, 0.0).train[2]
    facts = json.loads((plain / "config.json").read_text())
    (mark,), seen = datasets.marks(held_out), facts["seen"]
    facts["seen"] = {name: [m for m in marks if m != mark] for name, marks in seen.items()}
    one, other, later = (
        with_flags(plain, tmp_path / name, appearance_strength=strength, seed=seed)
        for name, strength, seed in (("one", 0.0, 0), ("other", 0.5, 0), ("later", 0.0, 1))
    )
    for run, marks in ((one, facts["seen"]), (other, {}), (later, {})):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"seen": marks}))
    running.call("renderer_tables", f"--runs={one},{other},{later}", *command)
    told = f"{corpus}: 5 of 6 cases with a label trained or validated {one}, {other}, and are left"
    assert told in caplog.text and str(later) not in caplog.text
    cases = [row["case"] for row in table(tmp_path / "tables" / "cases.csv")]
    assert cases.count(f"seed 0/{held_out.name}") == 2 and len(cases) == 2 + 6
    groups = {(row["case"], row["group"]) for row in table(tmp_path / "tables" / "cases.csv")}
    assert all(case == group for case, group in groups)  # of another network another scan


def test_tables_over_runs_and_online_seeds(light, plain, tmp_path, monkeypatch):
    """Two trainings of two variants, which half of their data tested, and what is told of them."""
    overlaps, test = set(), metrics.paired_runs

    def paired_runs(differences, shared, overlap):
        overlaps.add(overlap)
        return test(differences, shared, overlap)

    monkeypatch.setattr(metrics, "paired_runs", paired_runs)
    folders = [
        with_flags(run, tmp_path / f"{run.name}_{seed}", seed=seed, test_fraction=0.5)
        for run in (light, plain)
        for seed in (0, 1)
    ]
    for folder in folders:
        if not folder.name.endswith("_0"):
            shutil.rmtree(folder / "phantoms" / "near")  # those of seed 0
    output = tmp_path / "tables"
    command = [f"--runs={','.join(map(str, folders))}", "--iterations=1", "--online_seed=4,5"]
    running.call("renderer_tables", *command, f"--output={output}", "--online_averaging=0")
    assert overlaps == {1}
    text = (output / "table.txt").read_text(encoding="utf-8")
    assert "Wilcoxon" not in text and "2 runs of each: no p of fewer than 5" in text
    assert "S2T-sp: SD over 2 online seeds" in text and "seed 1" in text
    tests = {(line["method"], line["against"]): line for line in table(output / "over_runs.csv")}
    assert tests["S2T-sp", "Orig-S2T"]["n"] == "2" and tests["S2T-sp", "Orig-S2T"]["p"] == "nan"
    assert ("S2T-sp, iteration 1", "S2T-sp, iteration 0") in tests
    runs_ = table(output / "runs.csv")
    of_sp = [line for line in runs_ if line["run"] == str(folders[1])]
    assert {(line["seed"], line["online_seed"]) for line in of_sp} == {("1", "4"), ("1", "5")}
    assert len([line for line in runs_ if line["method"] == "Orig-S2T"]) == 2
    # The phantoms of a seed are its own; those of seed 0 are the run's, the others were made.
    made = {path.name for path in (output / "phantoms").iterdir()}
    assert made == {f"{run.name}_1" for run in (light, plain)}

    first = table(output / "iterations.csv")
    running.call("renderer_tables", *command, f"--output={tmp_path / 'b'}", f"--beside={output}")
    assert table(tmp_path / "b" / "iterations.csv") != first  # other weights answer
    with pytest.raises(SystemExit):
        running.call("renderer_tables", *command, f"--output={output}", f"--beside={tmp_path}")


def test_augmented_training_is_a_row_of_its_own(plain, tmp_path):
    other = with_flags(plain, tmp_path / "augmented", appearance_strength=0.5)
    running.call("renderer_tables", f"--runs={other},{plain}", f"--output={tmp_path / 'tables'}")
    rows = table(tmp_path / "tables" / "cases.csv")
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["Orig-S2T", "Orig-S2T, augmented"]


@pytest.mark.parametrize("target", ["near", "far"])
def test_tables_of_either_target(plain, tmp_path, target):
    command = [f"--runs={plain}", f"--output={tmp_path}", f"--phantom_target={target}"]
    running.call("renderer_tables", *command)
    cases = {row["case"] for row in table(tmp_path / "cases.csv")}
    assert cases == {f"{'near' if target == 'near' else 'target'}_00{n}" for n in (6, 7)}
    assert (tmp_path / "phantoms").exists() == (target == "far")  # the run's own are near


def test_a_run_of_one_target_is_no_upper_bound_on_another(plain, tmp_path, capfd):
    trained = with_flags(plain, tmp_path / "near", variant="Orig-T2T", phantom_target="near")
    command = [f"--runs={trained}", f"--output={tmp_path / 'tables'}"]
    running.call("renderer_tables", *command)
    with pytest.raises(SystemExit):
        running.call("renderer_tables", *command, "--phantom_target=far")
    assert "near: was trained on the near scanner; expected a run" in capfd.readouterr().err


def test_a_run_of_before_is_scored_and_renders_as_before(light, tmp_path):
    """Its config.json has none of the new flags: the far target, and online rendering of then.

    S' lies in files of serialized tensors.
    """
    new = [
        name
        for kind in (Online, Objective, Augmentation, Appearance, Phantoms)
        for name in configuration.earlier([kind])
    ]
    before = with_flags(light, tmp_path / "before", without=new)
    for path in (before / "rendered").glob("*/*"):
        tensor = pipeline.stored(str(path), path.name)
        shutil.rmtree(path)
        path.write_bytes(tf.io.serialize_tensor(tensor).numpy())
    image = pixels(20, 26).astype(np.float32)
    old, given, now = (
        prediction.load(folder, iterations=2, **options)(image, probabilities=True)
        for folder, options in (
            (before, {}),
            (light, configuration.earlier([Online])),
            (light, {}),
        )
    )
    for a, b in zip(old["iterations"], given["iterations"]):
        np.testing.assert_array_equal(a["probability"], b["probability"])
        np.testing.assert_array_equal(a["rendered"], b["rendered"])
    assert (old["iterations"][2]["rendered"] != now["iterations"][2]["rendered"]).any()
    running.call("renderer_tables", f"--runs={before}", "--iterations=0", f"--output={tmp_path}/t")
    assert (tmp_path / "t" / "phantoms" / "before" / "target").exists()
    with running.unexported():
        train(f"--work_dir={before}", *LIGHT)  # and goes on


def test_flags_of_online_rendering_are_recorded_and_may_change(light, tmp_path):
    folder = shutil.copytree(light, tmp_path / "run")
    assert runs.load(folder).flags["online_discriminator_rate"] == 1e-3
    networks = {path: path.read_bytes() for path in (folder / "networks").iterdir()}
    with running.unexported():
        train(f"--work_dir={folder}", *LIGHT, "--online_keep=last", "--online_averaging=0.5")
    assert runs.load(folder).flags["online_keep"] == "last"
    assert {path: path.read_bytes() for path in (folder / "networks").iterdir()} == networks
    image = pixels(20, 26).astype(np.float32)
    assert prediction.load(folder, iterations=3)(image)["kept"] == 3
    with pytest.raises(
        UserError, match=r"online_averaging=2.*: expected a number from 0 to 0\.9999"
    ):
        prediction.load(folder, iterations=3, online_averaging=2.0)


@pytest.mark.usefixtures("unexported")
def test_the_paper_preset_runs_whole(tmp_path):
    """The authors' system: order, head, initializer, loss, mirrors; and an image online."""
    tiny = [word for word in TINY if not word.startswith(("--initializer", "--generator"))]
    train(f"--work_dir={tmp_path}", *tiny, "--preset=paper", "--steps=1", "--variant=S2T-sp")
    flags = runs.load(tmp_path).flags
    assert flags["update_order"] == flags["segmentation_loss"] == "published"
    names = {name for name, _ in tf.train.list_variables(str(tmp_path / "self_play/last/step-1"))}
    assert any(name.startswith("optimizers/d_app_generator/") for name in names)
    kernel = networks_of(tmp_path)["d_app"].layers[-1].kernel.numpy()
    assert kernel.std() == pytest.approx(0.02, rel=0.1)
    answer = prediction.load(tmp_path, iterations=1)(pixels(20, 26).astype(np.float32))
    assert answer["kept"] == 1


@pytest.mark.usefixtures("unexported", "light")
def test_images_beside_labels_are_a_corpus(run, tmp_path):
    corpus = tmp_path / "corpus"
    for kind in ("images", "labels"):
        shutil.copytree(run / "phantoms" / "source" / f"{kind}Tr", corpus / kind)
    train(f"--work_dir={tmp_path / 'run'}", f"--corpus={corpus}", *TINY, "--variant=Orig-S2T")
    assert set(networks_of(tmp_path / "run")) == {"segmentor"}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["flags"]["data_dir"] == str(corpus)
    (corpus / "labels" / "source_003.png").unlink()
    with pytest.raises(SystemExit):
        train(f"--work_dir={tmp_path / 'other'}", f"--corpus={corpus}", *TINY)


@pytest.mark.usefixtures("unexported", "light")
def test_the_target_corpus_trains_orig_t2t(tmp_path):
    train(f"--work_dir={tmp_path}", *TINY, "--variant=Orig-T2T")
    rows = table(tmp_path / "evaluation" / "cases.csv")
    assert {(row["method"], row["case"]) for row in rows} == {
        ("Orig-T2T", "near_006"),
        ("Orig-T2T", "near_007"),
    }


@pytest.mark.parametrize(
    "given, expected",
    [
        ([], {"dice_weight": 10, "size": 96, "discriminator_head": "scaled", **ONLINE}),
        (
            ["--corpus=a"],
            {"dice_weight": 100, "steps": 6000, "discriminator_head": "scaled", **ONLINE},
        ),
        (
            ["--preset=paper"],
            {
                "dice_weight": 100,
                "segmentation_loss": "published",
                "update_order": "published",
                "size": 320,
                "base_filters": 32,
                "discriminator_head": "flatten",
                "initializer": "authors",
                "online_discriminator_rate": 1e-4,
                "online_segmentor_step": 1,
                "online_averaging": 0,
                "online_patience": 0,
                "online_rendering_weight": 0.5,
                "online_mirror": "either",
                "online_keep": "last",
            },
        ),
    ],
)
def test_presets(given, expected):
    """What is asked for, before anything is read."""
    values = training.filled(DECLARATION, train_renderer.command.parse(given))
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--size=0"], "--size=0: images of any size need --discriminator_head=pool"),
        (["--corpus=nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capfd, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        train(f"--work_dir={tmp_path / 'run'}", *TINY, *arguments)
    assert stopped.value.code == 1 and message in capfd.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


def test_options_that_a_model_does_not_have(plain, run):
    for model, option, message in (
        (plain, {"iterations": 2}, "iterations=2: .* without a renderer; expected `iterations=0`"),
        (run / "saved_model" / "1", {"iterations": 2}, "is a SavedModel, in which this is fixed"),
        (run, {"tile_size": 16}, "expected one of 'multi_organ'"),
    ):
        with pytest.raises(UserError, match=message):
            prediction.load(model, **option)


def test_a_volume_is_refused(plain, tmp_path, capfd):
    volume = tmp_path / "volume.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(pixels(4, 20, 20)), str(volume))
    command = [f"--model={plain}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as stopped:
        running.call("predict", *command, f"--input={volume}")
    assert stopped.value.code == 1 and "has 3 dimensions" in capfd.readouterr().err
    image = write(tmp_path / "a.png", pixels(20, 20))
    with pytest.raises(SystemExit) as stopped:
        running.call("predict", *command, f"--input={image}", "--every_iteration")
    assert stopped.value.code == 1 and "does not render online" in capfd.readouterr().err


@pytest.mark.parametrize(
    "runs_, message",
    [
        ("{plain},{plain}/../orig", "expected folders of different names"),
        ("{plain},{other}", "two have the same variant and seed"),
        ("{folder}", "no config.json"),
    ],
)
def test_runs_that_no_table_takes(plain, tmp_path, capfd, runs_, message):
    other = shutil.copytree(plain, tmp_path / "other")
    given = runs_.format(plain=plain, other=other, folder=tmp_path)
    with pytest.raises(SystemExit) as stopped:
        running.call("renderer_tables", f"--runs={given}", f"--output={tmp_path / 'tables'}")
    assert stopped.value.code == 1 and message in capfd.readouterr().err
    assert not (tmp_path / "tables").exists()

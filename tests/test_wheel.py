"""What `pip install` gives: the wheel of the sdist, in an environment of its own, with no clone."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

import tf_autoctx
from tf_autoctx import shipped

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEFT_OUT = (".venv", ".git", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
TINY = [
    "--variant=USegNet",
    "--base_filters=2",
    "--steps=3",
    "--samples_per_epoch=2",
    "--precision=float32",
    "--level=1",
    "--phantom_size=24,16,28",
    "--phantom_cases=3,2",
]


def run(*command, cwd):
    """Runs a command without the environment of the tests; its output, if it succeeds."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution of a copy of this tree."""
    source = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT_OUT))
    run(sys.executable, "setup.py", "-q", "sdist", cwd=source)
    (path,) = (source / "dist").glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel that the source distribution builds."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, sdist, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """bin/ of a new environment with the wheel; what it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # A path alone: no .pth file in there is read, so that the editable package is not seen.
    borrowed = sysconfig.get_path("purelib")
    (pathlib.Path(site.strip()) / "borrowed.pth").write_text(f"{borrowed}\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "bin"


def test_everything_is_in_the_distributions(sdist, wheel):
    with tarfile.open(sdist) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    tree = {
        path.relative_to(ROOT).as_posix()
        for folder in ("tf_autoctx", "eval", "serving", "docs", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert tree <= packed
    assert {"README.md", "LICENSE", "Makefile", "predict.py", "train_embryo.py"} <= packed
    with zipfile.ZipFile(wheel) as file:
        installed = set(file.namelist())
    package = {name for name in tree if name.startswith("tf_autoctx/")}
    assert package <= installed and "tf_autoctx/py.typed" in package
    for model in shipped.names():
        folder = f"tf_autoctx/shipped_models/{model}"
        assert {f"{folder}/LICENSE", f"{folder}/variables/variables.index"} <= installed
    assert not [name for name in installed if name.startswith(("tests/", "eval/", "docs/"))]


def test_the_package_is_that_of_the_wheel(environment, tmp_path):
    code = "import tf_autoctx as t; print(t.__file__, t.example('hc18_head'), t.__version__)"
    *paths, version = run(environment / "python", "-c", code, cwd=tmp_path).split()
    assert all(path.startswith(str(environment.parent)) for path in paths)
    assert version == tf_autoctx.__version__


# Runs console scripts one after the other, as Python runs each: TensorFlow is imported once.
SCRIPTS = """
import json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, words
    print("ENDED", flush=True)
"""


def scripts(environment, *commands, cwd):
    """What each of the commands prints, lists of a script's name and its arguments."""
    words = json.dumps([[str(environment / name), *rest] for name, *rest in commands])
    *shown, rest = run(environment / "python", "-c", SCRIPTS, words, cwd=cwd).split("ENDED\n")
    assert len(shown) == len(commands) and not rest
    return shown


def test_train_resume_predict_score_and_report_in_an_empty_folder(environment, tmp_path):
    train = ("autoctx-train-fetal-head", *TINY)
    shown = run(environment / train[0], *TINY, cwd=tmp_path)
    assert "version 1 serves (float32)" in shown
    assert '"git_revision": null' in (tmp_path / "runs/fetal_head/config.json").read_text()

    phantoms = "runs/fetal_head/phantoms"
    model = "--model=runs/fetal_head"
    scans = f"--input={phantoms}/imagesTs"
    again, _, _, scored, *_ = scripts(
        environment,
        train,
        ("autoctx-predict", model, scans, "--output=results"),
        ("autoctx-predict", f"{model}/saved_model", scans, "--output=served"),
        (
            "autoctx-score",
            "--predictions=results",
            f"--labels={phantoms}/labelsTs",
            "--output=scores",
        ),
        (
            "autoctx-report",
            "--evaluations=runs/fetal_head/evaluation",
            "--output=report.html",
        ),
        # A model that comes with the package, and its image.
        (
            "autoctx-predict",
            "--model=hc18_head",
            f"--input={tf_autoctx.example('hc18_head')}",
            "--output=heads",
        ),
        cwd=tmp_path,
    )
    assert "serves already" in again  # goes on: there is nothing to do
    assert "DSC (%)" in scored
    assert len(list((tmp_path / "results").glob("[!.]*"))) == 2
    for path in (tmp_path / "results").glob("[!.]*"):
        ours, served = (tmp_path / folder / path.name for folder in ("results", "served"))
        assert ours.read_bytes() == served.read_bytes()
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    assert (tmp_path / "heads" / "example.nii.gz").exists()


def test_every_console_command_shows_its_help(environment, tmp_path):
    commands = sorted(environment.glob("autoctx-*"))
    assert len(commands) == 18
    for command in commands:
        assert str(environment) in command.read_text() and os.access(command, os.X_OK)
    helps = scripts(environment, *((command.name, "--help") for command in commands), cwd=tmp_path)
    assert len(helps) == len(set(helps)) == 18
    assert all("\n  --" in text for text in helps)
    assert run(commands[0], "--help", cwd=tmp_path) == helps[0]

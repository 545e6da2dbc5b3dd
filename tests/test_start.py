"""How commands start: words that belong to no flag, what a training prints, devices it warns of."""

import keras
import pytest
import running
import tensorflow as tf
from helpers import plain_networks

from tf_autoctx.commands import predict, train_fetal_head, train_multi_organ
from tf_autoctx.errors import FieldError, UserError
from tf_autoctx.training import devices

TINY = (
    "--base_filters=2",
    "--steps=3",
    "--samples_per_epoch=2",
    "--precision=float32",
    "--phantom_size=24,16,28",
    "--phantom_cases=3,2",
    "--level=1",
)
PREDICT = ("--model=m", "--output=o")


@pytest.mark.parametrize(
    "command, words, told",
    [
        (train_multi_organ, ["data_folder"], "data_folder: belongs to no flag"),
        (train_multi_organ, ["a", "b", "c", "d", "--steps=3"], "a b c and 1 more: belongs to no"),
        (predict, [*PREDICT, "--input", "{a}", "{b}"], "the folder"),
        (predict, [*PREDICT, "--input={a}", "{b}"], "meant for --input? The shell makes several"),
        (predict, [*PREDICT, "--input=a", "--masks", "false"], "or --masks=false in one word"),
        (predict, ["--masks", "false", *PREDICT, "--input=a"], "Write --masks or --nomasks"),
        (predict, [*PREDICT, "--input=a", "--input=b"], "--input=b: given twice"),
        (predict, [*PREDICT, "--input=a", "--masks", "--nomasks"], "--masks=false: given twice"),
        (train_fetal_head, ["--foreground=1", "--foreground=2"], "--foreground=2: given twice"),
    ],
)
def test_words_that_would_be_swallowed_are_refused(tmp_path, command, words, told):
    paths = {name: tmp_path / f"{name}.nii.gz" for name in "ab"}
    for path in paths.values():
        path.write_text("")
    with pytest.raises(UserError) as refused:
        command.command.parse([word.format(**paths) for word in words])
    assert told in str(refused.value)


def test_a_flag_may_be_given_twice_with_one_value():
    assert train_fetal_head.command.parse(["--steps=3", "--steps=3"])["steps"] == 3
    assert train_fetal_head.command.parse(["--steps", "3", "--noflips"])["flips"] is False


def test_a_training_prints_what_it_resolved(tmp_path, capsys, monkeypatch):
    from tf_autoctx.systems.shared import evaluation, opening

    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: None)
    monkeypatch.setattr(opening, "export_run", lambda *_, **__: None)
    monkeypatch.setattr(opening.page, "write", lambda *_: None)
    with plain_networks():
        running.train("fetal_head", f"--work_dir={tmp_path}", *TINY)
    told = capsys.readouterr().out
    assert f"{tmp_path}: on CPU, precision float32, batch 1 x 1 replica\n" in told
    assert "cases: 2 to train, 1 to validate, 2 held out\n" in told
    assert (
        "steps: 3 for each level or stage without its own, in 2 epochs of 2; learning rate 0.001"
        in told
    )


# Devices


@pytest.mark.parametrize("cluster", ["", " ", "{}"])
def test_a_cluster_that_names_nothing_is_a_single_machine(monkeypatch, cluster):
    monkeypatch.setenv("TF_CONFIG", cluster)
    assert devices.strategy("auto") is tf.distribute.get_strategy()
    with pytest.raises(FieldError, match="TF_CONFIG is"):
        devices.strategy("multi_worker")


def test_a_cluster_that_cannot_be_read_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{cluster")
    with pytest.raises(FieldError, match=r"TF_CONFIG is \{cluster; expected"):
        devices.strategy("auto")


@pytest.fixture
def no_driver(monkeypatch, tmp_path):
    """A machine without a driver's tool, whose files lie in a folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def pci(root, vendor, kind):
    folder = root / "sys" / "bus" / "pci" / "devices" / f"0000:{vendor}"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"0x{vendor}\n")
    (folder / "class").write_text(f"0x{kind}\n")


def test_signs_of_a_gpu(no_driver):
    assert devices.sign_of_gpu(no_driver) is None
    pci(no_driver, "1002", "030000")  # of another vendor
    pci(no_driver, "10de", "040300")  # the sound of a GPU
    assert devices.sign_of_gpu(no_driver) is None
    (no_driver / "sys/bus/pci/devices/0000:10de/class").write_text("0x030200\n")
    assert devices.sign_of_gpu(no_driver) == "This machine has an NVIDIA GPU"
    (no_driver / "dev").mkdir()
    (no_driver / "dev" / "nvidiactl").write_text("")  # the driver alone
    assert devices.sign_of_gpu(no_driver) == "This machine has an NVIDIA GPU"
    (no_driver / "dev" / "nvidia0").write_text("")
    assert devices.sign_of_gpu(no_driver) == "The NVIDIA driver shows a GPU"


def test_the_driver_s_tool_is_a_sign(no_driver):
    tool = no_driver / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    assert devices.sign_of_gpu(no_driver) == "nvidia-smi lists a GPU (GPU 0: NVIDIA H100)"
    tool.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert devices.sign_of_gpu(no_driver) is None


def test_a_gpu_that_tensorflow_does_not_see_is_warned_of(monkeypatch, caplog):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees one")
    monkeypatch.setattr(devices, "sign_of_gpu", lambda: "A sign")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices.warn_of_unseen_gpu()
    assert "A sign, but TensorFlow sees no GPU" in caplog.text
    assert "tensorflow[and-cuda]" in caplog.text
    caplog.clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # the CPU is meant
    devices.warn_of_unseen_gpu()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(devices, "sign_of_gpu", lambda: None)
    devices.warn_of_unseen_gpu()
    assert not caplog.text


def test_float16_on_a_cpu_is_warned_of(caplog):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    before = keras.config.dtype_policy()
    try:
        devices.set_up("mixed_float16", 0)
        assert "precision=mixed_float16 on a CPU" in caplog.text
        caplog.clear()
        devices.set_up("float32", 0)
        assert not caplog.text
    finally:
        keras.config.set_dtype_policy(before)

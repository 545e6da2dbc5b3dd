import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

ROOT = pathlib.Path(__file__).parents[1]


def save(path, at, spacing=(1.0, 1.0, 2.0), value=1):
    """A cube of 4 x 4 x 4 voxels at x = `at`; `spacing` is (x, y, z) in mm."""
    label = np.zeros((8, 10, 12), np.uint8)
    label[2:6, 3:7, at : at + 4] = value
    label[0, 0, 0] = 9
    image = sitk.GetImageFromArray(label)
    image.SetSpacing(spacing)
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folders(tmp_path):
    save(tmp_path / "ours" / "a.nii.gz", at=2)
    save(tmp_path / "ours" / "b.nrrd", at=4, value=2)
    save(tmp_path / "labels" / "a.mha", at=2)
    save(tmp_path / "labels" / "b.nii.gz", at=2)
    return tmp_path


def score(folders, *flags):
    command = [sys.executable, "eval/score.py", "--workers=1", *flags]
    command += [
        f"--predictions={folders}/ours",
        f"--labels={folders}/labels",
        f"--output={folders}/scores",
    ]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def test_scores_two_folders(folders):
    done = score(folders, "--foreground=1,2")
    assert done.returncode == 0, done.stderr
    with open(folders / "scores" / "cases.csv", newline="") as file:
        a, b = csv.DictReader(file)
    assert (a["method"], a["case"], b["case"]) == ("ours", "a", "b")
    assert [float(a[name]) for name in ("DSC_percent", "Hdb_mm", "volume_mL")] == pytest.approx(
        [100, 0, 0.128]
    )
    assert [float(b[name]) for name in ("DSC_percent", "Hdb_mm", "volume_mL")] == pytest.approx(
        [50, 2, 0.128]
    )
    summary = json.loads((folders / "scores" / "summary.json").read_text())
    assert summary["methods"]["ours"]["object"]["metrics"]["DSC_percent"]["mean"] == pytest.approx(
        75
    )
    assert "75.00 ± 35.36" in done.stdout


def test_every_nonzero_label_is_the_object_by_default(folders):
    assert score(folders).returncode == 0
    with open(folders / "scores" / "cases.csv", newline="") as file:
        _, b = csv.DictReader(file)
    assert float(b["DSC_percent"]) == pytest.approx(100 * (2 * 33) / (65 + 65))


def test_images_without_spacing_are_measured_in_pixels(tmp_path):
    for folder, at in (("ours", 3), ("labels", 1)):
        label = np.zeros((8, 8), np.uint8)
        label[2:6, at : at + 4] = 1
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(label), str(tmp_path / folder / "a.png"))
    assert "Hdb (pixel)" in score(tmp_path).stdout
    with open(tmp_path / "scores" / "cases.csv", newline="") as file:
        (a,) = csv.DictReader(file)
    assert float(a["Hdb_pixel"]) == 2 and float(a["area_pixel"]) == 16


def rows(folders, name="cases.csv"):
    with open(folders / "scores" / name, newline="") as file:
        return list(csv.DictReader(file))


def test_a_case_that_cannot_be_scored_is_listed_and_the_rest_scored(folders):
    save(folders / "ours" / "a.nii.gz", at=2, spacing=(1.0, 1.0, 1.0))
    save(folders / "labels" / "c.nii.gz", at=2)
    (folders / "ours" / "c.nii.gz").write_bytes(b"no image")
    done = score(folders, "--foreground=1,2", "--workers=2")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "scores/failed.csv: 2 of 3 cases are not scored; " in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    assert [row["case"] for row in rows(folders)] == ["b"] and float(
        rows(folders)[0]["DSC_percent"]
    ) == 50
    a, c = rows(folders, "failed.csv")
    assert (
        a["case"] == "a"
        and "ours/a.nii.gz: spacing (1.0, 1.0, 1.0) mm does not match" in a["reason"]
    )
    assert c["case"] == "c" and "ours/c.nii.gz" in c["reason"]
    assert "3/3" in done.stdout and "50.00" in done.stdout

    for name in "ac":
        (folders / "ours" / f"{name}.nii.gz").unlink()
        next((folders / "labels").glob(f"{name}.*")).unlink()
    assert score(folders).returncode == 0 and rows(folders, "failed.csv") == []


def test_post_processing_is_scored_side_by_side(tmp_path):
    """Two structures of 64 voxels; in case a, one has a cavity of one voxel and three far away."""
    label = np.zeros((8, 10, 12), np.uint8)
    label[2:6, 3:7, 2:6], label[2:6, 3:7, 7:11] = 1, 2
    damaged = label.copy()
    damaged[3, 4, 3], damaged[0, 0, :3] = 0, 1
    for folder, voxels in (("ours", damaged), ("labels", label)):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / folder / "a.nrrd"))
        sitk.WriteImage(sitk.GetImageFromArray(label), str(tmp_path / folder / "b.nrrd"))
    done = score(tmp_path, "--largest_component", "--fill_holes")
    assert done.returncode == 0, done.stderr
    found = [(row["method"], row["case"], float(row["DSC_percent"])) for row in rows(tmp_path)]
    assert found == [
        ("ours", "a", pytest.approx(100 * 2 * 127 / (130 + 128))),
        ("ours", "b", 100),
        ("ours, largest component, fill holes", "a", 100),
        ("ours, largest component, fill holes", "b", 100),
    ]
    assert (
        "ours, largest component, fill holes against ours: DSC +0.78 %" in done.stdout
    )  # half of 100 - 98.45


@pytest.mark.parametrize(
    "damage, flags, told",
    [
        (
            lambda f: (f / "ours" / "b.nrrd").unlink(),
            (),
            "labels/b.nii.gz: no image of the same name",
        ),
        (
            lambda f: (f / "labels" / "a.mha").unlink(),
            (),
            "ours/a.nii.gz: no image of the same name",
        ),
        (
            lambda f: [path.write_bytes(b"no image") for path in (f / "ours").iterdir()],
            (),
            "2 of 2 cases",
        ),
        (lambda f: None, ("--foreground=7",), "labels: no voxel has a value of --foreground=7"),
        (lambda f: None, ("--foreground=head",), "expected integers"),
        (lambda f: (f / "scores").write_text(""), (), "scores"),
    ],
)
def test_bad_input_is_one_sentence(folders, damage, flags, told):
    damage(folders)
    done = score(folders, *flags)
    assert done.returncode == 1
    assert told in done.stderr and "Traceback" not in done.stderr
    assert not (folders / "scores" / "scores.csv").exists()

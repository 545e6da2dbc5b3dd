"""The site: it builds without a warning, its links lead somewhere, its notebook was run. And what
a visitor of the repository meets: README, workflows, templates."""

import configparser
import html.parser
import itertools
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest
import yaml

import tf_autoctx

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS, GITHUB = ROOT / "docs", ROOT / ".github"


class Page(html.parser.HTMLParser):
    """What a page links and shows, what can be linked in it, and its text."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.words = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        self.anchors.add(found.get("id"))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the site, as `make docs` builds it; a warning would be an error."""
    folder = tmp_path_factory.mktemp("site") / "site"
    (words,) = re.findall(
        r"-m (sphinx .*) build/site$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
    )
    assert "-W" in words.split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MPLBACKEND", None)  # the notebook's own
    done = subprocess.run(
        [sys.executable, "-m", *words.split(), str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def test_every_page_is_there_and_its_links_lead_somewhere(site):
    sources = [path for kind in ("md", "ipynb") for path in DOCS.rglob(f"*.{kind}")]
    for source in sources:
        assert (site / source.relative_to(ROOT)).with_suffix(".html").exists(), source
    pages = {
        path: Page(path)
        for path in site.rglob("*.html")
        if "_modules" not in path.parts and "_static" not in path.parts
    }
    assert len(pages) > len(sources)
    for path, page in pages.items():
        for link in page.links:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            assert target.exists(), f"{path.name}: {link}"
            if url.fragment and target in pages:
                assert urllib.parse.unquote(url.fragment) in pages[target].anchors, link


def test_the_start_is_the_readme(site):
    assert "docs/index.html" in Page(site / "index.html").links
    start = Page(site / "docs" / "index.html")
    assert "who want a paper's method on their own ultrasound" in start.text
    assert any(link.endswith("viewer.webp") for link in start.links)
    # Of a link that leads out of docs/ as well
    assert "../serving/README.html" in start.links and "train.html" in start.links


def test_the_notebook_was_run(site):
    page = Page(site / "docs" / "first_steps.html")
    values = dict(
        re.findall(
            r"(model|expert) \{'BPD_mm': [\d.]+, 'OFD_mm': [\d.]+, 'HC_mm': ([\d.]+)", page.text
        )
    )
    # docs/shipped_models.md: 100.94 and 100.14 mm
    assert {name: float(value) for name, value in values.items()} == pytest.approx(
        {"model": 100.9, "expert": 100.1}, abs=0.11
    )
    assert [link for link in page.links if link.startswith("../_images/")]
    notebook = (DOCS / "first_steps.ipynb").read_text(encoding="utf-8")
    assert '"outputs": []' in notebook and not re.search(r'"outputs": \[\s*\{', notebook)


def test_docstrings_are_pages(site):
    package = Page(site / "docs" / "api" / "package.html")
    assert {f"tf_autoctx.{name}" for name in ("load", "score", "example")} <= package.anchors
    for name in set(tf_autoctx.__all__) - {"__version__", "load", "score", "example"}:
        folder = "measures" if name == "metrics" else name
        page = Page(site / "docs" / "api" / f"{folder}.html")
        assert any((anchor or "").startswith(f"tf_autoctx.{name}.") for anchor in page.anchors)
    assert "**options" in package.text
    # What is no emphasis and no substitution there
    losses = Page(site / "docs" / "api" / "losses.html").text
    assert "(batch, *spatial, classes)" in losses
    assert "|E and G|" in Page(site / "docs" / "api" / "measures.html").text


# What a visitor of the repository meets


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_of_the_readme_are_those_of_the_results():
    pages = ("results", "renderer_results", "shipped_models")
    measured = " ".join((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in pages)
    section = readme().split("## Results")[1].split("\n## ")[0]
    rows = [line.split("|")[4] for line in section.splitlines() if line.startswith("| ")][1:]
    numbers = [re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", row) for row in rows]
    assert len(numbers) == 5 and all(numbers)
    for number in itertools.chain(*numbers):
        assert number in measured, number


def test_pictures_are_small():
    """Four of them are less than an old photograph."""
    shown = re.findall(r"!\[[^\]]+\]\((\S+)\)", readme())
    assert len(shown) == 5
    sizes = {path: (ROOT / path).stat().st_size for path in shown}
    assert max(sizes.values()) == sizes["./docs/viewer.webp"] < 2e6
    assert sorted(sizes.values())[-2] < 200e3


def test_workflows_call_what_there_is():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    (path,) = (GITHUB / "workflows").iterdir()
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    called = {
        name: [target for step in job["steps"] for target in targets_of(step.get("run", ""))]
        for name, job in jobs.items()
    }
    assert called == {"tests": ["test"], "lint": ["lint"], "docs": ["docs"], "wheel": []}
    assert {target for each in called.values() for target in each} <= targets
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    versions = re.findall(r"Python :: (\d\.\d+)", setup["metadata"]["classifiers"])
    assert jobs["tests"]["strategy"]["matrix"]["python"] == versions


def targets_of(command):
    return re.findall(r"\bmake ([\w-]+)", command)


def test_the_wheel_s_job_runs_the_lines_of_the_readme():
    workflow = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = [step.get("run", "") for step in workflow["jobs"]["wheel"]["steps"]]
    (sed,) = [command for command in commands if command.startswith("sed ")]
    done = subprocess.run(
        sed.split(" > ")[0], shell=True, cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    lines = [line.split("    #")[0].rstrip() for line in done.stdout.splitlines()]
    assert lines == [
        "import SimpleITK as sitk",
        "import tf_autoctx",
        'frame = sitk.ReadImage(tf_autoctx.example("hc18_head"))',
        'model = tf_autoctx.load("hc18_head")',
        "result = model(sitk.GetArrayFromImage(frame), frame.GetSpacing()[::-1])",
    ]


@pytest.mark.parametrize("name", ["bug", "feature", "question"])
def test_issue_templates_are_forms(name):
    """Fields that GitHub asks of a form."""
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert set(form) == {"name", "description", "labels", "body"}
    assert all(
        field["type"] == "textarea" and field["attributes"]["label"] for field in form["body"]
    )
    identifiers = [field["id"] for field in form["body"]]
    assert len(set(identifiers)) == len(identifiers)
    assert form["body"][0]["validations"]["required"] is True

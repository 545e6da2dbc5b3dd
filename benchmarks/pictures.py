"""The pictures of README.md: a square of every system, and the case viewer as a moving picture.

  python benchmarks/pictures.py --output=docs

Real images are the examples of the models that come with the package; the squares of the fetal
head and the embryo are cut out of the pictures of held-out phantoms in docs/. The viewer is that of
`autoctx-report`, in Chromium, which has to be installed with its driver.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

import tf_autoctx
from tf_autoctx import configuration
from tf_autoctx.commands.command_line import Command, Given
from tf_autoctx.configuration import field
from tf_autoctx.data import images
from tf_autoctx.report import figures, page, tables, views

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
EDGE = 400  # of a square, in pixels
# What is cut out of a picture: left, top, right, bottom
HEAD, EMBRYO, CT, FRAME = (
    (613, 56, 1177, 553),
    (421, 683, 773, 1262),
    (1170, 635, 1410, 946),
    (6, 65, 630, 663),
)
WINDOW, WIDTH = (1180, 860), 800  # of the browser, and of the moving picture
FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures of README.md."""

    output: str = field(..., "Folder that they are written into.")

    def __post_init__(self) -> None:
        configuration.check(self)


@dataclasses.dataclass(frozen=True)
class Segmented:
    """The example of a model that comes with the package, its true label and its prediction."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, ...]
    labels: dict[int, str]
    prediction: dict[str, Any]

    @classmethod
    def of(cls, name: str) -> Segmented:
        """Segments it."""
        path, model = tf_autoctx.example(name), tf_autoctx.load(name)
        read = images.read_2d if model.dimensions == 2 else images.read
        image, truth = read(path), read(path.with_name(path.name.replace(".", "_label.", 1)))
        found = model(image.array, image.spacing, path, probabilities=True)
        arrays = image.array, truth.array
        return cls(name, *arrays, image.spacing, model.labels, found)


def square(picture: Image.Image, box: tuple[int, int, int, int], path: pathlib.Path) -> None:
    """Writes a part of a picture, in the middle of a black square."""
    part = picture.convert("RGB").crop(box)
    part.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    whole = Image.new("RGB", (EDGE, EDGE))
    whole.paste(part, ((EDGE - part.width) // 2, (EDGE - part.height) // 2))
    whole.quantize(256).save(path, optimize=True)


def evaluation(case: Segmented, folder: pathlib.Path) -> pathlib.Path:
    """An evaluation of one case, as `autoctx-report` reads it."""
    about = {"system": "multi_organ", "method": case.name, "case": "example", "group": ""}
    scores = tables.scores(case.prediction["label"], case.truth, case.spacing, case.labels)
    tables.write(folder, [about | row for row in scores])
    answers = {case.name: case.prediction}
    view = views.of(case.image, case.truth, answers, case.spacing, case.labels)
    views.write(folder / "views" / "example.npz", view)
    return folder


def opened(report: pathlib.Path) -> webdriver.Chrome:
    """A browser that shows a report."""
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--window-size={WINDOW[0]},{WINDOW[1]}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options)
    browser.get(report.as_uri())
    return browser


def shots(browser: webdriver.Chrome) -> Iterator[tuple[Image.Image, int]]:
    """What a reader of the report sees, and for how many milliseconds."""

    def shot(milliseconds: int) -> tuple[Image.Image, int]:
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        height = round(picture.height * WIDTH / picture.width)
        return picture.resize((WIDTH, height), Image.Resampling.LANCZOS), milliseconds

    browser.execute_script("document.querySelector('#cases').scrollIntoView()")
    yield shot(1500)
    browser.find_element(By.CSS_SELECTOR, "tr[data-structure='5'] button").click()
    wait = WebDriverWait(browser, 60)
    wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#surface canvas"))
    wait.until(lambda _: browser.execute_script("return document.querySelector('#surface').data"))
    yield shot(1500)
    for axis, way in ((0, range(-6, 7)), (2, range(-4, 5))):
        slider = browser.find_element(By.CSS_SELECTOR, f'figure[data-axis="{axis}"] input')
        start = int(str(slider.get_property("value")))
        for step in way:
            browser.execute_script(
                "arguments[0].value = arguments[1];"
                "arguments[0].dispatchEvent(new Event('input', { bubbles: true }))",
                slider,
                start + step,
            )
            yield shot(150)
    probability = browser.find_element(By.CSS_SELECTOR, "#probability select")
    Select(probability).select_by_index(1)
    yield shot(1500)
    for degrees in range(0, 360, 30):
        browser.execute_async_script(
            "const [angle, done] = arguments;"
            "const eye = { x: 1.8 * Math.cos(angle), y: 1.8 * Math.sin(angle), z: 0.6 };"
            "Plotly.relayout('surface', { 'scene.camera.eye': eye }).then(() => done())",
            math.radians(degrees),
        )
        yield shot(150)


def main(given: Given) -> None:
    """Runs the command."""
    output = pathlib.Path(given.configured(Pictures).output)
    square(Image.open(DOCS / "demo_case.png"), HEAD, output / "fetal_head.png")
    square(Image.open(DOCS / "embryo_case.png"), EMBRYO, output / "embryo.png")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for system, model, box in (("renderer", "hc18_head", FRAME), ("organs", "head_neck", CT)):
            case = Segmented.of(model)
            figures.picture(
                folder / "case.png",
                case.image,
                case.prediction["label"],
                case.truth,
                case.spacing,
                model,
                case.labels,
            )
            square(Image.open(folder / "case.png"), box, output / f"{system}.png")
        page.write(folder / "report.html", [evaluation(case, folder / "evaluation")])
        browser = opened(folder / "report.html")
        try:
            pictures, times = zip(*shots(browser))
        finally:
            browser.quit()
    first, *others = pictures
    first.save(
        output / "viewer.webp",
        save_all=True,
        append_images=others,
        duration=list(times),
        loop=0,
        quality=70,
        method=6,
    )


command = Command(main, (Pictures,), __doc__)

if __name__ == "__main__":
    command()

"""The site, which `make docs` builds of the pages in docs/ and of docstrings, into build/site."""

import re
from typing import Any

from sphinx.application import Sphinx

import tf_autoctx

project = "tf_autoctx"
author = project_copyright = "The tf_autoctx maintainers"
version = release = tf_autoctx.__version__

# The sources are the repository's root, so that pages link what lies outside of docs/.
root_doc = "docs/index"
include_patterns = ["docs/**", "serving/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "runs"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
smartquotes = False  # dashes of flags stay two
default_role = "code"  # of `names` in docstrings
highlight_language = "none"  # blocks that are indented: command lines and what they print
myst_heading_anchors = 4  # as GitHub has them

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"
napoleon_use_ivar = True  # of `Attributes:`, which are described once

html_theme = "pydata_sphinx_theme"
html_title = f"tf_autoctx {release}"
html_extra_path = ["site"]  # index.html: the start is docs/index.html
html_sidebars = {"docs/first_steps": []}  # a section of one page
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}


def escaped(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: `(batch, *spatial, channels)` and |E and G| are meant as they are.

    What stands in backquotes stays, and `**options:` at the head of an argument.
    """
    for number, line in enumerate(lines):
        head = re.match(r"\s*\*{1,2}(?=\w+: )", line)
        start = head.end() if head else 0
        parts = re.split("(`[^`]*`)", line[start:])
        parts[::2] = [re.sub(r"[*|]", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = line[:start] + "".join(parts)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escaped, priority=400)  # before Napoleon's

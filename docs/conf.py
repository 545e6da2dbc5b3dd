"""The site, which `make docs` builds of the pages in docs/ and of docstrings, into build/site."""

import tf_autoctx

project = "tf_autoctx"
author = project_copyright = "The tf_autoctx maintainers"
version = release = tf_autoctx.__version__

# The sources are the repository's root, so that pages link what lies outside of docs/.
root_doc = "docs/index"
include_patterns = ["docs/**", "serving/README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "runs"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
default_role = "code"  # of `names` in docstrings
highlight_language = "none"  # blocks that are indented: command lines and what they print
myst_heading_anchors = 4  # as GitHub has them
# Pages of this name are listed as soon as they are there.
suppress_warnings = ["toc.empty_glob"]

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

autodoc_member_order = "bysource"

html_theme = "pydata_sphinx_theme"
html_title = f"tf_autoctx {release}"
html_extra_path = ["site"]  # index.html: the start is docs/index.html
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}

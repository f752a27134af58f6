"""Sphinx's settings. The pages are put together by make.py; this file is copied beside them."""

from __future__ import annotations

import re
from typing import Any

from rlhf_tutorial import __version__

project = "RLHF you can run and read"
author = "the contributors of rlhf-tutorial"
copyright = author
release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_togglebutton",
]
exclude_patterns = ["originals", "handouts", ".doctrees"]

# What is shown is what was committed.
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no widget states, and no scripts from elsewhere
nb_render_markdown_format = "commonmark"

myst_enable_extensions = [
    "amsmath",
    "attrs_block",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
]
myst_heading_anchors = 4

mathjax_path = "mathjax/tex-mml-chtml.js"
copybutton_exclude = ".linenos, .gp, .go"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False
html_show_search_summary = False  # it is fetched, which a page from the disk may not do
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_theme_options = {
    "repository_url": "https://github.com/rlhf-tutorial/rlhf-tutorial",
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search is in the sidebar
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": True,
}


def plain_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text with `code`: nothing in them is meant as reStructuredText."""
    in_table = False
    for i, line in enumerate(lines):
        starts = line.startswith("| ") and not in_table
        in_table = line.startswith("| ") or (in_table and line.strip() != "")
        if in_table:
            lines[i] = ("::\n\n    " if starts else "    ") + line
            continue
        line = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line)
        parts = re.split(r"(``.+?``)", line)
        parts[::2] = [re.sub(r"([|*])|(?<=\w)(_)(?=\W|$)", r"\\\1\2", part) for part in parts[::2]]
        lines[i] = "".join(parts)
    lines[:] = "\n".join(lines).split("\n")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=1)  # before napoleon

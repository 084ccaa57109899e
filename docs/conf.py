# SPDX-License-Identifier: MIT OR Apache-2.0
"""Sphinx: one site from the Markdown pages and the docstrings of the installed package."""

from __future__ import annotations

import runpy
from importlib.metadata import version as installed_version
from pathlib import Path

project = "exs"
author = "the exs developers"
copyright = "the exs developers"  # noqa: A001 - the name is Sphinx's
release = version = installed_version("exs")

# The pages on conformance are made here; a clause or point with neither code nor test nor a reason ends the build.
for script in ("conformance.py", "smcr_conformance.py"):
    if runpy.run_path(str(Path(__file__).parent / script))["main"]("write") != 0:
        raise SystemExit(f"docs/{script} found what is written above")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "changes/*"]

html_theme = "furo"
html_title = "exs"

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_custom_sections = [("Cancellation", "notes_style"), ("Source", "notes_style")]

# Names of other projects and of typing: without a network there is no inventory to look them up in.
# The public home of everything in these modules is exs itself.
homes = "api|sockets|streams|messages|queues|memory|pools|devices|errors|events|testing|esapi"
nitpick_ignore_regex = [
    (r"py:.*", r"(trio|typing|collections|outcome|socket|enum|types|ssl|os|pathlib|logging|contextlib)(\..*)?"),
    (r"py:.*", r"(_?[A-Z]\w*|int|float|bytes|bytearray|memoryview|bool|str|object|None|tuple|list|dict|property)"),
    (r"py:.*", rf"exs\.(_\w+|{homes})\..*"),
    (r"py:.*", r"_native\..*"),
    (r"py:class", r".*\s.*"),  # a sentence with a colon, which napoleon takes for a type
]

"""How Sphinx builds the site: `sphinx-build -W docs build/site`."""

import re

from fastgan.version import __version__

project = "fastgan"
release = version = __version__
copyright = "the authors of fastgan"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"fastgan {__version__}"
# A single backtick means code in our docstrings, as it does in Markdown.
default_role = "code"
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes, units and defaults stand in words, types in the source
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style"), ("Settings", "params_style")]


def setup(app):
    """Say how our texts differ from what Sphinx expects."""
    app.connect("source-read", _pages_of_the_checkout)
    # After napoleon, which reads a docstring by its stars.
    app.connect("autodoc-process-docstring", _no_emphasis, priority=900)


def _pages_of_the_checkout(app, name, source):
    """A page beyond docs/ is no page of the site, and is handed out as the file that it is."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)[^)]*\)", r"](path:\1)", source[0])


def _no_emphasis(app, what, name, obj, options, lines):
    """A star is that of a shape such as [B, *shape], or a product; that of code stays as it is."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.+?``|`.+?`)", line)
        parts[::2] = [re.sub(r"(?<![\\*\w])\*(?=\w)", r"\\*", part) for part in parts[::2]]
        lines[i] = "".join(parts)

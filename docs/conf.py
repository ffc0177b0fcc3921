"""Settings of the documentation's site: `make docs`."""

import lightning_genesis

project = "Lightning Genesis"
author = "the Lightning Genesis authors"
version = release = lightning_genesis.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "Lightning Genesis"
html_static_path = ["_static"]
html_css_files = ["commands.css"]
highlight_language = "text"  # of blocks that name none: commands
exclude_patterns = ["_build"]

nb_execution_mode = "off"  # the pages show what was stored; the tests run the cells
myst_heading_anchors = 4
myst_enable_extensions = ["deflist", "dollarmath"]

# docstrings write code in single backticks
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they are in the signature
napoleon_google_docstring = True
napoleon_numpy_docstring = False

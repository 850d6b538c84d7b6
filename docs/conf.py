"""How Sphinx builds the site: `python -m sphinx -W -b html docs build/docs`, without a network."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'docs')]

import namm_jax  # noqa: E402

project = 'namm_jax'
author = 'The namm_jax maintainers'
copyright = author
version = release = namm_jax.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'extension']
myst_enable_extensions = ['dollarmath', 'colon_fence', 'deflist', 'attrs_block']
myst_heading_anchors = 3
html_math_renderer = 'mathml'  # of `extension`: no script, no font, no network

nitpicky = True
# Annotations are shown as they are written; their names are explained in `api/index`.
nitpick_ignore_regex = [('py:class', '.*'), ('py:exc', 'UserError')]
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_maximum_signature_line_length = 70
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = 'hide'

exclude_patterns = ['gallery/*']
html_theme = 'furo'
html_title = f'namm_jax {version}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_show_sphinx = False
html_copy_source = False
html_show_copyright = False
html_theme_options = {'navigation_with_keys': True}
pygments_style = 'friendly'
pygments_dark_style = 'github-dark'

"""The site of the documentation: Sphinx with Markdown, as OpenMMLab's sites are.

``make docs`` builds it. Every warning is an error there: a link to nothing, a missing anchor, a
page that no list of contents names, a docstring that is no valid markup.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mirrorla_mm.version import __version__  # noqa: E402

project = 'MirrorLA for OpenMMLab'
author = 'the authors of mirrorla_mm'
release = version = __version__

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = project
html_copy_source = False

# Pages are written for GitHub, too: `#a-heading` is an anchor on both.
myst_heading_anchors = 4
myst_enable_extensions = ['dollarmath']
nb_execution_mode = 'off'  # the notebook's outputs are kept in it, and a test runs it

autodoc_typehints = 'none'  # the docstrings say more
autodoc_member_order = 'bysource'
autodoc_default_options = dict(members=True)
napoleon_use_param = False
napoleon_use_rtype = False

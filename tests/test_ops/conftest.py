"""Where there is no numpy, as on a bare GPU machine, tests that derive in numpy are left out."""

from importlib.util import find_spec

if find_spec('numpy') is None:
    collect_ignore = ['test_mirror_attention.py', 'test_reflection.py', 'test_rope.py']

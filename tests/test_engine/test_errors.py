"""Command lines: what they hide of upstream, and what they let through."""

import warnings

from mirrorla_mm.engine.errors import one_line_errors


def test_a_command_hides_warnings_of_upstream_s_imports_alone():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        with one_line_errors():
            warnings.warn('pkg_resources is deprecated as an API. See ...', stacklevel=1)
            warnings.warn('the disk is full', stacklevel=1)
    assert [str(warning.message) for warning in seen] == ['the disk is full']

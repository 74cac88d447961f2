"""Property tests draw the same examples in every run; the profile ``explore`` draws many new ones.

``HYPOTHESIS_PROFILE=explore pytest tests/test_robustness``; ``make test-fast`` takes ``quick``.
"""

import os

from hypothesis import HealthCheck, settings

COMMON = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile('default', max_examples=25, derandomize=True, **COMMON)
settings.register_profile('quick', max_examples=5, derandomize=True, **COMMON)
settings.register_profile('explore', max_examples=1000, **COMMON)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'default'))

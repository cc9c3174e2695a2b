"""What everything behind a seam must do, for the tests of whoever writes another: no test runner is needed.

Each function takes the thing and raises `AssertionError` with what it does wrong::

    from rtdecode.testing import check_prior_sampler
    from my_package import MySampler

    def test_my_sampler():
        check_prior_sampler(MySampler, steps=8)
"""

from rtdecode.testing.clocks import check_clock
from rtdecode.testing.engines import check_engine
from rtdecode.testing.families import check_family
from rtdecode.testing.samplers import check_prior_sampler
from rtdecode.testing.sources import check_source

__all__ = ["check_clock", "check_engine", "check_family", "check_prior_sampler", "check_source"]

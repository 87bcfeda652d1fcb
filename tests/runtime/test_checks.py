"""ldm_us/runtime/checks.py: what a command refuses before it does any work."""

import pytest

from ldm_us.runtime.checks import check_extra


def test_a_missing_package_is_told_with_the_extra_that_brings_it():
    check_extra("eval", "json", "math")
    with pytest.raises(ValueError, match=r"no_such_package is not installed.*pip install -e '\.\[eval\]'"):
        check_extra("eval", "json", "no_such_package")

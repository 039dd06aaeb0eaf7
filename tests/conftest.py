"""Settings of all tests."""

import os

from hypothesis import settings

# No deadlines: a busy machine is no failure. In CI the examples are fixed, so that a green commit stays green; at home
# they vary, and so keep searching.
settings.register_profile("interlock", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("interlock")

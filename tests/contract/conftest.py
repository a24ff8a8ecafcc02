"""Failed assertions of the public suites explain themselves."""

import pytest

pytest.register_assert_rewrite("django_sockets.testing.contract")

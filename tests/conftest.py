"""Puts this folder on the import path for the tests' helpers, and offers the Hub double to all tests."""

import signal

pytest_plugins = ["hub_double.fixtures"]

# Tests press Ctrl-C. A shell starts its background jobs with that ignored, which they and their children would wait for in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)

"""Puts this folder on the import path for the tests' helpers, and offers the Hub double to all tests."""

pytest_plugins = ["hub_double.fixtures"]

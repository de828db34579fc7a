"""Runs pytest on the files that it is given: what every py_test of the BUILD files starts."""

import sys

import pytest

if __name__ == "__main__":
  sys.exit(pytest.main(["-p", "no:cacheprovider", "-n", "0", *sys.argv[1:]]))

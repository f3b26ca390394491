"""What the tests of this repository share."""

pytest_plugins = ["pytester"]

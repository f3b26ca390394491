# PYTHON_ARGCOMPLETE_OK
"""``python -m pytest_llmperf``: the ``llmperf`` command."""

import sys

from pytest_llmperf.cli import main

sys.exit(main())

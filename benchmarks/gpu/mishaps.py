"""Steps that go wrong on purpose: a run that ends them properly can be trusted with those that should not."""

from __future__ import annotations

import subprocess
import sys
import time

from gpu.results import Results
from gpu.step import Place

_FOREVER = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('hanging', flush=True)\n"
    "time.sleep(600)"
)


def works(_place: Place, results: Results) -> None:
    """Two checks that hold."""
    results.compare("one and one", expected=2, found=1 + 1)
    results.measured("seconds since the epoch", int(time.time()))


def hangs(_place: Place, results: Results) -> None:
    """Says one thing, then waits for a child that ignores what it is told, in a session of its own."""
    results.compare("before it hangs", expected=True, found=True)
    subprocess.run([sys.executable, "-c", _FOREVER], check=False, start_new_session=True)


def fails(_place: Place, results: Results) -> None:
    """A check that does not hold."""
    results.compare("one and one", expected=3, found=1 + 1)


def raises(_place: Place, _results: Results) -> None:
    """Ends by an error before it has checked anything."""
    raise RuntimeError("on purpose")


def is_silent(_place: Place, _results: Results) -> None:
    """Checks nothing."""

"""Installed distributions of an interpreter's environment, and a key that changes with any of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_llmperf.ab.dependencies import Installed
from pytest_llmperf.errors import UsageError
from pytest_llmperf.text import printable

# Run by the environment's own interpreter, which may lack our packages. Of one name, the first found is imported.
_LIST = """
import hashlib, importlib.metadata, json, os, re, sys
found = {}
for one in importlib.metadata.distributions():
    name = re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower()
    if name and name not in found:
        url = json.loads(one.read_text("direct_url.json") or "{}")
        commit = url.get("vcs_info", {}).get("commit_id", "")
        files = one.read_text("RECORD") or one.read_text("installed-files.txt") or one.read_text("SOURCES.txt") or ""
        found[name] = {
            "version": one.version or "",
            "source": url.get("url", "") + ("@" + commit if commit else ""),
            "requires": one.requires or [],
            "own": str(one.locate_file("")).startswith(sys.prefix + os.sep),
            "files": hashlib.sha256(files.encode()).hexdigest(),
        }
print(json.dumps({"python": sys.version, "distributions": found}))
"""


class Environment:
    """The distributions of an environment.

    Args:
        python: its interpreter.
        variables: environment of the subprocess that lists them.
        folder: working directory of that subprocess.

    Raises:
        UsageError: the interpreter does not run.
    """

    def __init__(self, python: str, *, variables: Mapping[str, str], folder: Path) -> None:
        command = [python, "-c", _LIST]
        try:
            done = subprocess.run(
                command, cwd=folder, env=dict(variables), capture_output=True, encoding="utf-8", check=True
            )
            self._found: dict[str, Any] = json.loads(done.stdout)
        except OSError as error:
            raise UsageError(f"cannot run {python}: {error.strerror}") from error
        except (subprocess.CalledProcessError, ValueError) as error:
            words = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise UsageError(f"{python} cannot list the packages of its environment: {printable(words[-1])}") from error

    @property
    def installed(self) -> dict[str, Installed]:
        """Distributions by normalized name."""
        return {name: Installed(one["version"], one["source"]) for name, one in self._distributions.items()}

    @property
    def own(self) -> frozenset[str]:
        """Names of the distributions below its prefix: an overlay's own, not those that it falls back to."""
        return frozenset(name for name, one in self._distributions.items() if one["own"])

    @property
    def key(self) -> str:
        """Digest of the interpreter's version and of each distribution's version and list of files."""
        return hashlib.sha256(json.dumps(self._found, sort_keys=True).encode()).hexdigest()

    def requires(self, name: str) -> list[str]:
        """Return the requirements (PEP 508) of a distribution; none if it is not installed."""
        return list(self._distributions.get(name, {}).get("requires", ()))

    @property
    def _distributions(self) -> dict[str, Any]:
        found: dict[str, Any] = self._found["distributions"]
        return found

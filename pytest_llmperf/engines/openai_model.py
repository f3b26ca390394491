"""The model that a server serves, from the request, the server's list and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

from pytest_llmperf.engines.sse import Refused, ServerSentEvent, quote
from pytest_llmperf.errors import LlmperfError, ModelError, UsageError
from pytest_llmperf.models import synthetic
from pytest_llmperf.models.source import is_local
from pytest_llmperf.text import some

_MOST_NAMES = 3


class ServedModel:
    """Determines the served model from the requested name, the server's list, and its answers.

    Args:
        asked: ``--llmperf-model``: a name on the hub, a folder, ``synthetic:NAME``, or a name known only to the server;
            ``None`` accepts the served model.

    Raises:
        UsageError: the synthetic model is unknown.
    """

    def __init__(self, asked: str | None) -> None:
        self._asked = asked
        self._source = _source(asked) if asked else None
        self._name: str | None = self._source
        self._others: list[str] = []
        self.revision: str | None = None
        """The revision reported in answers."""
        self.longest: int | None = None
        """Most tokens of prompt and output, if the server lists it."""
        self.vocabulary = _vocabulary(asked, self._source) if asked and self._source else None
        """Vocabulary size of the requested model; ``None`` where its config is not available here."""

    @property
    def named(self) -> dict[str, str]:
        """The ``model`` field of a request; empty if no name is known and the server has only one model."""
        return {"model": self._name} if self._name else {}

    @property
    def shown(self) -> str:
        """The name to record; never an absolute path."""
        if self._asked and synthetic.is_synthetic(self._asked):
            return self._asked
        return quote(_last_part(self._name)) if self._name else "unknown"

    def choose(self, listed: Any) -> None:
        """Take the model's name from the server's list, if exactly one entry matches."""
        models = [model for model in _entries(listed) if isinstance(model.get("id"), str) and model["id"]]
        if self._asked:
            models = [model for model in models if self._is_asked_for(model["id"])]
        self._others = [model["id"] for model in models]
        if len(models) == 1:
            self._name = models[0]["id"]
            longest = models[0].get("max_model_len")
            self.longest = longest if isinstance(longest, int) and longest > 0 else None

    def check(self, events: Sequence[ServerSentEvent]) -> None:
        """Take the name and revision from an answer.

        Raises:
            ModelError: another model answered.
        """
        told = next((event.data["model"] for event in events if isinstance(event.data.get("model"), str)), None)
        if told is None or told == self._name:
            return
        name, _, revision = told.rpartition("@")  # transformers serve reports NAME@REVISION
        if not name:
            name, revision = told, None
        if self._name not in (None, name):
            raise ModelError(
                f"the server answers as model {quote(told)!r}, expected {quote(str(self._name))!r}: "
                "pass the served model as --llmperf-model, or leave the option out"
            )
        self._name, self.revision = name, revision

    def explained(self, refused: Refused) -> LlmperfError:
        """The error to raise when a server refused every request format."""
        if len(self._others) > 1 and not self._asked:
            return UsageError(
                f"the server has {len(self._others)} models ({some(self._others, _MOST_NAMES)}): "
                "choose one with --llmperf-model"
            )
        return refused

    def _is_asked_for(self, name: str) -> bool:
        """Whether a listed name matches, or is a folder of the same name elsewhere on the server."""
        return name in (self._asked, self._source) or (
            PurePath(name).is_absolute() and _last_part(name) == _last_part(self._source or "")
        )


def check_model(asked: str | None) -> None:
    """Reject an unknown synthetic model.

    Raises:
        UsageError: the synthetic model is unknown.
    """
    if asked and synthetic.is_synthetic(asked):
        synthetic.architecture(asked)


def _source(asked: str) -> str:
    """The model argument with which a server on this machine is started."""
    if synthetic.is_synthetic(asked):
        return str(synthetic.model_folder(asked))
    return str(Path(asked).expanduser().resolve()) if is_local(asked) else asked


def _vocabulary(asked: str, source: str) -> int | None:
    if synthetic.is_synthetic(asked):
        return synthetic.architecture(asked).vocab_size
    if find_spec("transformers") is None:
        return None
    from transformers import AutoConfig

    from pytest_llmperf.models.quiet import quiet

    try:
        with quiet():
            config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError):  # a name known only to the server, or a config that needs trusted code
        return None
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def _entries(listed: Any) -> list[Mapping[str, Any]]:
    data = listed.get("data") if isinstance(listed, dict) else None
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []


def _last_part(name: str) -> str:
    return PurePath(name).name if PurePath(name).is_absolute() else name

"""Versions that pip's indexes list."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from pytest_llmperf.ab import package_versions as module
from pytest_llmperf.ab.overlay import has_pip
from pytest_llmperf.ab.package_versions import package_versions, unlisted, versions_between
from pytest_llmperf.errors import UsageError

pytestmark = pytest.mark.skipif(not has_pip(), reason="pip lists the versions")
FILES = ["1.2", "1.10", "1.10.post1", "2.0rc1", "2.0", "3.0.dev1"]


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    """A folder with wheels is the only index; one needs another Python, and one another system."""
    names = [f"dep-{version}-py3-none-any.whl" for version in FILES]
    for name in (*names, "dep-4.0-cp20-none-any.whl", "dep-5.0-py3-none-plan9.whl", "early-1.0a1-py3-none-any.whl"):
        (tmp_path / name).touch()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))


@pytest.fixture
def listed(monkeypatch):
    """What pip lists, without a process."""
    monkeypatch.setattr(module, "package_versions", lambda _name, **_options: [*map(Version, FILES)])


def test_versions_are_listed_from_the_oldest_on():
    """Final releases that can be installed here; pre-releases if asked for."""
    assert [str(one) for one in package_versions("dep")] == ["1.2", "1.10", "1.10.post1", "2.0"]
    listed = package_versions("dep", prereleases=True)
    assert [str(one) for one in listed] == FILES
    assert all(older < newer for older, newer in pairwise(listed))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "nothing: pip lists no version: No matching distribution found for nothing"),
        ("early", "early: pip lists no version: No matching distribution"),
        ("--index-url=x", "'--index-url=x' is no name of a package"),
        ("dep==1", "'dep==1' is no name of a package"),
        ("dep[x]", "is no name of a package"),
        ("", "'' is no name of a package"),
    ],
)
def test_a_package_without_versions(name, words):
    """A name never is an option of pip's."""
    with pytest.raises(UsageError) as caught:
        package_versions(name)
    assert words in str(caught.value)


def test_a_code_of_the_working_directory_is_not_run(tmp_path, monkeypatch):
    """The user's folder may have a module of that name."""
    (tmp_path / "pip.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    assert package_versions("dep")


def test_without_pip(monkeypatch):
    """An environment that uv made has none."""
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UsageError, match="dep: its versions are listed by pip, which this environment lacks"):
        package_versions("dep")


def test_a_range_has_both_ends_and_final_releases_between(listed):
    """An end may be a pre-release, and needs not be written as the index does."""
    assert [str(one) for one in versions_between("dep", "1.2.0", "2")] == ["1.2", "1.10", "1.10.post1", "2.0"]
    assert [str(one) for one in versions_between("dep", "2.0rc1", "3.0.dev1")] == ["2.0rc1", "2.0", "3.0.dev1"]


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        ("1.3", "2.0", "dep: pip lists no version 1.3; the nearest are 1.2, 1.10, 1.10.post1"),
        ("1.2", "9", "dep: pip lists no version 9; the nearest are 2.0, 3.0.dev1"),
        ("2.0", "1.2", "dep: expected two versions, the older one first, not 2.0 and 1.2"),
        ("2.0", "2.0", "dep: expected two versions"),
        ("new", "2.0", "dep: 'new' is no version; expected one such as 3.0.dev1"),
    ],
)
def test_a_range_that_is_none(listed, first, last, words):
    """In one line."""
    with pytest.raises(UsageError) as caught:
        versions_between("dep", first, last)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("dep==1.10", ""),
        ("dep @ file:///dep.whl", ""),
        ("dep==1.1.*", "pip lists no such version; the nearest are 1.2, 1.10"),
        ("dep>=9", "pip lists no such version; the nearest are 2.0, 3.0.dev1"),
        ("dep===other", "pip lists no such version; the nearest are 2.0rc1, 2.0, 3.0.dev1"),
    ],
)
def test_why_nothing_satisfies_a_requirement(listed, text, why):
    """A file is not listed."""
    assert unlisted(Requirement(text)) == why


def test_why_a_package_is_not_found():
    """An error of the list is the reason."""
    assert unlisted(Requirement("nothing")).startswith("nothing: pip lists no version: ")


def test_the_next_versions_are_those_on_both_sides():
    """At the ends of the list there is only one."""
    versions = [Version(text) for text in FILES]
    assert module.nearest(Version("1.5"), versions) == versions[:3]
    assert module.nearest(Version("0.1"), versions) == versions[:2]

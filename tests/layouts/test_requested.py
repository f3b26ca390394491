"""``llmperf ab --base-with REQUIREMENT --head-with REQUIREMENT``: the same code with other dependencies."""

from __future__ import annotations

import pytest
from layout import FAST, SLOW, assert_red
from wheels import write_wheel

FASTER = "TIMES = 0\n"
A_A = "this is an A/A comparison"


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """A package whose second version is slower, and takes this from a second version of another one."""
    folder = tmp_path_factory.mktemp("wheels")
    for version, source in (("1.0", FAST), ("2.0", SLOW)):
        write_wheel(folder, "inner", version, source)
        write_wheel(folder, "tinydep", version, "from inner import TIMES\n", [f"inner=={version}"])
    return folder


@pytest.fixture
def dependent(layout, wheels):
    """A project that imports ``tinydep``, whose first version is installed, and declares none of it."""
    layout.make_environment()
    layout.offline(wheels)
    layout.plain_project("tinydep")
    layout.begin()
    layout.install("tinydep==1.0", dependencies=True)
    return layout


def ab(layout, *options):
    written = f"--verdicts={layout.verdicts_file}"
    return layout.llmperf("ab", "HEAD", "HEAD", "--no-explain", written, *options, "--", "tests")


def test_an_upgrade_that_costs_operators(dependent):
    """Base runs with what is installed; head gets the new version with its own dependency."""
    result = ab(dependent, "--base-with", "tinydep==1", "--head-with", "tinydep==2")
    assert_red(result)
    assert dependent.more_operators == 2
    assert "base runs with tinydep==1" in result.text
    assert "head runs with tinydep==2" in result.text
    assert A_A not in result.text
    assert "base and head differ in inner: 1.0 -> 2.0, tinydep: 1.0 -> 2.0" in result.text
    assert "operators a token" in result.text, "the work of both versions is compared"
    verdicts = dependent.verdicts
    assert {name: side.requirements for name, side in verdicts.sides.items()} == {
        "base": ["tinydep==1"], "head": ["tinydep==2"],
    }  # fmt: skip
    assert "ab HEAD HEAD --base-with tinydep==1 --head-with tinydep==2 --" in verdicts.tests[0].reproduce


def test_an_environment_that_uv_made(dependent, tmp_path):
    """Head's dependency is found without uv's help. Base gets a build of a version that is installed already."""
    (dependent.environment / "pyvenv.cfg").open("a").write("uv = 0.5\n")
    wheel = write_wheel(tmp_path, "inner", "1.0", FASTER)
    result = ab(dependent, "--base-with", f"inner @ {wheel.as_uri()}", "--head-with", "tinydep==2")
    assert_red(result)
    assert dependent.more_operators == 3
    assert "base and head differ in inner: 1.0 -> 2.0, tinydep: 1.0 -> 2.0" in result.text
    assert "#sha256=" in dependent.verdicts.sides["base"].requirements[0]

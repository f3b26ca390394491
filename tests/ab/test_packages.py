"""Which distributions of an environment are built from the repository."""

from __future__ import annotations

import json
import sys
from pathlib import PurePosixPath

import pytest

from pytest_llmperf.ab.packages import Locator, Package, build_backend, find_packages, project_folders

PYPROJECT = '[build-system]\nrequires = []\n[project]\nname = "{}"\n'


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A repository with two projects, and an environment in it that holds nothing else."""
    root = tmp_path / "repository"
    site = root / ".venv" / "site-packages"
    site.mkdir(parents=True)
    for name in ("engine", "kernels"):
        (root / "packages" / name).mkdir(parents=True)
        (root / "packages" / name / "pyproject.toml").write_text(PYPROJECT.format(name))
    monkeypatch.setattr(sys, "path", [str(site)])
    return root, site


def install(site, name, url=None, *, files=(), **more):
    """A distribution, as an installer leaves it."""
    folder = site / f"{name}-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    for file, text in dict(files).items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)
    (folder / "RECORD").write_text("".join(f"{file},,\n" for file in dict(files)))
    if url:
        (folder / "direct_url.json").write_text(json.dumps({"url": url, **more}))


def found(root, site, *, here="."):
    files = ["packages/engine/pyproject.toml", "packages/kernels/pyproject.toml"]
    return find_packages(Locator([root], [site]), root, root / here, files)


@pytest.mark.parametrize(
    ("url", "more"),
    [
        ("file://{root}/packages/kernels", {"dir_info": {"editable": True}}),
        ("file://{root}/packages/kernels", {"dir_info": {}}),
        ("file://{root}/dist/kernels-1-py3-none-any.whl", {"archive_info": {}}),
        ("git+file://{root}", {"subdirectory": "packages/kernels", "vcs_info": {}}),
        ("file:///another/clone/packages/kernels", {"dir_info": {"editable": True}}),
    ],
    ids=["editable", "copied", "wheel", "git", "another clone"],
)
def test_what_was_installed_from_the_repository(environment, url, more):
    """As its installer has recorded."""
    root, site = environment
    install(site, "kernels", url.format(root=root), **more)
    install(site, "torch")
    install(site, "elsewhere", "file:///elsewhere", dir_info={"editable": True})
    assert found(root, site).packages == [Package("kernels", PurePosixPath("packages/kernels"))]


def test_what_was_installed_without_a_record_of_it(environment, monkeypatch):
    """Its metadata lies beside its source."""
    root, site = environment
    folder = root / "packages" / "kernels" / "kernels.egg-info"
    folder.mkdir()
    (folder / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 1\n")
    monkeypatch.setattr(sys, "path", [str(site), str(folder.parent)])
    assert found(root, site).packages == [Package("kernels", PurePosixPath("packages/kernels"))]


def test_the_working_directorys_project_comes_first(environment):
    """It need not be installed, if it says how it is built; one that says that it is no package is none."""
    root, site = environment
    install(site, "kernels", f"file://{root}/packages/kernels", dir_info={})
    packages = found(root, site, here="packages/engine").packages
    assert [package.name for package in packages] == ["engine", "kernels"]
    (root / "packages" / "engine" / "pyproject.toml").write_text(
        PYPROJECT.format("engine") + "[tool.uv]\npackage = false"
    )
    assert [package.name for package in found(root, site, here="packages/engine").packages] == ["kernels"]
    (root / "packages" / "engine" / "pyproject.toml").write_text('[project]\nname = "engine"\n')
    assert [package.name for package in found(root, site, here="packages/engine").packages] == ["kernels"]


def test_links_that_are_code_are_left_out_and_paths_are_moved(environment):
    """A finder, and a path to another clone, cannot be moved into a side's checkout."""
    root, site = environment
    files = {"path.pth": f"{root}/packages/kernels/src\n", "finder.pth": "import __editable___finder",
             "clone.pth": "/another/clone/src\n", "__editable___finder.py": ""}  # fmt: skip
    install(site, "kernels", f"file://{root}/packages/kernels", files=files, dir_info={"editable": True})
    assert {path.name for path in found(root, site).links} == {"finder.pth", "clone.pth"}
    assert found(root, site).copies == frozenset()


def test_copies_are_named_by_what_they_add(environment):
    """A namespace is shared with others."""
    root, site = environment
    files = ["kernels/__init__.py", "kernels/inner/__init__.py", "single.py", "native.cpython-311-x86_64-linux-gnu.so",
             "company/kernels/__init__.py", "company/kernels/more.py"]  # fmt: skip
    install(site, "kernels", f"file://{root}/packages/kernels", files=dict.fromkeys(files, ""), dir_info={})
    assert found(root, site).copies == {"kernels", "single", "native", "company.kernels"}


def test_a_project_that_cannot_be_read_has_no_name(tmp_path):
    """Unless it is the one that is built, it is somebody else's."""
    (tmp_path / "pyproject.toml").write_text("garbage [")
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = Old_Name\n")
    assert project_folders(tmp_path, ["pyproject.toml"]) == {}
    (tmp_path / "pyproject.toml").write_text("tool = 3\nproject = 4\nbuild-system = 5")
    assert project_folders(tmp_path, ["pyproject.toml"]) == {}
    assert build_backend(tmp_path) == "setuptools"
    assert project_folders(tmp_path, ["pyproject.toml", "setup.cfg"]) == {"old-name": PurePosixPath()}

"""Complete git checkouts of revisions, outside the user's own, which is only read."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pytest_llmperf.errors import UsageError
from pytest_llmperf.system.git import check_revision, is_shallow, remote_of, run_git
from pytest_llmperf.system.paths import user_folder
from pytest_llmperf.text import printable, some

# Fixed, so that an unchanged worktree gives the same commit each time, and an interrupted series can resume.
_SNAPSHOT_IDENTITY = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "llmperf"), ("EMAIL", "llmperf@localhost"), ("DATE", "2000-01-01T00:00:00Z"))
}

_GITLINK = "160000"
"""Mode of a submodule in git's trees."""


def repository_root(folder: Path) -> Path:
    """Return the top folder of the git repository that contains a folder.

    Raises:
        UsageError: it is in none, or git is not installed.
    """
    return Path(_git(folder, "rev-parse", "--show-toplevel"))


def worktrees(root: Path) -> list[Path]:
    """Return every worktree of a repository: an editable install may point into another one than the current."""
    lines = _git(root, "worktree", "list", "--porcelain").splitlines()
    found = (Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree "))
    return list(dict.fromkeys((root, *(folder for folder in found if folder.is_dir()))))


def commit_of(root: Path, revision: str) -> str:
    """Return the full hash of a revision's commit.

    Raises:
        BaselineError: git knows no such revision.
    """
    check_revision(root, revision)
    return _git(root, "rev-parse", "--verify", f"{revision}^{{commit}}")


def tree_of(root: Path, commit: str) -> str:
    """Return the hash of a commit's tree: commits with the same tree differ in nothing that can run."""
    return _git(root, "rev-parse", "--verify", f"{commit}^{{tree}}")


def merge_base(root: Path, revision: str) -> str:
    """Return the merge base of HEAD and a branch.

    Raises:
        LlmperfError: git knows no such revision, or they share no history (a shallow clone has too little of it).
    """
    check_revision(root, revision)
    try:
        return _git(root, "merge-base", revision, "HEAD")
    except UsageError as error:
        deepen = f": this clone is shallow, so run git fetch --unshallow {remote_of(root)}" if is_shallow(root) else ""
        raise UsageError(f"{printable(revision)} and HEAD share no history{deepen}") from error


def first_parent(root: Path, commit: str) -> str:
    """Return a commit's first parent.

    Raises:
        UsageError: it has none, or a shallow clone ends there.
    """
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", f"{commit}^1")
    except UsageError as error:
        more = f"; this clone is shallow: run git fetch --deepen=1 {remote_of(root)}" if is_shallow(root) else ""
        raise UsageError(f"{commit[:12]} has no parent to compare with{more}") from error


def is_ancestor(root: Path, ancestor: str, commit: str) -> bool:
    """Whether a commit contains another one; a shallow clone may lack the history that shows it."""
    return _succeeds(root, "merge-base", "--is-ancestor", ancestor, commit)


def commits_after(root: Path, good: str, bad: str) -> list[tuple[str, str, str, str]]:
    """Return the descendants of ``good`` in the first-parent history of ``bad``, which is last.

    Returns:
        Hash, author, date (ISO 8601) and subject of each.
    """
    line = "--format=%H%x00%an%x00%aI%x00%s"
    found = _git(root, "rev-list", "--first-parent", "--reverse", line, f"{good}..{bad}").split("\n")
    descendants = set(_git(root, "rev-list", "--ancestry-path", f"{good}..{bad}").splitlines())
    rows = [(*text.split("\0", 3),) for text in found if "\0" in text]
    return [(row[0], row[1], row[2], row[3]) for row in rows if row[0] in descendants]


def merged_commits(root: Path, commit: str) -> tuple[str, str] | None:
    """Return what a merge brought in: its merge base, and the tip that was merged; ``None`` for an ordinary commit."""
    parents = _git(root, "rev-parse", f"{commit}^@").splitlines()
    if len(parents) < 2:  # noqa: PLR2004  # a merge
        return None
    return _git(root, "merge-base", *parents[:2]), parents[1]


def working_tree_commit(folder: Path) -> str:
    """Return a commit of the worktree with untracked files and changed submodules, but without ignored files.

    This adds objects to the repository, but changes no branch, index or file. If nothing differs, it returns HEAD's
    commit. The environment and our own cache are left out if they are in the worktree and git does not ignore them.

    Raises:
        UsageError: git fails.
    """
    root = repository_root(folder)
    head = _git(root, "rev-parse", "HEAD")
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        _copy_index(root, Path(scratch) / "index")
        _git(root, "add", "--all", "--", ":/", *_left_out(root), variables=index)
        for path, commit in _gitlinks(_git(root, "ls-files", "--stage", "-z", variables=index)):
            if (root / path / ".git").exists() and (now := working_tree_commit(root / path)) != commit:
                _git(root, "update-index", "--cacheinfo", f"{_GITLINK},{now},{path}", variables=index)
        tree = _git(root, "write-tree", variables=index)
    if tree == tree_of(root, "HEAD"):
        return head
    return _git(root, "commit-tree", tree, "-p", head, "-m", "working tree", variables=_SNAPSHOT_IDENTITY)


def check_out(root: Path, commit: str, folder: Path) -> None:
    """Check out a commit and its submodules, in a new repository that borrows the user's objects.

    A partial clone fetches missing objects into the user's repository. A submodule that the user has not initialized
    stays empty.

    Raises:
        UsageError: git fails, a file of the commit is missing afterwards, or a submodule's commit is not available.
    """
    if _is_partial(root):
        _fetch_missing(root, commit)
    _make_repository(root, folder)
    _git(folder, "checkout", "--quiet", "--detach", commit)
    if missing := [path for path in _git(folder, "ls-files", "--deleted", "-z").split("\0") if path]:
        raise UsageError(
            f"git checked {commit[:12]} out without {printable(some(missing, 3))}: fetch the missing objects"
        )
    for path, wanted in _gitlinks(_git(folder, "ls-tree", "-r", "-z", commit)):
        _check_out_submodule(root, folder, path, wanted)


def tracked_files(checkout: Path) -> list[str]:
    """Return the tracked files of a checkout by their paths in it, including those of submodules."""
    paths = [path for path in _git(checkout, "ls-files", "-z").split("\0") if path]
    inner = [path for path in paths if (checkout / path / ".git").exists()]
    return [*paths, *(f"{path}/{file}" for path in inner for file in tracked_files(checkout / path))]


def is_ignored(root: Path, path: str) -> bool:
    """Whether git ignores a path."""
    return _succeeds(root, "check-ignore", "--quiet", "--", path)


def _copy_index(root: Path, to: Path) -> None:
    """Copy the user's index, which lists the files that a sparse checkout leaves out, so that they are not deleted.

    The copy keeps the index's modification time: from it git tells which files may have changed within the clock's
    resolution.
    """
    index = root / _git(root, "rev-parse", "--git-path", "index")
    if index.exists():
        shutil.copy2(index, to)
    else:
        _git(root, "read-tree", "HEAD", variables={"GIT_INDEX_FILE": str(to)})


def _left_out(root: Path) -> Iterator[str]:
    """Yield pathspecs of folders that belong to no revision: the environment, and our own cache."""
    for folder in (Path(sys.prefix).resolve(), user_folder().resolve()):
        if folder != root and folder.is_relative_to(root):
            yield f":(top,exclude,literal){folder.relative_to(root).as_posix()}"


def _gitlinks(listing: str) -> Iterator[tuple[str, str]]:
    """Yield path and commit of each submodule from ``git ls-files --stage -z`` or ``git ls-tree -r -z``."""
    for line in listing.split("\0"):
        if line.startswith(_GITLINK):
            words, _, path = line.partition("\t")
            yield path, next(word for word in words.split()[1:] if len(word) >= 40)  # noqa: PLR2004  # a hash


def _is_partial(root: Path) -> bool:
    return _succeeds(root, "config", "--get-regexp", r"^(extensions\.partialclone|remote\..*\.promisor)$")


def _fetch_missing(root: Path, commit: str) -> None:
    """Write the tree's files, which fetches those that a partial clone lacks, all at once."""
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        tree = Path(scratch) / "tree"
        tree.mkdir()
        command = ("read-tree", "--reset", "-u", "--no-sparse-checkout", commit)
        try:
            _git(root, f"--work-tree={tree}", *command, variables=index)
        except UsageError as error:
            raise UsageError(
                f"this partial clone lacks files of {commit[:12]} and cannot fetch them ({error}): "
                f"run git fetch --refetch --no-filter {remote_of(root)}"
            ) from error


def _make_repository(root: Path, folder: Path) -> None:
    """Create a repository that borrows the user's objects.

    It is not a clone: from a shallow clone, git copies only what a branch reaches, and a snapshot is on no branch.
    """
    objects = (root / _git(root, "rev-parse", "--git-path", "objects")).resolve()
    shallow = (root / _git(root, "rev-parse", "--git-path", "shallow")).resolve()
    kind = _git(root, "rev-parse", "--show-object-format")
    folder.mkdir(parents=True)
    _git(folder, "init", "--quiet", f"--object-format={kind}", "--template=")
    (folder / ".git" / "objects" / "info").mkdir(parents=True, exist_ok=True)
    (folder / ".git" / "objects" / "info" / "alternates").write_text(f"{objects}\n", encoding="utf-8")
    if shallow.exists():
        shutil.copyfile(shallow, folder / ".git" / "shallow")
    # Tools that derive a version from tags need them.
    tags = _git(root, "for-each-ref", "--format=create %(refname) %(objectname)", "refs/tags")
    _git(folder, "update-ref", "--stdin", text=f"{tags}\n" if tags else "")
    _copy_filters(root, folder)


def _copy_filters(root: Path, folder: Path) -> None:
    """Copy the filter settings, which may be set for one repository only, such as those of git-lfs."""
    settings = _git(root, "config", "--list", "-z").split("\0")
    for name, _, value in (setting.partition("\n") for setting in settings):
        if name.startswith("filter."):
            _git(folder, "config", name, value)
    # git-lfs reads large files from the user's repository, and asks the remote for those that it lacks.
    _git(folder, "remote", "add", "origin", str(root))
    lfs = (root / _git(root, "rev-parse", "--git-path", "lfs")).resolve()
    if lfs.is_dir():
        _git(folder, "config", "lfs.storage", str(lfs))


def _check_out_submodule(root: Path, folder: Path, path: str, commit: str) -> None:
    source = _submodule_repository(root, folder, path)
    if source is None:
        if (root / path).is_dir() and not any((root / path).iterdir()):
            return
        raise UsageError(f"submodule {printable(path)} is not in {root}: run git submodule update --init there")
    if not _succeeds(source, "cat-file", "-e", f"{commit}^{{commit}}"):
        raise UsageError(
            f"submodule {printable(path)} lacks commit {commit[:12]}: "
            f"run git -C {source} fetch {remote_of(source)} {commit}"
        )
    shutil.rmtree(folder / path, ignore_errors=True)
    check_out(source, commit, folder / path)


def _submodule_repository(root: Path, folder: Path, path: str) -> Path | None:
    """Return the user's clone of a submodule: its checkout, or else git's copy of it."""
    if (root / path / ".git").exists():
        return root / path
    settings = ("config", "--file", ".gitmodules", "--get-regexp", r"^submodule\..*\.path$")
    try:
        lines = _git(folder, *settings).splitlines()
    except UsageError:
        return None
    names = (
        key[len("submodule.") : -len(".path")] for key, _, value in (x.partition(" ") for x in lines) if value == path
    )
    kept = (root / _git(root, "rev-parse", "--git-path", f"modules/{name}") for name in names)
    return next((place for place in kept if place.is_dir()), None)


def _succeeds(folder: Path, *arguments: str) -> bool:
    """Return whether a git command exits with 0."""
    return run_git(folder, *arguments).returncode == 0


def _git(folder: Path, *arguments: str, variables: Mapping[str, str] | None = None, text: str | None = None) -> str:
    try:
        done = run_git(folder, *arguments, variables=variables, text=text)
    except OSError as error:
        raise UsageError(f"cannot run git: {error.strerror}") from error
    if done.returncode:
        words = _telling(done.stderr) or f"exit code {done.returncode}"
        raise UsageError(f"git {_verb(arguments)} in {folder}: {printable(words)}")
    return done.stdout.strip()


def _telling(stderr: str) -> str:
    """Return git's error line; other lines report progress or give hints."""
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    return next((line for line in lines if line.startswith(("fatal:", "error:"))), next(iter(lines), ""))


def _verb(arguments: tuple[str, ...]) -> str:
    return next(word for word in arguments if not word.startswith("-"))

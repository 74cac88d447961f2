"""A figure says where it comes from."""

import subprocess
from pathlib import Path

from mirrorla_mm.analysis.provenance import commit_of


def git(folder: Path, *command: str) -> str:
    settings = ('-c', 'user.name=A', '-c', 'user.email=a@b.c', '-c', 'init.defaultBranch=main')
    done = subprocess.run(
        ['git', '-C', folder, *settings, *command], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_commit_is_the_checkouts_own_and_says_whether_files_differ(tmp_path, monkeypatch):
    assert commit_of(tmp_path) is None
    git(tmp_path, 'init')
    assert commit_of(tmp_path) is None
    (tmp_path / 'file').write_text('one')
    git(tmp_path, 'add', 'file')
    git(tmp_path, 'commit', '-m', 'first')
    git(tmp_path, 'tag', '-a', 'v1', '-m', 'a tag')
    commit = commit_of(tmp_path)
    assert len(commit) >= 7 and git(tmp_path, 'rev-parse', 'HEAD').startswith(commit)
    (tmp_path / 'file').write_text('two')
    assert commit_of(tmp_path) == f'{commit}-dirty'
    (tmp_path / 'elsewhere').mkdir()
    git(tmp_path / 'elsewhere', 'init')
    monkeypatch.setenv('GIT_DIR', str(tmp_path / 'elsewhere' / '.git'))
    monkeypatch.setenv('GIT_WORK_TREE', str(tmp_path / 'elsewhere'))
    assert commit_of(tmp_path) == f'{commit}-dirty'
    inner = tmp_path / 'site-packages'
    inner.mkdir()
    assert commit_of(inner) is None
    monkeypatch.setenv('PATH', str(inner))
    assert commit_of(tmp_path) is None

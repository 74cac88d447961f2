"""A file appears complete or not at all, and is otherwise the file that it was."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mirrorla_mm.engine.atomic import whole_file


def write(path, content: bytes) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(content)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_file_that_does_not_fit_the_disk_leaves_the_old_one(tmp_path):
    path = tmp_path / 'a.pth'
    write(path, b'old')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r'a\.pth cannot be written'):
            write(path, b'x' * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b'old'
    assert names(tmp_path) == {'a.pth'}


def test_a_name_may_be_as_long_as_the_file_system_has_them(tmp_path):
    write(tmp_path / ('a' * 255), b'new')
    assert names(tmp_path) == {'a' * 255}


def test_two_writers_do_not_meet(tmp_path):
    with whole_file(tmp_path / 'a') as first, whole_file(tmp_path / 'a') as second:
        first.write_bytes(b'first')
        second.write_bytes(b'second')
        assert not (tmp_path / 'a').exists()
    assert (tmp_path / 'a').read_bytes() == b'first'  # the last to finish
    assert names(tmp_path) == {'a'}


def test_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(
        os, 'fsync', lambda handle: done.append(os.readlink(f'/proc/self/fd/{handle}'))
    )
    replace = Path.replace
    monkeypatch.setattr(Path, 'replace', lambda *args: [done.append('replaced'), replace(*args)])
    write(tmp_path / 'a', b'new')
    partial, replaced, folder = done
    assert partial.endswith('.partial') and replaced == 'replaced' and folder == str(tmp_path)
    done.clear()
    with whole_file(tmp_path / 'a', sync=False) as file:
        file.write_bytes(b'newer')
    assert done == ['replaced'] and (tmp_path / 'a').read_bytes() == b'newer'


@pytest.mark.parametrize('bits', [0o600, 0o640, 0o666])
def test_permissions_stay(tmp_path, bits):
    path = tmp_path / 'a'
    path.touch()
    path.chmod(bits)
    with whole_file(path) as partial:
        assert mode(partial) == bits  # at no time is it open to more people
        partial.write_bytes(b'new')
    assert mode(path) == bits
    (tmp_path / 'plain').touch()
    write(tmp_path / 'fresh', b'')
    assert mode(tmp_path / 'fresh') == mode(tmp_path / 'plain')


def test_links_are_followed_folders_made_and_devices_spared(tmp_path):
    (tmp_path / 'real').write_bytes(b'old')
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    write(tmp_path / 'link', b'new')
    write(tmp_path / 'a' / 'b' / 'c', b'deep')
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    write(tmp_path / 'pipe', b'pipe')
    assert os.read(reader, 9) == b'pipe'
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / 'pipe').stat().st_mode)
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'real').read_bytes() == b'new'
    assert (tmp_path / 'a' / 'b' / 'c').read_bytes() == b'deep'


@pytest.fixture()
def warnings(monkeypatch) -> list[str]:
    said = []
    monkeypatch.setattr('mirrorla_mm.engine.atomic.print_log', lambda text, *_: said.append(text))
    return said


def test_all_hard_links_see_the_new_content_and_it_is_said(tmp_path, warnings):
    (tmp_path / 'a').write_bytes(b'old')
    (tmp_path / 'b').hardlink_to(tmp_path / 'a')
    write(tmp_path / 'a', b'new')
    assert (tmp_path / 'b').read_bytes() == b'new'
    assert names(tmp_path) == {'a', 'b'}
    assert 'hard links' in warnings[0] and 'half a file' in warnings[0]


def test_mount_point_is_written_in_place_and_it_is_said(tmp_path, warnings, monkeypatch):
    def busy(self, target):
        raise OSError(errno.EBUSY, 'Device or resource busy')

    (tmp_path / 'a').write_bytes(b'old')
    monkeypatch.setattr(Path, 'replace', busy)
    write(tmp_path / 'a', b'new')
    assert (tmp_path / 'a').read_bytes() == b'new' and names(tmp_path) == {'a'}
    assert 'mount point' in warnings[0]


READ_ONLY = """
import os, sys
from mirrorla_mm.engine.atomic import whole_file
folder = sys.argv[1]
os.chmod(folder, 0o555)
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
with whole_file(f'{folder}/writable') as partial:
    partial.write_bytes(b'new')
for name, reason in (('protected', 'Permission denied'), ('absent', 'Permission denied')):
    try:
        with whole_file(f'{folder}/{name}') as partial:
            partial.write_bytes(b'new')
    except OSError as error:
        assert f'{name} cannot be written: {reason}' in str(error), error
    else:
        raise SystemExit(f'{name} was written')
"""


@pytest.mark.slow
def test_read_only_folders_and_files(tmp_path):
    # Another user must reach it, which folders of the test run do not allow.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, bits in (('writable', 0o666), ('protected', 0o444)):
            (folder / file).write_bytes(b'old')
            (folder / file).chmod(bits)
        done = subprocess.run(
            [sys.executable, '-c', READ_ONLY, name],
            capture_output=True,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        folder.chmod(0o755)
        assert done.returncode == 0, done.stderr
        assert (folder / 'writable').read_bytes() == b'new'
        assert (folder / 'protected').read_bytes() == b'old'
        assert 'folder is read-only' in done.stdout + done.stderr


def test_interrupted_writer_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / 'a') as partial:
        partial.write_bytes(b'half')
        raise KeyboardInterrupt
    assert names(tmp_path) == set()

import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from sgquant_optuna.storage.out_files import check_out_file, replacing, resuming, write_out_file


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def make_folder(path):
    path.mkdir()


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_to_device(path):
    path.symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_folder, "a folder"),
        (make_pipe, "a named pipe"),
        (make_socket, "a socket"),
        (link_to_device, "a device"),
    ],
)
def test_only_a_regular_file_is_replaced(make, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket has 107 bytes at most
    make(tmp_path / "out")
    before = (tmp_path / "out").lstat()
    for write in (check_out_file, lambda path: write_out_file(path, "new")):
        with pytest.raises(ValueError, match=f"out: expected a file to write, got {kind}"):
            write("out")
    after = (tmp_path / "out").lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert names(tmp_path) == ["out"]


def test_a_device_stays_a_device():
    with pytest.raises(ValueError, match="/dev/null: expected a file to write, got a device"):
        write_out_file("/dev/null", "new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    target.write_text("old")
    (tmp_path / "link").symlink_to("folder/target")
    write_out_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and target.read_text() == "new"
    assert names(tmp_path / "folder") == ["target"]


def test_a_link_to_a_file_that_is_not_there_makes_that_file(tmp_path):
    (tmp_path / "link").symlink_to("target")
    write_out_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(ValueError, match=r"link: cannot write it \(Too many levels of symbolic"):
        write_out_file(tmp_path / "link", "new")


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path, umask):
    write_out_file(tmp_path / "out", "é")
    assert mode_of(tmp_path / "out") == 0o640
    assert (tmp_path / "out").read_bytes() == "é".encode()


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, umask):
    (tmp_path / "out").touch()
    (tmp_path / "out").chmod(0o604)
    write_out_file(tmp_path / "out", "new")
    assert mode_of(tmp_path / "out") == 0o604


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path):
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(0o444)
    with pytest.raises(ValueError, match=r"cannot write it \(Permission denied\)"):
        write_out_file(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "old"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_old_file_stays_whole_when_writing_fails(error, tmp_path):
    (tmp_path / "out").write_text("old")
    expected = ValueError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as raised, replacing(tmp_path / "out") as part:
        part.write_text("half")
        raise error
    if expected is ValueError:
        assert str(raised.value).endswith("out: cannot write it (No space left on device)")
    assert (tmp_path / "out").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such/file", "no/such/file: expected a file in an existing folder, got no/such"),
        ("/proc/file", r"/proc/file: cannot write it \("),
        ("x" * 300, r"cannot write it \(File name too long\)"),
    ],
)
def test_a_place_that_takes_no_file_is_told_before_anything_is_computed(path, message):
    for write in (check_out_file, lambda path: write_out_file(path, "new")):
        with pytest.raises(ValueError, match=message):
            write(path)


def test_a_check_leaves_nothing_and_changes_nothing(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to("old")
    assert check_out_file(tmp_path / "link") == tmp_path.resolve() / "old"
    assert check_out_file(tmp_path / "new") == tmp_path.resolve() / "new"
    assert names(tmp_path) == ["link", "old"]
    assert (tmp_path / "old").read_text() == "old"


WRITER = """
import sys, time
from sgquant_optuna.storage.out_files import replacing
path, letter, how_often = sys.argv[1:]
for _ in range(int(how_often)):
    with replacing(path) as part:
        part.write_text(letter * 100_000)
        if how_often == "1":
            print("half", flush=True)
            sys.stdin.read()
"""


def writer(path, letter, how_often):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), letter, str(how_often)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_a_killed_writer_left_is_removed_by_the_next_of_its_name(tmp_path):
    with writer(tmp_path / "out", "x", 1) as killed:
        assert killed.stdout.readline() == "half\n"
        write_out_file(tmp_path / "out", "new")  # the other one lives, so its part is left alone
        assert len(names(tmp_path)) == 2
        killed.send_signal(signal.SIGKILL)
    (left,) = [name for name in names(tmp_path) if name != "out"]
    write_out_file(tmp_path / "other", "another name removes nothing")
    assert names(tmp_path) == sorted([left, "other", "out"])
    write_out_file(tmp_path / "out", "newer")
    assert names(tmp_path) == ["other", "out"]
    assert (tmp_path / "out").read_text() == "newer"


def test_of_two_writers_the_last_to_end_wins_whole(tmp_path):
    with writer(tmp_path / "out", "x", 1) as slow:
        assert slow.stdout.readline() == "half\n"
        write_out_file(tmp_path / "out", "quick")
        assert (tmp_path / "out").read_text() == "quick"
        slow.communicate("")
    assert slow.returncode == 0
    assert (tmp_path / "out").read_text() == "x" * 100_000
    assert names(tmp_path) == ["out"]


def test_many_writers_at_once_disturb_no_file(tmp_path):
    with writer(tmp_path / "out", "x", 200) as one, writer(tmp_path / "out", "y", 200) as other:
        while one.poll() is None or other.poll() is None:
            if (tmp_path / "out").exists():
                content = (tmp_path / "out").read_text()
                assert content == content[0] * 100_000
    assert (one.returncode, other.returncode) == (0, 0)
    assert names(tmp_path) == ["out"]


def test_a_writer_that_puts_a_file_of_its_own_there_leaves_the_permissions(tmp_path, umask):
    with replacing(tmp_path / "out") as part:  # as safetensors writes
        (part.parent / ".tmp").write_text("new")
        (part.parent / ".tmp").chmod(0o600)
        (part.parent / ".tmp").replace(part)
    assert mode_of(tmp_path / "out") == 0o640


RESUMED = """
import sys
from sgquant_optuna.storage.out_files import resuming
with resuming(sys.argv[1]) as folder:
    (folder / "part").write_text("half")
    print("half", flush=True)
    sys.stdin.read()
"""


def resumed_writer(path):
    words = [sys.executable, "-c", RESUMED, str(path)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_writers_work_is_there_for_the_next(tmp_path):
    with resumed_writer(tmp_path / "out") as killed:
        assert killed.stdout.readline() == "half\n"
        with pytest.raises(ValueError, match="another process writes the same file now"):
            with resuming(tmp_path / "out"):
                pass
        assert len(names(tmp_path)) == 1
        killed.send_signal(signal.SIGKILL)
    with resuming(tmp_path / "out") as folder:
        assert (folder / "part").read_text() == "half"
        (folder / "part").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == ["out"] and (tmp_path / "out").read_text() == "whole"


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (KeyboardInterrupt(), True),
        (OSError(28, "No space left on device"), True),
        (ValueError("row 3 holds NaN"), False),
    ],
)
def test_work_is_kept_after_a_stop_and_removed_after_a_mistake(tmp_path, error, is_kept):
    with pytest.raises((KeyboardInterrupt, ValueError)):
        with resuming(tmp_path / "out"):
            raise error
    assert len(names(tmp_path)) == is_kept
    write_out_file(tmp_path / "out", "of another command")
    assert names(tmp_path) == ["out"]


def test_a_file_that_is_there_stays_unless_it_is_to_be_overwritten(tmp_path):
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(0o604)
    with pytest.raises(ValueError, match="out: expected no file yet, got one; remove it"):
        with resuming(tmp_path / "out"):
            pass
    with resuming(tmp_path / "out", overwrite=True) as folder:
        (folder / "part").write_text("new")
        assert (tmp_path / "out").read_text() == "old"
    assert (tmp_path / "out").read_text() == "new" and mode_of(tmp_path / "out") == 0o604
    assert names(tmp_path) == ["out"]


def test_a_folder_whose_file_was_moved_to_its_place_is_removed(tmp_path):
    """A writer was killed between the move and the end."""
    with pytest.raises(KeyboardInterrupt), resuming(tmp_path / "out") as folder:
        (folder / "state").write_text("done")
        os.replace(folder / "part", tmp_path / "out")
        raise KeyboardInterrupt
    assert len(names(tmp_path)) == 2
    with pytest.raises(ValueError, match="expected no file yet"):
        with resuming(tmp_path / "out"):
            pass
    assert names(tmp_path) == ["out"]

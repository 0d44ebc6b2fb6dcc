"""Files are whole or absent."""

import errno
import fcntl
import json
import os

import pytest

from semisam_tf.atomic import locked, replacing, sweep, write_json


def test_a_full_disk_is_named_and_the_old_file_kept(tmp_path, files_of_a_page):
    path = tmp_path / "result.json"
    write_json(path, {"dice": 0.5})
    with pytest.raises(OSError, match=rf"Expected room for {path}; free some.*\d+ bytes free"), files_of_a_page():
        write_json(path, {"dice": [0.5] * 4096})
    assert json.loads(path.read_text(encoding="utf-8")) == {"dice": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_block_s_own_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), replacing(tmp_path / "a"):
        (tmp_path / "absent").read_bytes()


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"dice": 0.5})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"dice": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"dice": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_keeps_its_suffixes(tmp_path):
    with replacing(tmp_path / "deep" / "student.weights.h5") as temporary:
        assert temporary.name.endswith(".weights.h5")
        temporary.write_bytes(b"x")
    assert (tmp_path / "deep" / "student.weights.h5").read_bytes() == b"x"


def test_sweep_takes_what_a_killed_process_left_and_nothing_else(tmp_path):
    with replacing(tmp_path / "whole.h5") as temporary:
        temporary.write_bytes(b"x")
        left_over = tmp_path / temporary.name.replace("whole", "torn")
    left_over.write_bytes(b"x")
    sweep(tmp_path)
    sweep(tmp_path / "absent")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.h5"]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refused(handle, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refused)
    message = (
        rf"Expected a --workdir on a file system with file locks.*Received: {tmp_path} \(Function not implemented\)"
    )
    with pytest.raises(OSError, match=message), locked(tmp_path, "--workdir"):
        pass

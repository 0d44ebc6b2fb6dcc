"""Memory and disk against what a run needs."""

import os
import types

import pytest

from semisam_tf.findings import FAIL, OK, WARN
from semisam_tf.health.machine import GIB, check_folder, check_memory, existing_folder, gib, memory_bytes

MEMINFO = "MemTotal:  16777216 kB\nMemFree:  1 kB\nMemAvailable:  8388608 kB\nHugePages_Total: 0\n"


def test_memory_of_the_machine_and_of_a_container(tmp_path):
    meminfo, limit, used = (tmp_path / name for name in ("meminfo", "limit", "used"))
    meminfo.write_text(MEMINFO, encoding="utf-8")
    assert memory_bytes(str(meminfo), ()) == (8 * GIB, 16 * GIB)
    limit.write_text(f"{4 * GIB}\n", encoding="utf-8")
    used.write_text(f"{GIB}\n", encoding="utf-8")
    assert memory_bytes(str(meminfo), [(str(limit), str(used))]) == (3 * GIB, 4 * GIB)
    limit.write_text("max\n", encoding="utf-8")
    assert memory_bytes(str(meminfo), [(str(limit), str(used))]) == (8 * GIB, 16 * GIB)
    assert memory_bytes(str(tmp_path / "absent"), ()) is None


@pytest.mark.parametrize(("needed", "status"), [(7, OK), (9, WARN), (11, FAIL)])
def test_memory_that_is_short(needed, status):
    finding = check_memory({"the scans": (needed - 1) * GIB, "a step": GIB}, (10 * GIB, 20 * GIB))
    assert finding.status == status
    needs = f"the run needs about {needed - 1}.0 GiB for the scans, 1.0 GiB for a step"
    assert finding.found == f"10.0 GiB of 20.0 GiB free; {needs}"


def test_memory_that_nobody_knows():
    assert check_memory({}, None).status == WARN


def test_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: types.SimpleNamespace(free=10 * GIB))
    path = str(tmp_path / "not" / "yet")
    assert existing_folder(path) == tmp_path
    for needed, status in ((7, OK), (9, WARN), (11, FAIL)):
        finding = check_folder("sam cache", path, needed * GIB, "what for", "--sam_cache_dir")
        assert finding.status == status
    assert "--sam_cache_dir" in finding.fix
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written to" in check_folder("workdir", path, 0, "", "--workdir").found


def test_bytes_for_people():
    assert (gib(3 * GIB), gib(3 * 1024**2)) == ("3.0 GiB", "3.0 MiB")

"""A disk that fills up in the middle of a training, and one that may only be read: small ones, mounted for the test."""

import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

pytestmark = pytest.mark.slow

# $1 is the mount point, the rest the command. Mounted in a namespace of its own: nobody else sees it, and it is gone
# with this process. The disk is filled as soon as a checkpoint is there.
SCRIPT = """
set -u
disk=$1; shift
mount -t tmpfs -o size=64m tmpfs "$disk" || exit 99
"$@" 2> "$disk/../1.log" &
process=$!
until ls "$disk"/run/checkpoints/step_*.h5 > /dev/null 2>&1; do
    kill -0 $process || break
    sleep 0.02
done
dd if=/dev/zero of="$disk/ballast" bs=64k 2> /dev/null
wait $process; echo $? > "$disk/../1.code"
cp -r "$disk/run" "$disk/../full"
rm "$disk/ballast"
mount -o remount,ro "$disk"
"$@" 2> "$disk/../2.log"; echo $? > "$disk/../2.code"
mount -o remount,rw "$disk"
"$@" 2> "$disk/../3.log"; echo $? > "$disk/../3.code"
cp -r "$disk/run" "$disk/../end"
"""


@pytest.fixture
def may_mount(tmp_path):
    """Skips where nothing can be mounted, as in most containers."""
    (tmp_path / "probe").mkdir()
    words = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "probe")]
    if shutil.which("unshare") is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount: unshare --mount mount -t tmpfs")


def arrays(workdir):
    with h5py.File(workdir / "checkpoints" / "step_00000008.h5") as file:
        return {f"{group.name}/{item.attrs['name']}": item[()] for group in file.values() for item in group.values()}


def test_full_then_read_only_then_mended(may_mount, tiny_cohort, tmp_path):
    disk, whole = tmp_path / "disk", tmp_path / "whole"
    disk.mkdir()
    words = [
        sys.executable, "-m", "semisam_tf.train", f"--data_dir={tiny_cohort}", "--labeled=1", "--filters=2",
        "--patch_size=16,16,16", "--network=unet3d", "--normalisation=instance", "--method=supervised",
        "--batch_size=2", "--max_steps=8", "--checkpoint_every=1", "--log_every=1",
    ]  # fmt: skip
    script = ["unshare", "--mount", "bash", "-c", SCRIPT, "-", str(disk), *words, f"--workdir={disk}/run"]
    subprocess.run(script, check=True, timeout=500)
    log = {n: (tmp_path / f"{n}.log").read_text(encoding="utf-8") for n in (1, 2, 3)}
    assert {n: (tmp_path / f"{n}.code").read_text(encoding="utf-8").strip() for n in (1, 2, 3)} == {
        1: "1",
        2: "1",
        3: "0",
    }, log
    assert f"error: [Errno 28] Expected room for {disk}/run/" in log[1]
    assert "free some and give the same command again" in log[1]
    assert not [path for path in (tmp_path / "full").rglob("*") if "partial" in path.name]
    assert "error: Expected a --workdir that may be written to" in log[2]
    assert "Read-only file system" in log[2]
    assert "Resuming" in log[3]
    assert not [text for text in log.values() if "Traceback" in text or "damaged" in text]
    assert json.loads((tmp_path / "end" / "result.json").read_text(encoding="utf-8"))["steps"] == 8

    subprocess.run([*words, f"--workdir={whole}"], check=True, capture_output=True)
    expected, received = arrays(whole), arrays(tmp_path / "end")
    assert expected.keys() == received.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(received[name], array, err_msg=name)

"""Checkpoints and the lock."""

import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from semisam_tf.training import checkpoint


def test_round_trip_keeps_arrays_and_state(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "student": {"0000:a/kernel": rng.normal(size=(40, 40)).astype(np.float32)},
        "sam": {"mask/case": rng.integers(0, 2, (20, 20, 20), np.uint8), "weight/case": np.zeros(3, np.uint8)},
    }
    checkpoint.save(tmp_path, 7, arrays, {"duration_s": 1.5, "sam": {"visits": {"case": 2}}})
    step, loaded, state = checkpoint.load_latest(tmp_path)
    assert (step, state) == (7, {"duration_s": 1.5, "sam": {"visits": {"case": 2}}})
    for group, named in arrays.items():
        assert loaded[group].keys() == named.keys()
        for name, array in named.items():
            np.testing.assert_array_equal(loaded[group][name], array)
            assert loaded[group][name].dtype == array.dtype


def test_the_newest_two_are_kept(tmp_path):
    for step in (5, 10, 15, 100):
        checkpoint.save(tmp_path, step, {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000015.h5", "step_00000100.h5"]
    assert checkpoint.load_latest(tmp_path)[0] == 100


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load_latest(tmp_path / "absent") is None


def flipped(data):
    """One bit in the middle of an array's values, which HDF5 itself does not notice."""
    position = data.index(np.full(8, 7.0).tobytes()) + 3
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGES = {
    "cut": lambda data: data[:1500], "cut in the block": lambda data: data[:100], "empty": lambda data: b"",
    "longer": lambda data: data + b"x", "a bit": flipped, "zeros": lambda data: bytes(len(data)),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_passed_over_and_kept(tmp_path, caplog, damage):
    for step in (5, 10):
        path = checkpoint.save(tmp_path, step, {"a": {"x": np.full(100, float(step == 10) * 7)}}, {"step": step})
    whole = path.read_bytes()
    assert checkpoint.load_latest(tmp_path)[0] == 10
    path.write_bytes(DAMAGES[damage](whole))
    step, arrays, state = checkpoint.load_latest(tmp_path)
    assert (step, state) == (5, {"step": 5})
    assert arrays["a"]["x"].max() == 0
    assert "step_00000010.h5 is damaged" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000005.h5", "step_00000010.h5.damaged"]
    # It is not counted among the two that are kept.
    checkpoint.save(tmp_path, 6, {}, {})
    assert checkpoint.load_latest(tmp_path)[0] == 6
    assert (tmp_path / "step_00000005.h5").is_file()


def test_only_damaged_files_are_an_error_that_names_them_and_touches_none(tmp_path):
    for step in (5, 10):
        checkpoint.save(tmp_path, step, {}, {}).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"remove the files.*step_00000010\.h5.*step_00000005\.h5"):
        checkpoint.load_latest(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000005.h5", "step_00000010.h5"]


def test_files_of_older_versions_without_a_digest_are_taken(tmp_path):
    path = checkpoint.save(tmp_path, 5, {"a": {"x": np.ones(3)}}, {"k": 1})
    path.write_bytes(path.read_bytes()[512:])
    step, arrays, state = checkpoint.load_latest(tmp_path)
    assert (step, arrays["a"]["x"].sum(), state) == (5, 3.0, {"k": 1})


def test_an_interrupted_save_leaves_the_old_one(tmp_path):
    checkpoint.save(tmp_path, 5, {"a": {"x": np.ones(3)}}, {})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 6, {"a": {"x": np.array([object()])}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005.h5"]


def test_assign_lists_all_that_does_not_fit():
    variables = [keras.Variable(np.zeros((2, 2)), name="kernel"), keras.Variable(np.zeros(2), name="bias")]
    arrays = checkpoint.arrays_of(variables)
    arrays["0009:stranger"] = np.zeros(1)
    arrays["0001:bias"] = np.zeros(3)
    del arrays["0000:kernel"]
    with pytest.raises(ValueError, match=r"student.*0000:kernel.*0009:stranger.*0001:bias"):
        checkpoint.assign(variables, arrays, "student")


def test_a_second_process_is_refused_and_the_lock_dies_with_its_holder(tmp_path):
    code = (
        "import sys, time, pathlib; from semisam_tf.training.checkpoint import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RuntimeError, match=f"in use by process {holder.pid}"),
            checkpoint.locked(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    for _ in range(100):
        try:
            with checkpoint.locked(tmp_path):
                return
        except RuntimeError:
            time.sleep(0.05)
    pytest.fail("the lock outlived its process")


def test_room_for_one_more_than_are_kept_is_asked_for(tmp_path, files_of_a_page):
    with files_of_a_page():
        checkpoint.require_room(tmp_path / "new", 1365)
    with pytest.raises(OSError, match="Expected room for 4098 bytes in"), files_of_a_page():
        checkpoint.require_room(tmp_path, 1366)
    for step in (1, 2):
        (tmp_path / f"step_{step:08d}.h5").touch()
    with files_of_a_page():
        checkpoint.require_room(tmp_path, 4096)
    with pytest.raises(OSError, match=r"Expected room for 4097 bytes in .* bytes free"), files_of_a_page():
        checkpoint.require_room(tmp_path, 4097)
    assert len(list(tmp_path.glob("step*"))) == 2


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_others(tmp_path, files_of_a_page):
    checkpoint.save(tmp_path, 5, {}, {})
    arrays = {"a": {"x": np.random.default_rng(0).normal(size=1000)}}
    with pytest.raises(OSError, match=r"Expected room for .*step_00000006\.h5"), files_of_a_page():
        checkpoint.save(tmp_path, 6, arrays, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005.h5"]

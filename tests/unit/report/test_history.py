"""An append-only history: after a resume no step is there twice, and a half-written line harms nobody."""

import json

import pytest

from semisam_tf.report.history import History, read_history


def steps_of(path):
    return [entry["step"] for entry in read_history(path)]


def test_entries_are_appended_one_a_line(tmp_path):
    path = tmp_path / "history.jsonl"
    history = History(path, 0)
    assert read_history(path) == []
    for step in (20, 40):
        history.append({"step": step, "terms": {"dice": 0.5}})
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"step": 20, "terms": {"dice": 0.5}},
        {"step": 40, "terms": {"dice": 0.5}},
    ]


@pytest.mark.parametrize(("restored", "kept"), [(0, []), (20, [20]), (30, [20]), (40, [20, 40]), (90, [20, 40, 60])])
def test_entries_past_the_restored_step_are_dropped(tmp_path, restored, kept):
    path = tmp_path / "history.jsonl"
    history = History(path, 0)
    for step in (20, 40, 60):
        history.append({"step": step})
    resumed = History(path, restored)
    assert steps_of(path) == kept
    resumed.append({"step": restored + 1})
    assert steps_of(path) == [*kept, restored + 1]


@pytest.mark.parametrize("rest", ['{"step": 60, "te', '{"step": 60}'])
def test_a_line_cut_off_by_a_kill_is_dropped_and_nothing_is_glued_to_it(tmp_path, rest):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 20}\n{"step": 40}\n' + rest, encoding="utf-8")
    assert steps_of(path) == [20, 40]
    History(path, 100).append({"step": 60})
    assert steps_of(path) == [20, 40, 60]
    assert path.read_text(encoding="utf-8").endswith('{"step": 60}\n')


def test_damaged_lines_are_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 20}\nno json\n[1]\n{"other": 1}\n\xff\xfe\n{"step": 40}\n')
    History(path, 100)
    assert path.read_text(encoding="utf-8") == '{"step": 20}\n{"step": 40}\n'
    assert "4 lines" in caplog.text


def test_a_whole_history_is_not_written_anew(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"step":   20}\n', encoding="utf-8")
    History(path, 20)
    assert path.read_text(encoding="utf-8") == '{"step":   20}\n'


def test_infinity_is_refused_and_leaves_nothing(tmp_path):
    path = tmp_path / "history.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        History(path, 0).append({"step": 1, "terms": {"dice": float("inf")}})
    assert not path.exists()

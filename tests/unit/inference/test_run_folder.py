"""What is read of a run's folder."""

from semisam_tf.inference.run_folder import rounds_of


def test_rounds_come_in_their_order_and_only_finished_ones(tmp_path):
    for number in (2, 10, 1, 11):
        folder = tmp_path / "rounds" / str(number)
        folder.mkdir(parents=True)
        if number != 11:
            (folder / "result.json").write_text("{}", encoding="utf-8")
    assert rounds_of(tmp_path) == [*(tmp_path / "rounds" / n for n in ("1", "2", "10")), tmp_path]

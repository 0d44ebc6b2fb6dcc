"""Shares that are all cases together, and locks that let shards work side by side but nobody else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semisam_tf.atomic import locked
from semisam_tf.options import OptionError
from semisam_tf.shards import Shard, locked_for, parse_shard


def test_every_nth_case_by_hand():
    assert Shard(2, 3).share("abcdefgh") == ["b", "e", "h"]
    assert Shard(2, 3).own_first("abcdefgh") == ["b", "e", "h", "c", "f", "a", "d", "g"]
    assert Shard(4, 4).share("abc") == []
    assert Shard(1, 1).share("abc") == Shard(1, 1).own_first("abc") == ["a", "b", "c"]


@given(st.lists(st.integers(), max_size=30, unique=True), st.integers(1, 9))
def test_the_shares_are_all_items_once(items, n):
    shards = [Shard(i + 1, n) for i in range(n)]
    assert sorted(item for shard in shards for item in shard.share(items)) == sorted(items)
    for shard in shards:
        assert sorted(shard.own_first(items)) == sorted(items)
        share = shard.share(items)
        assert shard.own_first(items)[: len(share)] == share


def test_the_flag():
    assert parse_shard("") is None
    assert parse_shard("3/12") == Shard(3, 12)
    assert str(parse_shard("3/12")) == "3/12"


@pytest.mark.parametrize("text", ["0/4", "5/4", "a/b", "1", "1/0", "-1/4", "1/4/2", "1.5/2", " ", "1 /4"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(OptionError, match=r"--shard: expected i/n with 1 <= i <= n.*Received: '"):
        parse_shard(text)


def test_shards_share_a_folder_and_nobody_else_does(tmp_path):
    with locked_for(tmp_path, "--output", Shard(1, 2)):
        with locked_for(tmp_path, "--output", Shard(2, 2)):
            pass
        with (
            pytest.raises(RuntimeError, match=r"in use by process \d+.*another --shard"),
            locked_for(tmp_path, "--output", Shard(1, 2)),
        ):
            pass
        with pytest.raises(RuntimeError, match="another --output"), locked_for(tmp_path, "--output", None):
            pass
    with locked_for(tmp_path, "--output", None):
        with pytest.raises(RuntimeError, match="another --output"), locked_for(tmp_path, "--output", Shard(1, 2)):
            pass
        # A lock of another name is another lock.
        with locked(tmp_path, "--output", name=".other", wait=True):
            pass
    with locked_for(tmp_path, "--output", Shard(1, 2)):
        pass


def test_a_shard_of_another_number_of_shards_is_refused(tmp_path):
    with (
        locked_for(tmp_path, "--output", Shard(1, 2)),
        pytest.raises(RuntimeError, match="another number of shards"),
        locked_for(tmp_path, "--output", Shard(1, 3)),
    ):
        pass
    with locked_for(tmp_path, "--output", Shard(1, 3)):
        pass


def test_shards_that_start_together_do_not_take_each_other_for_those_of_another_number(tmp_path):
    with locked_for(tmp_path, "--output", Shard(1, 2)):
        pass
    left_over = ".lock_1_of_2"
    assert (tmp_path / left_over).is_file()
    # As another of the three has it, while it asks the same question.
    with locked(tmp_path, "--shard", name=left_over, shared=True), locked_for(tmp_path, "--output", Shard(1, 3)):
        pass
    with (
        locked(tmp_path, "--shard", name=left_over),
        pytest.raises(RuntimeError, match="as one of another number of shards"),
        locked_for(tmp_path, "--output", Shard(1, 3)),
    ):
        pass

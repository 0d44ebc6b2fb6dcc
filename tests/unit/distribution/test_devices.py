"""Who takes which items, and what is refused before anything is read; the rest is in tests/integration/test_devices."""

import dataclasses
import json

import pytest
import tensorflow as tf

from semisam_tf.config import Config
from semisam_tf.distribution.devices import Devices, devices_of
from semisam_tf.distribution.shares import cluster_size
from semisam_tf.options import OptionError

CONFIG = Config(batch_size=8, labeled_per_batch=2, method="mean_teacher", workdir="runs/a")


def of_two(worker):
    return Devices(tf.distribute.get_strategy(), worker=worker, workers=2)


def test_processes_share_labelled_and_unlabelled_items_evenly():
    shares = [of_two(worker).share(8, 2) for worker in (0, 1)]
    assert shares == [[0, 2, 3, 4], [1, 5, 6, 7]]
    assert Devices(tf.distribute.get_strategy()).share(8, 2) is None


def test_the_chief_alone_writes_to_the_runs_folder():
    assert of_two(0).own(CONFIG) == CONFIG
    assert of_two(1).own(CONFIG) == dataclasses.replace(CONFIG, workdir="runs/a/workers/1")


@pytest.fixture
def cluster(monkeypatch):
    """Sets TF_CONFIG: (workers, index, kind)."""

    def chosen(workers, index=0, kind="worker"):
        task = {"cluster": {kind: ["localhost:1"] * workers}, "task": {"type": kind, "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(task))

    return chosen


def test_cluster_is_read_from_the_environment(cluster, monkeypatch):
    cluster(3, index=2)
    assert cluster_size() == 3
    monkeypatch.delenv("TF_CONFIG")
    assert cluster_size() == 1


@pytest.mark.parametrize("changes", [{"workers": 2, "index": 2}, {"workers": 2, "kind": "chief"}])
def test_members_that_no_run_has_are_refused(cluster, changes):
    cluster(**changes)
    with pytest.raises(OptionError, match="TF_CONFIG: expected"):
        cluster_size()


def test_a_cluster_that_is_no_json_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "worker=a,b")
    with pytest.raises(OptionError, match="Received: worker=a,b"):
        cluster_size()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeled_per_batch": 1}, "1 labelled of --batch_size=8"),
        ({"batch_size": 5}, "2 labelled of --batch_size=5"),
        ({"method": "bidirectional_copy_paste"}, "one device takes them all"),
    ],
)
def test_a_batch_that_devices_cannot_share_is_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        devices_of(dataclasses.replace(CONFIG, devices=2, **changes))


@pytest.mark.parametrize("changes", [{"rounds": 2}, {"coarse_to_fine": True}])
def test_what_one_process_has_to_do_is_refused_in_several(cluster, changes):
    cluster(2)
    with pytest.raises(OptionError, match=r"expected one process\. Received: 2"):
        devices_of(dataclasses.replace(CONFIG, **changes))


def test_rounds_in_several_processes_are_refused_before_the_first(cluster, tmp_path):
    from semisam_tf.training.rounds import train

    cluster(2)
    config = dataclasses.replace(
        CONFIG, data_dir=str(tmp_path), workdir=str(tmp_path / "run"), rounds=2, sam_mode="offline", sam_fusion="mean"
    )
    with pytest.raises(OptionError, match=r"--rounds and --coarse_to_fine: expected one process\. Received: 2"):
        train(config)
    assert not (tmp_path / "run").exists()

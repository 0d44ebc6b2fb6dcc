"""What training scans are cut to."""

import numpy as np

from semisam_tf.data.volumes import Volume
from semisam_tf.inference.region import Region
from semisam_tf.training.coarse import training_region

FOUND = Region((4, 4, 4), (10, 10, 10))
MISSED = Region((0, 0, 0), (20, 20, 20), found=False)


def scan(labelled):
    label = np.zeros((20, 20, 20), np.uint8)
    label[8:12, 5:6, 2:3] = 1
    return Volume("case", np.zeros((20, 20, 20, 1), np.float32), label if labelled else None, (1.0, 1, 1), np.eye(4))


def test_an_unlabelled_scan_is_cut_to_what_was_found():
    assert training_region(FOUND, scan(labelled=False), 1.0) == FOUND
    assert training_region(MISSED, scan(labelled=False), 1.0) == MISSED


def test_no_labelled_voxel_is_cut_off():
    assert training_region(FOUND, scan(labelled=True), 1.0) == Region((4, 4, 1), (13, 10, 10))


def test_a_label_stands_in_where_nothing_was_found():
    assert training_region(MISSED, scan(labelled=True), 1.0) == Region((7, 4, 1), (13, 7, 4))


def test_a_label_without_an_organ_says_nothing():
    empty = scan(labelled=True)
    empty.label[:] = 0
    assert training_region(FOUND, empty, 1.0) == FOUND

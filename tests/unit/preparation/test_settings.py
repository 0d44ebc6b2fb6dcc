"""Flags that cannot be."""

import dataclasses

import pytest

from semisam_tf.data.orientation import AXIS_CODES
from semisam_tf.options import OptionError
from semisam_tf.preparation.settings import PrepareConfig, channel_endings, check, given_spacing

GOOD = PrepareConfig(images="scans", output="data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ""}, "--images is needed"),
        ({"output": " "}, "--output is needed"),
        ({"orientation": "RAR"}, "--orientation"),
        ({"orientation": "XYZ"}, "--orientation"),
        ({"crop": "label"}, "--crop: expected one of none, foreground, body"),
        ({"crop_margin_mm": -1.0}, "--crop_margin_mm"),
        ({"spacing_mm": "1,1"}, "--spacing_mm"),
        ({"spacing_mm": "1,1,0"}, "--spacing_mm"),
        ({"spacing_mm": "mean"}, "--spacing_mm"),
        ({"default_spacing_mm": (1.0, 1.0)}, "--default_spacing_mm"),
        ({"workers": -1}, "--workers"),
        ({"channels": "_t1,_t1"}, "--channels"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    check(GOOD)
    with pytest.raises(OptionError, match=message):
        check(dataclasses.replace(GOOD, **changes))


def test_every_axis_code_is_an_orientation():
    for code in AXIS_CODES:
        check(dataclasses.replace(GOOD, orientation=code))


def test_values_of_flags():
    assert given_spacing(dataclasses.replace(GOOD, spacing_mm="1,0.5, 2")) == (1.0, 0.5, 2.0)
    assert given_spacing(GOOD) is None
    assert channel_endings(dataclasses.replace(GOOD, channels=" _t1, _flair,")) == ("_t1", "_flair")

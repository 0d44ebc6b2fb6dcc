"""Which scan to label next: values worked by hand."""

import numpy as np
import pytest

from semisam_tf.inference.ranking import Opinion, features_of, mean_entropy, order


def opinion(disagreement, *features):
    return Opinion({"student_teacher": disagreement}, np.array(features, float))


def test_the_most_doubtful_comes_first_where_all_look_alike():
    opinions = {"a": opinion(0.1, 0.0), "b": opinion(0.3, 0.0), "c": opinion(0.2, 0.0)}
    assert order(opinions, [np.zeros(1)]) == [("b", 1.0), ("c", pytest.approx(2 / 3)), ("a", pytest.approx(1 / 3))]


def test_a_scan_like_a_chosen_one_waits():
    # "b" and "c" are nearly the same scan; "a" is as doubtful as neither, but unlike them.
    opinions = {"a": opinion(0.1, 9.0), "b": opinion(0.3, 10.0), "c": opinion(0.29, 10.1), "d": opinion(0.2, -10.0)}
    assert [name for name, _ in order(opinions, [np.array([0.0])])] == ["b", "d", "a", "c"]


def test_measures_count_by_rank():
    def both(a, b):
        return Opinion({"student_teacher": a, "uncertainty": b}, np.zeros(1))

    # Ranks 3 + 1, 1 + 3, 2 + 2 of 3: as doubtful as each other, so the first by name.
    result = order({"a": both(0.9, 0.1), "b": both(0.1, 9.0), "c": both(0.2, 0.2)}, [np.zeros(1)])
    assert result[0] == ("a", pytest.approx(2 / 3))


def test_a_scan_without_a_measure_is_ranked_by_the_others():
    def both(a, b):
        return Opinion({"student_teacher": a, "sam_teacher": b}, np.zeros(1))

    # Of "a" SAM was not asked: its rank is that of students, 3 of 3. The others: 2/3 and 1/2, 1/3 and 2/2.
    result = order({"a": both(0.3, None), "b": both(0.2, 0.1), "c": both(0.1, 0.4)}, [np.zeros(1)])
    assert dict(result) == {"a": 1, "c": pytest.approx(2 / 3), "b": pytest.approx(7 / 12)}


def test_nothing_found_is_most_doubtful():
    nothing = Opinion({"student_teacher": np.inf}, np.zeros(1))
    assert order({"a": opinion(0.9, 0.0), "b": nothing}, [np.zeros(1)])[0] == ("b", 1.0)


def test_without_a_labelled_scan_the_first_is_the_most_doubtful():
    assert order({"a": opinion(0.1, 1.0), "b": opinion(0.2, 2.0)}, [])[0] == ("b", 1.0)


def test_features_and_entropy():
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4, 1)
    mask = np.zeros((2, 3, 4), np.uint8)
    mask[1] = 1
    features = features_of(image, mask, (1.0, 1.0, 2.0))
    assert features.shape == (19,)
    assert (features[4], features[13], features[18]) == (17.5, 5.5, pytest.approx(np.log(25)))
    probs = np.array([[0.5, 0.5], [1.0, 0.0]], np.float32).reshape(2, 1, 1, 2)
    assert mean_entropy(probs) == pytest.approx(np.log(2))
    assert mean_entropy(probs[1:]) == 0

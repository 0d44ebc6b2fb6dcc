"""The mean step with cached targets counts a target's share."""


def test_the_mean_step_has_its_share_of_a_target(load_benchmark):
    cached_step = load_benchmark("cached_step")
    # A step without SAM takes 1 s, one that cuts targets out 1.1 s, a target 2 s.
    result = {
        "without": {"step_s": [1.0, 1.0, 1.3]},
        # The last step had a slice to encode.
        "cached": {
            "step_s": [1.1, 3.1, 1.1, 5.1, 1.1, 9.0],
            "targets": [0, 1, 0, 2, 0, 1],
            "slices_encoded": [0] * 5 + [7],
        },
    }
    assert cached_step.table(result).splitlines() == [
        "a step without SAM 1.000 s; with cached targets, none due, 1.100 s: 1.10 times; a target, its embeddings on "
        "disk, 2.00 s",
        "a target every 10 visits: 1.50 times the step without SAM",
        "a target every 50 visits: 1.18 times the step without SAM",
    ]

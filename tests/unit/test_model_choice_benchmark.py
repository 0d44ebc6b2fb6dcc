"""The table of candidates says what each label-free signal would have cost."""

import pytest


@pytest.fixture
def model_choice(load_benchmark):
    return load_benchmark("model_choice")


def test_each_signals_choice_is_marked_and_its_loss_counted(model_choice):
    def candidate(number, network, dice, agreement, certainty, own_dice):
        signals = {"agreement": agreement, "certainty": certainty, "own_dice": own_dice}
        return {"round": number, "network": network, "dice": dice, "signals": signals}

    candidates = [
        candidate(1, "student", 0.80, 0.7, -0.1, 0.7),
        candidate(2, "student", 0.86, 0.8, -0.3, 0.8),
        candidate(2, "teacher", 0.85, 0.8, -0.2, 0.9),
    ]
    lines = model_choice.table({"name": "r", "unlabelled_asked": ["a", "b"], "candidates": candidates}).splitlines()
    assert lines[0] == "r, signals over 2 unlabelled scans"
    assert lines[4:] == [
        "| 1 | student | 80.0 | 0.700 | **-0.100** | 0.700 |",
        "| 2 | student | 86.0 | 0.800 | -0.300 | 0.800 |",
        "| 2 | teacher | 85.0 | **0.800** | -0.200 | **0.900** |",
        "| points below the best | last teacher: 1.0 | | 1.0 | 6.0 | 1.0 |",
    ]

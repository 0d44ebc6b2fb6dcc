"""Points of a chart lie where their values are."""

import numpy as np
import pytest

from semisam_tf.report.charts import Series, line_chart, strip_chart, thinned


@pytest.fixture
def chart_of(parse):
    """(steps, values, last step) -> the figure."""

    def draw(steps, values, last=100):
        return parse(line_chart(Series("a<b", "note", "loss", steps, values), last))

    return draw


def points_of(line):
    return np.array([pair.split(",") for pair in line.attributes["points"].split()], float)


def test_a_line_goes_through_its_values(chart_of):
    figure = chart_of([0, 50, 100], [1.0, 0.25, 0.5])
    svg = figure.one("svg")
    points = points_of(svg.one("polyline"))
    left, right, bottom, top = map(float, svg.attributes["data-frame"].split(","))
    np.testing.assert_allclose(points[:, 0], [left, (left + right) / 2, right], atol=0.06)
    np.testing.assert_allclose(points[:, 1], bottom + np.array([1.0, 0.25, 0.5]) * (top - bottom), atol=0.06)
    # SVG's y grows downwards.
    assert top < bottom
    assert svg.attributes["data-values"] == "1,0.25,0.5"
    assert figure.one("output").text == "0.5 at step 100"
    assert "1 at step 0" in svg.attributes["aria-label"]


def test_the_axis_ends_at_the_last_step_of_the_run(chart_of):
    points = points_of(chart_of([10, 20], [1.0, 2.0], last=200).one("polyline"))
    frame = chart_of([10, 20], [1.0, 2.0], last=200).one("svg").attributes["data-frame"].split(",")
    share = (points[-1, 0] - float(frame[0])) / (float(frame[1]) - float(frame[0]))
    assert share == pytest.approx(0.1, abs=1e-3)


def test_a_missing_value_interrupts_the_line(chart_of):
    figure = chart_of([1, 2, 3, 4, 5, 6], [1.0, 2.0, None, 3.0, None, 1.0])
    assert [len(points_of(line)) for line in figure.all("polyline")] == [2]
    assert len(figure.all("circle")) == 2  # points by themselves
    assert figure.one("svg").attributes["data-steps"] == "1,2,4,6"


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [-2.0, -1.0], [1e-9, 2e-9], [1e9, 3e9]])
def test_any_range_of_values_stays_within_the_frame(chart_of, values):
    svg = chart_of([1, 2], values).one("svg")
    _, _, bottom, top = map(float, svg.attributes["data-frame"].split(","))
    y = points_of(svg.one("polyline"))[:, 1]
    assert (y >= top - 0.1).all()
    assert (y <= bottom + 0.1).all()


def test_many_points_are_averaged_in_groups():
    steps, values = thinned(range(1, 1001), [float(v % 2) for v in range(1000)], most=100)
    assert (steps[0], steps[-1], len(steps)) == (10, 1000, 100)
    assert values == [0.5] * 100
    assert thinned([1, 2], [None, 3.0]) == ([1, 2], [None, 3.0])
    assert thinned([1, 2, 3, 4], [None, 1.0, None, None], most=2) == ([2, 4], [1.0, None])


def test_a_strip_has_a_point_a_case_and_the_quartiles_of_five(parse):
    cases = [(f"case<{i}", value) for i, value in enumerate((0.1, 0.2, 0.3, 0.4, 1.0))]
    svg = parse(strip_chart("dice", [("all", cases)])).one("svg")
    x = np.array([float(point.attributes["cx"]) for point in svg.all("circle")])
    assert [point.text for point in svg.all("circle")] == [f"case<{i}: {v:.4f}" for i, (_, v) in enumerate(cases)]
    np.testing.assert_allclose(
        (x - x[0]) / (x[-1] - x[0]), (np.array([0.1, 0.2, 0.3, 0.4, 1.0]) - 0.1) / 0.9, atol=1e-3
    )
    box, median = svg.one("rect"), svg.one("line", class_="median")
    assert float(box.attributes["x"]) == pytest.approx(x[1], abs=0.1)
    assert float(box.attributes["width"]) == pytest.approx(x[3] - x[1], abs=0.2)
    assert float(median.attributes["x1"]) == pytest.approx(x[2], abs=0.1)
    assert "median 0.3000, quartiles 0.2000 to 0.4000, 0.1000 to 1.0000, 5 cases" in svg.attributes["aria-label"]


def test_few_cases_have_no_box_and_a_row_may_be_empty(parse):
    svg = parse(strip_chart("hd95_mm", [("all", [("a", 3.0)]), ("class 1", [])])).one("svg")
    assert len(svg.all("circle")) == 1
    assert svg.all("rect") == []
    assert "no case has one" in svg.text
    assert "class 1" in svg.text

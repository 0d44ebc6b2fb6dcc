"""The report in a real browser, where there is one: nothing is wider than the window, on a desk and on a phone."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

from semisam_tf.report.page import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path (Debian: apt-get install chromium)")

# In the page: tells the frame around it how wide it is, and how wide the window.
_MEASURE = """<script>addEventListener("load", () => {
    // What is folded away has no width.
    document.querySelectorAll("details").forEach(part => { part.open = true; });
    parent.postMessage([document.documentElement.scrollWidth, innerWidth, document.querySelectorAll("section").length,
        document.querySelectorAll("details").length].join(), "*"); })
</script>"""
# Around it, since a browser's own window is no narrower than 500 pixels.
_FRAME = """<!DOCTYPE html><body><script>addEventListener("message", event => {{
    document.body.setAttribute("data-measured", event.data); }})</script>
<iframe srcdoc="{page}" style="width: {width}px; height: 2400px; border: 0"></iframe></body>"""


def run_browser(page, *options):
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=4000"]
    command = [*words, *options, f"file://{page}"]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(make_run, tmp_path, width):
    run = make_run({"sam_mode": "cached", "sam_start_step": 150}, ["t01", "t02", "t03", "t04", "t05"], n_classes=4)
    opened = {"run_id": "doctor", "purpose": "data_check", "case_id": "a_name_as_long_as_names_of_cases_are"}
    (run / "label_access.jsonl").write_text(json.dumps(opened) + "\n", encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8").replace("</body>", f"{_MEASURE}</body>")
    page = tmp_path / "frame.html"
    page.write_text(_FRAME.format(page=html.escape(text), width=width), encoding="utf-8")
    shown = run_browser(page, "--dump-dom", f"--window-size={max(width, 600)},900").stdout
    measured = re.search(r'data-measured="(\d+),(\d+),(\d+),(\d+)"', shown)
    assert measured, "the page's own script did not run"
    scroll_width, window_width, sections, folded = map(int, measured.groups())
    assert window_width == width
    assert scroll_width <= window_width
    assert sections == 7
    assert folded >= 6
    if folder := os.environ.get("SEMISAM_SCREENSHOTS"):
        run_browser(page, f"--screenshot={folder}/report_{width}.png", f"--window-size={max(width, 600)},2400")

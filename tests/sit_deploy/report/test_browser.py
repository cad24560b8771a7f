"""The page in a real browser: Chromium, headless. A copy of the page gets a script that writes down what it measures."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.sit_deploy.report.conftest import flipped, page_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

# what a reader would stumble over: a page wider than the window, text that does not stand out, plots and pictures not drawn
MEASURE = """
<script>
document.querySelectorAll("details").forEach(d => d.open = true);
const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255).map(
  v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
const probe = document.createElement("div");
probe.style.background = "Canvas"; document.body.append(probe);
const canvas = getComputedStyle(probe).backgroundColor;
const texts = [...document.querySelectorAll("p, td, th, h1, h2, li, span, summary, figure")];
const inks = [...document.querySelectorAll("svg text")];
const found = {
  wide: document.documentElement.scrollWidth, window: innerWidth, canvas,
  contrast: Math.min(...texts.map(e => contrast(getComputedStyle(e).color, canvas))),
  ink: Math.min(...inks.map(e => contrast(getComputedStyle(e).fill, canvas))),
  plots: [...document.querySelectorAll("svg")].map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height]),
  pictures: [...document.images].map(e => e.getBoundingClientRect().width),
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
};
document.body.innerHTML = "<pre>" + JSON.stringify(found) + "</pre>";
</script>
"""


def measure(page: str, folder: Path, width: int, dark: bool) -> dict[str, Any]:
    path = folder / "page.html"
    path.write_text(page.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    options += [f"--window-size={width},900", "--dump-dom", "--virtual-time-budget=2000"]
    if dark:
        options.append("--blink-settings=preferredColorScheme=0")
    done = subprocess.run(
        [CHROMIUM, *options, path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1]))


@pytest.fixture(scope="module")
def pages(measured: dict[str, Any]) -> tuple[str, str]:
    """The page of a bundle with an image whose class changed, and that of two bundles."""
    other = {**measured, "name": "a-bundle-of-a-rather-long-name-" * 3, "bundle": "elsewhere"}
    return page_of(flipped(measured)), page_of(measured, other)


# headless Chromium makes no window narrower than 500 pixels
@pytest.mark.parametrize(
    ("width", "dark"), [(500, True), (1200, False)], ids=["phone, dark", "desktop, light"]
)
def test_it_looks_right(width: int, dark: bool, pages: tuple[str, str], tmp_path: Path) -> None:
    for number, page in enumerate(pages):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = measure(page, folder, width, dark)
        assert found["dark"] is dark
        assert found["wide"] <= found["window"], "the page scrolls sideways"
        assert found["contrast"] >= 4.5 and found["ink"] >= 4.5, (
            "text does not stand out (WCAG AA asks for 4.5)"
        )
        assert len(found["plots"]) == (3, 7)[number]
        assert all(w >= 400 and h >= 60 for w, h in found["plots"])
        assert found["pictures"] and all(100 <= w <= 300 for w in found["pictures"])

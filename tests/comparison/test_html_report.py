"""The page of a comparison, as text and in a browser."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.synthetic import TIMESTEPS, write_run
from PIL import Image

from t2i.comparison.grouping import compare
from t2i.comparison.html_report import write_page
from t2i.comparison.results import read_results
from t2i.evaluation.metrics import Metric

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script>"
FOUR = {"timesteps": TIMESTEPS[::4]}  # a small battery: four SNR bins


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a small sweep in which names, reasons and prompts are hostile."""
    folder = tmp_path_factory.mktemp("sweep")
    write_run(folder / "mse", "loss=mse", f"samples.prompts=['{HOSTILE}', 'red apple']", **FOUR)
    write_run(folder / "five", "loss=minsnr", f"samples.prompts=['{HOSTILE}', 'red apple']", better=0.1, **FOUR)
    noisy = {"better": np.array([-0.1, -0.1, 0.2, 0.2]), "choices": {"loss": HOSTILE}}
    write_run(folder / "<img src=x onerror=alert(2)>", "loss=x", **noisy, **FOUR)
    failed = {"state": "failed", "validated": (0,), "error": f"ValueError: {HOSTILE}"}
    write_run(folder / "failed", "loss=mse", "seed=1", **failed, **FOUR)
    write_page(compare(read_results([folder])), Metric.named("val/loss"), folder)
    return folder / "comparison.html"


class Elements(HTMLParser):
    """What a browser would see: the elements with their attributes, and the texts."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_nothing_that_a_run_says_becomes_part_of_the_page(page):
    document = Elements(page.read_text())
    assert [tag for tag, _ in document.elements].count("script") == 1
    assert not [name for _, attributes in document.elements for name in attributes if name.startswith("on")]
    assert "".join(document.texts).count(HOSTILE) > 5
    assert any("<img src=x onerror=alert(2)>" in text for text in document.texts)


def test_the_page_needs_no_other_file(page):
    document = Elements(page.read_text())
    sources = [attributes[key] for _, attributes in document.elements for key in ("src", "href") if key in attributes]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "url(" not in page.read_text()
    assert not re.search(r"@import|<link", page.read_text())


def test_every_metric_has_its_section_and_the_chosen_one_is_shown(page):
    sections = [attributes for tag, attributes in Elements(page.read_text()).elements if tag == "section"]
    shown = [each["data-metric"] for each in sections if "data-metric" in each and "hidden" not in each]
    assert shown == ["val/loss"]
    assert len({each["data-metric"] for each in sections if "data-metric" in each}) == 12


def test_the_page_says_of_the_bins_what_the_battery_has(page):
    text = " ".join(page.read_text().split())
    assert "The 4 noise levels are divided into 4 SNR bins" in text
    assert "eighth" not in text


def test_the_figures_are_files_too(page):
    for name in ("overview", "differences", "curves", "snr", "samples"):
        with Image.open(page.parent / f"{name}.png") as figure:
            assert figure.width > 300 or name == "samples"
            assert np.asarray(figure.convert("L")).std() > 10


@pytest.mark.browser
def test_nothing_is_cut_off_on_a_phone_or_in_a_small_window(tmp_path):
    """With eight SNR bins, averaged weights, three seeds and long labels."""
    sync_api = pytest.importorskip("playwright.sync_api")
    for seed in (0, 1, 2):
        for rate in (1e-4, 3e-4):
            overrides = [f"seed={seed}", f"optimizer.lr={rate}", f"loss.snr_gamma={1e4 * rate:g}"]
            write_run(tmp_path / f"{rate}-{seed}", *overrides, better=100 * rate)
    write_page(compare(read_results([tmp_path])), Metric.named("val/loss"), tmp_path)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto((tmp_path / "comparison.html").as_uri())
        wide = "[...document.querySelectorAll('.scroll, html')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        sizes = "[...document.querySelectorAll('table.sortable td')].map(e => parseFloat(getComputedStyle(e).fontSize))"
        for width in (390, 600, 1000):
            tab.set_viewport_size({"width": width, "height": 800})
            assert tab.evaluate(wide) == 0, width
            assert min(tab.evaluate(sizes)) >= 12
        browser.close()


@pytest.mark.browser
def test_in_a_browser_the_metric_switches_tables_sort_and_nothing_is_missing(page):
    sync_api = pytest.importorskip("playwright.sync_api")
    problems, requests = [], []
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=options)
        tab = browser.new_page()
        tab.on("console", lambda message: problems.append(message.text))
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())

        def column(section: str, number: int) -> list[str]:
            return (
                tab.locator(f"{section}:visible table >> nth=0")
                .locator(f"tbody td:nth-child({number})")
                .all_inner_texts()
            )

        assert column("section[data-metric]", 1) == ["minsnr", f"{HOSTILE}", "mse baseline"]
        before = column("section[data-metric]", 3)
        tab.select_option("#metric", "val/snr_bin_3/eps")
        assert column("section[data-metric]", 1) == ["minsnr", "mse baseline", f"{HOSTILE}"]
        assert column("section[data-metric]", 3) != before
        assert tab.locator("section[data-metric]:visible").count() == 1
        assert tab.locator("section[data-prefix]:visible").get_attribute("data-prefix") == ""
        tab.select_option("#metric", "val/ema/loss")
        assert tab.locator("section[data-prefix]:visible").get_attribute("data-prefix") == "ema/"

        heading = tab.locator("section[data-metric]:visible table >> nth=0").locator("th").nth(3)
        heading.click()
        ascending = column("section[data-metric]", 4)
        assert heading.get_attribute("aria-sort") == "ascending"
        assert ascending == sorted(ascending)
        heading.click()
        assert column("section[data-metric]", 4) == ascending[::-1]

        widths = tab.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
        assert len(widths) > 36
        assert min(widths) > 0
        browser.close()
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]

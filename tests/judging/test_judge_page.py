"""The judge's page in a browser: votes by keyboard and by touch, a reload in the middle, two judges at once."""

import re
import subprocess
import sys
from collections import Counter

import pytest
from helpers.contests import write_sweep

from t2i.runs.judgements import Judgements

pytestmark = pytest.mark.browser
SETTINGS = re.compile(r"gamma|snr|loss|seed-\d|step-\d", re.IGNORECASE)
NEXT = "before => document.body.dataset.shown !== undefined && document.body.dataset.shown !== before"


@pytest.fixture
def served(tmp_path):
    """The folder of a sweep, and the address of `t2i judge` on it."""
    sweep = write_sweep(tmp_path / "gamma")
    command = [sys.executable, "-m", "t2i", "judge", str(sweep), "--pairs", "20"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = next(match[0] for line in process.stdout if (match := re.search(r"http://\S+", line)))
    yield sweep.resolve(), address
    process.terminate()
    process.wait()
    process.stdout.close()


@pytest.fixture
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=options)
        yield browser
        browser.close()


class Judge:
    """A tab of somebody who votes; notes problems and every address that was asked for."""

    def __init__(self, browser, address, name, **options):
        self.tab, self.problems, self.requests = browser.new_context(**options).new_page(), [], []
        self.tab.on("console", lambda message: self.problems.append(message.text))
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(address)
        self.tab.fill("#name", name)
        self.tab.keyboard.press("Enter")
        self.wait("")

    def shown(self):
        return self.tab.evaluate("document.body.dataset.shown")

    def wait(self, before):
        self.tab.wait_for_function(NEXT, arg=before)

    def press(self, key):
        before = self.shown()
        self.tab.keyboard.press(key)
        self.wait(before)

    def tap(self, selector):
        before = self.shown()
        self.tab.tap(selector)
        self.wait(before)


def votes_of(sweep, judge):
    return [vote for (name, _), vote in Judgements(sweep).read()[0].items() if name == judge]


def test_twenty_votes_by_keyboard_with_a_reload_in_the_middle(served, browser):
    sweep, address = served
    anna = Judge(browser, address, "anna", viewport={"width": 1280, "height": 800})
    keys, seen = ["ArrowLeft", "ArrowRight", "ArrowDown"], []
    for number in range(20):
        if number == 9:
            before = anna.shown()
            anna.tab.reload()
            anna.wait("")
            assert anna.shown() == before
            assert anna.tab.inner_text("#count") == "9 of 22"
        seen.append(anna.shown())
        assert not SETTINGS.search(anna.tab.content())
        anna.press(keys[number % 3])
    votes = votes_of(sweep, "anna")
    assert [vote.id for vote in votes] == seen
    assert [vote.choice for vote in votes] == [("left", "right", "equal")[number % 3] for number in range(20)]
    assert len(set(seen)) == 20
    assert sum(bool(vote.repeats) for vote in votes) == 1
    origin = address.rsplit("/", 2)[0]
    assert all(url.startswith((f"{origin}/", "data:")) for url in anna.requests)
    assert not any(SETTINGS.search(url) for url in anna.requests)
    assert anna.problems == []


def test_the_shown_sides_are_those_that_the_votes_say(served, browser):
    """The pixels at the left of the page are those of the run that the vote names as left."""
    sweep, address = served
    anna = Judge(browser, address, "anna")
    draw = """name => { const image = document.getElementById(name), canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
      return [...context.getImageData(0, 0, 16, 16).data].filter((_, i) => i % 4 < 3); }"""
    from PIL import Image

    for _ in range(4):
        pixels = anna.tab.evaluate(draw, "left")
        anna.press("ArrowLeft")
        vote = votes_of(sweep, "anna")[-1]
        folder = next((sweep / vote.left.run / "images").glob("*/step-000200"))
        with Image.open(folder / f"{vote.prompt:05d}-{vote.seed}.png") as image:
            assert list(image.convert("RGB").tobytes()) == pixels


def test_two_judges_vote_at_once_until_the_end(served, browser):
    sweep, address = served
    anna, ben = Judge(browser, address, "anna"), Judge(browser, address, "ben")
    for _ in range(22):
        anna.press("ArrowLeft")
        ben.press("ArrowRight")
    for judge in (anna, ben):
        assert judge.tab.inner_text("#done h1") == "Done. Thank you!"
        assert judge.problems == []
    assert Counter(vote.choice for vote in votes_of(sweep, "anna")) == {"left": 22}
    assert Counter(vote.choice for vote in votes_of(sweep, "ben")) == {"right": 22}
    new = [{vote.id for vote in votes_of(sweep, name) if not vote.repeats} for name in ("anna", "ben")]
    assert new[0] == new[1]
    assert len(new[0]) == 20


def test_by_touch_on_a_phone(served, browser):
    sweep, address = served
    anna = Judge(browser, address, "anna", viewport={"width": 390, "height": 844}, has_touch=True)
    for selector in ("#left", "#right", "#choices [data-choice=equal]"):
        anna.tap(selector)
    assert [vote.choice for vote in votes_of(sweep, "anna")] == ["left", "right", "equal"]
    fits = "document.documentElement.scrollWidth <= 390 && document.documentElement.scrollHeight <= 844"
    assert anna.tab.evaluate(fits)
    left, right = anna.tab.locator("#left").bounding_box(), anna.tab.locator("#right").bounding_box()
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == pytest.approx(right["y"], abs=1)
    assert anna.tab.evaluate("getComputedStyle(document.getElementById('left')).imageRendering") == "pixelated"


def test_a_vote_is_taken_back_and_the_server_may_stop(served, browser):
    sweep, address = served
    anna = Judge(browser, address, "anna")
    first = anna.shown()
    anna.press("ArrowLeft")
    anna.press("Backspace")
    assert anna.shown() == first
    assert votes_of(sweep, "anna") == []
    anna.tab.route("**/vote", lambda route: route.abort())
    anna.tab.keyboard.press("ArrowRight")
    anna.tab.wait_for_selector("#problem:visible")
    assert "Is it still running?" in anna.tab.inner_text("#message")
    anna.tab.unroute("**/vote")
    anna.tab.click("#problem button")
    anna.wait(first)
    assert [vote.choice for vote in votes_of(sweep, "anna")] == ["right"]

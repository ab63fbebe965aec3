"""The rating page in Chromium: what a person sees, clicks and types is what the file holds."""

import json
import random
from pathlib import Path

import pytest
from browser import NEEDS_CHROMIUM, chromium, free_port

from transformers_owl.evaluation.rating_desk import RatingDesk


pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(autouse=True)
def pages_are_closed(browser):
    """A page that is left open asks for its server for ever."""
    yield
    for context in browser.contexts:
        context.close()


@pytest.fixture
def site(questions, systems, tmp_path):
    """A running page: its address and its file."""
    pytest.importorskip("gradio")
    from transformers_owl.evaluation.rating_page import serving

    port = free_port()
    output = tmp_path / "ratings.jsonl"
    with serving(RatingDesk(questions, systems, output), "127.0.0.1", port):
        yield f"http://127.0.0.1:{port}", output


def enter(browser, address, name, **settings):
    view = browser.new_context(**settings).new_page()
    view.goto(address)
    view.get_by_label("Your name").fill(name)
    view.get_by_role("button", name="Start").click()
    view.get_by_text(f"rated by {name}").wait_for()
    return view


def marks(output, rater):
    """What the file holds, the last word of each: `{(question, system): (level, abilities)}`."""
    said = {}
    for row in map(json.loads, output.read_text().splitlines()):
        for name, mark in row["marks"].items():
            if row["rater"] == rater:
                said[row["question_id"], name] = (mark["level"], mark["abilities"])
    return said


def progress(view, rated):
    view.get_by_text(f"{rated} of 11 answers rated").wait_for()


def test_mouse_and_keyboard_rate_what_is_shown(browser, site, questions, systems):
    address, output = site
    order = RatingDesk(questions, systems, output.with_name("other.jsonl")).order
    view = enter(browser, address, "anna")
    card = view.locator(".card:visible")
    assert card.count() == 1
    card.get_by_label("B", exact=True).click()
    card.get_by_label("2 Visual understanding").click()
    progress(view, 1)
    view.get_by_role("button", name="Next question").click()
    view.get_by_text("Question 2 of 8").wait_for()
    assert card.count() == 2
    for key in "c2jA":
        view.keyboard.press(key)
    progress(view, 3)
    view.keyboard.press("n")
    view.get_by_text("Question 3 of 8").wait_for()
    view.keyboard.press("d")
    progress(view, 4)
    for number in (2, 1):
        view.keyboard.press("p")
        view.get_by_text(f"Question {number} of 8").wait_for()
    assert card.get_by_label("B", exact=True).is_checked()
    first, second = order("anna", 2)
    assert marks(output, "anna") == {
        (1, "owl:v1"): ("B", ["VU"]),
        (2, first): ("C", ["OCR"]),
        (2, second): ("A", []),
        (3, "owl:v1"): ("D", []),
    }


def test_a_rater_comes_back_to_the_first_open_question_and_others_start_anew(browser, site):
    address, output = site
    view = enter(browser, address, "anna")
    view.keyboard.press("b")
    progress(view, 1)
    again = enter(browser, address, "anna")
    again.get_by_text("Question 2 of 8").wait_for()
    other = enter(browser, address, "ben")
    other.get_by_text("Question 1 of 8 · 0 of 11").wait_for()
    other.keyboard.press("d")
    progress(other, 1)
    assert (marks(output, "anna"), marks(output, "ben")) == ({(1, "owl:v1"): ("B", [])}, {(1, "owl:v1"): ("D", [])})


def test_the_dialogue_is_shown_and_no_names(browser, site, questions):
    address, _ = site
    view = enter(browser, address, "anna")
    for number in (2, 3, 4):
        view.keyboard.press("n")
        view.get_by_text(f"Question {number} of 8").wait_for()
    text = view.inner_text("body")
    for part in ("Earlier", "Is there text?", "What does it say？", "Why does it say so?", "with <b>marks</b>."):
        assert part in text
    assert "Multi-turn dialogue" in text
    assert "Reading text" not in text
    source = view.content()
    assert "owl:v1" not in source
    assert "react" not in text
    width, shown = view.evaluate(
        "(() => { const i = document.querySelector('img'); return [i.naturalWidth, i.width]; })()"
    )
    assert width == 50
    assert shown > 0


@pytest.mark.parametrize("settings", [{"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}])
def test_nothing_sticks_out_in_the_dark_or_on_a_phone(browser, site, settings):
    view = enter(browser, site[0], "anna", **settings)
    view.locator(".card:visible").first.wait_for()
    assert view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    ground, ink = (
        view.evaluate(f"getComputedStyle(document.querySelector('{part}')).{what}")
        for part, what in (("body", "backgroundColor"), (".words", "color"))
    )
    if "color_scheme" in settings:
        assert sum(map(int, ground[4:-1].split(", "))) < 120 < 600 < sum(map(int, ink[4:-1].split(", ")))


def test_a_name_is_needed_and_the_form_stays(browser, site):
    view = browser.new_page()
    view.goto(site[0])
    for part in ("random order", "Every click is saved", "to the next one with an answer"):
        view.get_by_text(part).wait_for()
    for name in ("", "  "):
        view.get_by_label("Your name").fill(name)
        view.get_by_role("button", name="Start").click()
        view.get_by_text("Enter your name").wait_for()
    view.get_by_label("Your name").fill("anna")
    view.get_by_role("button", name="Start").click()
    view.get_by_text("rated by anna").wait_for()


@pytest.mark.parametrize("answer", ["That is me: go on", "I am somebody else"])
def test_a_name_that_differs_by_case_is_asked_about(browser, site, answer):
    address, output = site
    view = enter(browser, address, "Anna")
    view.keyboard.press("b")
    progress(view, 1)
    other = browser.new_page()
    other.goto(address)
    other.get_by_label("Your name").fill("anna")
    other.get_by_role("button", name="Start").click()
    other.get_by_text("Anna has already rated answers. Is that you?").wait_for()
    other.get_by_role("button", name=answer).click()
    other.get_by_text("rated by Anna" if "me" in answer else "rated by anna").wait_for()
    other.keyboard.press("c")
    other.get_by_text("2 of 11" if "That" in answer else "1 of 11").wait_for()
    assert len(marks(output, "Anna")) == (2 if "That" in answer else 1)


LISTEN = """() => {
    window.heard = [];
    document.addEventListener('change', (event) => {
        if (event.target.type === 'radio')
            heard.push([
                Number(document.querySelector('[data-question]').dataset.question),
                [...document.querySelectorAll('.card')].indexOf(event.target.closest('.card')),
                event.target.value,
            ]);
    }, true);
}"""


def test_keys_count_for_what_is_on_screen_at_50_a_second(browser, site, questions, systems):
    address, output = site
    order = RatingDesk(questions, systems, output.with_name("other.jsonl")).order
    view = enter(browser, address, "anna")
    view.evaluate(LISTEN)
    choose = random.Random(0)
    keys = [choose.choice(["n", "n", "a", "b", "c", "d", "p", "o", "j"]) for _ in range(300)]
    view.evaluate(
        """async (keys) => {
            for (const key of keys) {
                document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
                await new Promise((done) => setTimeout(done, 20));
            }
        }""",
        keys,
    )
    view.wait_for_timeout(6000)
    heard = {(question, place): level for question, place, level in view.evaluate("heard")}
    assert len({question for question, _ in heard}) > 3
    written = {
        (number, order("anna", number).index(name)): level
        for (number, name), (level, _) in marks(output, "anna").items()
    }
    assert written == heard


def test_a_click_that_is_overtaken_on_its_way_does_not_count(browser, site):
    """The first of two requests is held back until the second has been answered."""
    address, output = site
    view = enter(browser, address, "anna")
    held = []

    def hold(route):
        if held:
            route.continue_()
        else:
            held.append(route)

    view.route("**/queue/join*", hold)
    view.keyboard.press("c")
    view.keyboard.press("d")
    progress(view, 1)
    held[0].continue_()
    assert held[0].request.response().status == 200
    view.wait_for_timeout(3000)
    assert [level for level, _ in marks(output, "anna").values()] == ["D"]
    view.keyboard.press("b")
    view.wait_for_timeout(1000)
    assert [level for level, _ in marks(output, "anna").values()] == ["B"]


def test_questions_are_reached_by_number_and_by_what_is_open(browser, site):
    view = enter(browser, site[0], "anna")
    view.get_by_label("Go to question").fill("5")
    view.get_by_role("button", name="Go", exact=True).click()
    view.get_by_text("Question 5 of 8").wait_for()
    view.keyboard.press("o")
    view.get_by_text("Question 6 of 8").wait_for()
    view.get_by_role("button", name="Next open question").click()
    view.get_by_text("Question 7 of 8").wait_for()


@pytest.mark.parametrize("size", [(1280, 500), (390, 844)])
def test_image_and_question_stay_in_sight(browser, site, size):
    view = enter(browser, site[0], "anna", viewport=dict(zip(("width", "height"), size, strict=True)))
    view.keyboard.press("n")
    view.get_by_text("Question 2 of 8").wait_for()
    view.evaluate("document.body.style.minHeight = '3000px'; document.querySelector('.card').style.height = '2000px'")
    view.wait_for_timeout(300)
    view.mouse.wheel(0, 900)
    view.wait_for_timeout(500)
    assert view.evaluate("scrollY") > 500
    for part in ("#image img", "#sheet h2"):
        is_seen = """(element) => {
            const { left, top, width, height } = element.getBoundingClientRect();
            return element.contains(document.elementFromPoint(left + Math.min(width, 60) / 2, top + height / 2));
        }"""
        assert view.locator(part).first.evaluate(is_seen), part


def test_unfinished_ratings_can_be_taken_away(browser, site, systems):
    address, _ = site
    for name in ("anna", "ben"):
        view = enter(browser, address, name)
        for question, key in ((1, "a"), (2, "d")):
            view.get_by_text(f"Question {question} of 8").wait_for()
            view.wait_for_timeout(300)
            view.keyboard.press(key)
            view.get_by_text(f"{question} of 11").wait_for()
            view.keyboard.press("n")
    view.get_by_text("Ratings so far").click()
    view.get_by_role("button", name="Agreement of all raters").click()
    view.get_by_text("answers").first.wait_for()
    view.get_by_role("button", name="My ratings as a file").click()
    with view.expect_download() as download:
        view.locator("a[download]").first.click()
    text = Path(download.value.path()).read_text()
    assert text.startswith("question,answer,level,abilities")
    assert "1,1,A," in text
    assert not any(name in text for name in systems)


def test_nothing_serious_keeps_anybody_out(browser, site):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for scheme in ("light", "dark"):
        view = browser.new_context(color_scheme=scheme).new_page()
        view.goto(site[0])
        view.get_by_role("button", name="Start").click()
        view.get_by_text("Enter your name").wait_for()
        for state in ("entrance", "sheet"):
            found = axe.run(view).response["violations"]
            serious = [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")]
            assert serious == [], (scheme, state, [node["html"] for rule in found for node in rule["nodes"]])
            if state == "entrance":
                view.get_by_label("Your name").fill("anna")
                view.get_by_role("button", name="Start").click()
                view.get_by_text("rated by anna").wait_for()

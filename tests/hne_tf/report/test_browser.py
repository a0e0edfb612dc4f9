"""The page in a browser without a network: what moving the budget shows."""

import json
import shutil

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from hne_tf.report import data, gallery, page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the path"
)

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1100,900",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(made_run, tmp_path_factory):
    """A page of two runs, where a tree costs 1000, 2000 and 4000, and exits 1000 to 3000.

    The tree's sizes take 5, 10 and 20 ms. Size 1 is wrong of the second image and size 2
    too; the third image is wrong of all.
    """
    folder = tmp_path_factory.mktemp("page")
    exits = {"model__architecture": "multi_exit", "objective__average": "last"}
    runs = [
        made_run(folder / "tree"),
        made_run(folder / "exits", edit=_answers_together, **exits),
    ]
    collected = data.collect(runs, pictures=0)
    tree = collected["runs"][0]
    picture = gallery.data_uri(np.zeros([8, 8, 1], np.uint8))
    answers = [[0, 0, 0], [2, 2, 1], [1, 1, 1]]
    tree["gallery"] = {
        "candidates": 100,
        "telling": 1,
        "classes": ["cat", "dog", HOSTILE],
        "images": [
            {
                "index": index,
                "picture": picture,
                "label": index,
                "answers": answers[index],
                "confidences": [0.9] * 3,
            }
            for index in range(3)
        ],
    }
    milliseconds = {"1": 5.0, "2": 10.0, "4": 20.0}
    tree["latency"] = {
        "model": "tree/1",
        "hardware": {"processor": "Abacus", "cores": 2, "accelerators": [], "system": "Linux"},
        "threads": 2,
        "runs": 100,
        "p50_ms": milliseconds,
        "p95_ms": milliseconds,
    }
    page.write(folder / "report.html", collected)
    return (folder / "report.html").as_uri()


def _answers_together(evaluation):
    """Together exits are 5 points worse and cost half as much again, less 500."""
    alone = evaluation["sizes"]
    together = [
        {
            **row,
            "accuracy": row["accuracy"] - 0.05,
            "multiply_adds": row["multiply_adds"] * 3 // 2 - 500,
        }
        for row in alone
    ]
    evaluation["sizes_by_average"] = {"last": alone, "logits": together}
    calibrated = [
        {
            "size": row["size"],
            "temperature": 1.255,
            "after": {"ece": 0.0125},
            "selective": {"1": 0.7, "0.5": 0.95, "area": 0.125},
        }
        for row in alone
    ]
    evaluation["calibration"] = {"sizes": calibrated[:2]}
    evaluation["early_stopping_by_rule"] = {
        rule: {"curve": [_stopping_point(*point) for point in points]}
        for rule, points in {
            "confidence": [(1000, 0.6), (2000, 0.7)],
            "significance": [(2000, 0.65)],
        }.items()
    }


def _stopping_point(target, accuracy):
    return {"target_multiply_adds": target, "accuracy": accuracy}


@pytest.fixture
def opened(browser, address):
    """Opens the page at a fragment; it must be quiet and load nothing but itself."""

    def open_at(fragment=""):
        # Another page first: a new fragment alone would not load the page again.
        browser.get("about:blank")
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(address + fragment)
        return browser

    yield open_at
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = {
        message["params"]["request"]["url"].partition("#")[0]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert address in requested
    assert all(url == address or url.startswith("data:image/png") for url in requested)


def shown(browser, run):
    """Size and accuracy in the line of a run above, and in its section."""
    chip = browser.find_element(By.CSS_SELECTOR, f"#answers [data-run={run}]")
    large = browser.find_element(By.CSS_SELECTOR, f"section[data-run={run}] .large").text
    current = browser.find_elements(
        By.CSS_SELECTOR, f"section[data-run={run}] tr[aria-current=true]"
    )
    sizes = [row.get_attribute("data-size") for row in current]
    assert sizes == list(filter(None, [chip.get_attribute("data-size")]))
    return "".join(sizes), large.replace("\u2009", "")


def cards(browser):
    return [
        card.get_attribute("class")
        for card in browser.find_elements(By.CSS_SELECTOR, ".gallery li")
    ]


@pytest.mark.parametrize(
    ("budget", "tree", "exits"),
    [
        (900, ("", "\u2013"), ("", "\u2013")),
        (1000, ("1", "60.0%"), ("1", "60.0%")),
        (1999, ("1", "60.0%"), ("1", "60.0%")),
        (2000, ("2", "70.0%"), ("2", "70.0%")),
        (3000, ("2", "70.0%"), ("3", "80.0%")),
        (4000, ("4", "90.0%"), ("3", "80.0%")),
    ],
)
def test_the_largest_size_within_the_budget_answers(opened, budget, tree, exits):
    browser = opened(f"#budget={budget}")
    assert shown(browser, "tree") == tree
    assert shown(browser, "exits") == exits


def test_the_slider_changes_what_answers(opened):
    browser = opened("#budget=1000")
    slider = browser.find_element(By.ID, "budget")
    slider.send_keys(Keys.END)
    assert shown(browser, "tree") == ("4", "90.0%")
    assert slider.get_attribute("aria-valuetext").replace("\u2009", " ") == "4 k multiply-adds"
    assert browser.current_url.endswith("#budget=4000&unit=multiply_adds")
    slider.send_keys(Keys.ARROW_LEFT)
    assert shown(browser, "tree") == ("2", "70.0%")
    slider.send_keys(Keys.HOME)
    assert shown(browser, "tree")[0] == ""


def test_pictures_turn_from_wrong_to_right(opened):
    browser = opened("#budget=2000")
    assert cards(browser) == ["right", "wrong", "wrong"]
    texts = [card.text for card in browser.find_elements(By.CSS_SELECTOR, ".gallery li")]
    assert texts[0].splitlines() == ["\u2713 right", "cat"]
    assert texts[1].splitlines() == ["\u2717 wrong", f"{HOSTILE}, is dog"]
    browser.find_element(By.ID, "budget").send_keys(Keys.END)
    assert cards(browser) == ["right", "right", "wrong"]
    assert "2 of these 3 images right" in browser.find_element(By.CSS_SELECTOR, ".gallery").text
    browser.find_element(By.ID, "budget").send_keys(Keys.HOME)
    assert cards(browser) == ["unanswered"] * 3


def test_the_tree_shows_what_the_answer_needs(opened):
    for budget, nodes in ((1000, 3), (2000, 4), (4000, 7)):
        browser = opened(f"#budget={budget}")
        tree = browser.find_element(By.CSS_SELECTOR, "section[data-run=tree] svg.tree")
        assert len(tree.find_elements(By.CSS_SELECTOR, ".node")) == 7
        assert len(tree.find_elements(By.CSS_SELECTOR, ".node.used")) == nodes
        answers = tree.find_element(By.CSS_SELECTOR, ".prefix.answers")
        texts = [text.text for text in answers.find_elements(By.TAG_NAME, "text")]
        assert texts[1:3] == [str(budget // 1000), f"{budget // 1000}\u2009k"]


def test_a_budget_of_milliseconds_goes_by_measured_latency(opened):
    browser = opened("#budget=12&unit=latency")
    assert shown(browser, "tree") == ("2", "70.0%")
    assert shown(browser, "exits")[0] == ""
    assert "latency not measured" in browser.find_element(By.ID, "answers").text
    browser.find_element(By.ID, "unit-multiply_adds").click()
    browser.find_element(By.ID, "budget").send_keys(Keys.END)
    assert shown(browser, "exits")[0] == "3"


def test_exits_show_both_of_their_answers(opened):
    browser = opened("#budget=1000")
    caption = "What the exits answer alone and together, for how many multiply-adds."
    tables = browser.find_elements(By.CSS_SELECTOR, f"[aria-label='{caption}']")
    (rows,) = [table.find_elements(By.CSS_SELECTOR, "tbody tr") for table in tables]
    texts = [cell.text for cell in rows[1].find_elements(By.CSS_SELECTOR, "th, td")]
    assert texts == ["2", "70.00\u2009% for 2\u2009k", "65.00\u2009% for 2.5\u2009k"]


def test_stopping_rules_stand_side_by_side(opened):
    browser = opened()
    rules, *others = [
        details
        for details in browser.find_elements(By.CSS_SELECTOR, "details")
        if details.find_element(By.TAG_NAME, "summary").text == "Stopping rules"
    ]
    assert others == []
    rules.find_element(By.TAG_NAME, "summary").click()
    cells = [cell.text for cell in rules.find_elements(By.CSS_SELECTOR, "tbody th, tbody td")]
    assert cells == ["1,000", "60.00\u2009%", "\u2013", "2,000", "70.00\u2009%", "65.00\u2009%"]


def test_calibration_errors_stand_beside_those_with_a_temperature(opened):
    browser = opened()
    captions = {
        run: [
            caption.text.split("\n")[-1]
            for caption in browser.find_elements(
                By.CSS_SELECTOR, f"section[data-run={run}] .reliability figcaption"
            )
        ]
        for run in ("tree", "exits")
    }
    assert all("temperature" not in caption for caption in captions["tree"])
    *first, last = captions["exits"]
    assert all(caption.endswith(", 0.0125 with temperature 1.25") for caption in first)
    assert "temperature" not in last


def test_risk_falls_where_only_the_surest_images_are_answered(opened):
    browser = opened()
    (table,) = [
        details
        for details in browser.find_elements(By.CSS_SELECTOR, "details")
        if details.find_element(By.TAG_NAME, "summary").text == "Answering only the surest images"
    ]
    table.find_element(By.TAG_NAME, "summary").click()
    rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    cells = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in rows]
    assert cells == [
        ["50\u2009%", "5.00\u2009%", "5.00\u2009%"],
        ["100\u2009%", "30.00\u2009%", "30.00\u2009%"],
        ["mean", "12.50\u2009%", "12.50\u2009%"],
    ]


def test_names_are_text(opened):
    browser = opened("#budget=1000")
    assert not browser.find_elements(By.CSS_SELECTOR, "img[src=x]")


def test_nothing_sticks_out_on_a_phone(opened):
    browser = opened("#budget=2000")
    # Headless windows cannot be this narrow; a phone's screen is emulated.
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        width = browser.execute_script("return document.documentElement.scrollWidth")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width == 360

"""The report in a browser: it loads nothing, its player slides, its cells open, without a word of error."""

import pytest
from report_tabs import chromium, needs_chromium, opened, slide
from tiny_runs import tiny

import precsim as ps
from precsim.report import page
from precsim.report.collect import collect
from precsim.runs.summary import summarize

pytestmark = needs_chromium

EVIL = "<img src=x onerror=alert(1)>"
LOW = "activations=e4m3 gradients=e4m3 weight_gradients=e4m3 master_weights=fp32"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    top = tmp_path_factory.mktemp("runs")
    common = {"steps": 6, "observe": "hist", "checkpoint_every": 3}
    flushed = ps.train(tiny(policy=LOW, loss_scale="static:0.001", **common), out=top / "a")
    other = ps.train(tiny(policy="fp16", loss_scale="dynamic:1e9:3", **common), out=top / "b")
    return {EVIL: flushed, "other": other}


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory):
    found = [collect(run, name, rows=9000, points=2) for name, run in runs.items()]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page.render(found, "precsim report again"), "utf-8")
    return path


@pytest.fixture
def view(browser, file):
    """A page that has loaded, and what went wrong in it: requests, messages, errors."""
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    wrong = []
    tab.on("request", lambda r: r.url.startswith(("file:", "blob:")) or wrong.append(r.url))
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.goto(file.as_uri())
    tab.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
    yield tab
    tab.close()
    assert wrong == []


def test_the_slider_shows_each_step_with_its_ops(view, runs):
    run = runs[EVIL]
    for at in (0, 3, 5):
        slide(view, at)
        assert view.locator("#where").inner_text() == f"step {at}"
        loss = view.locator("#facts b").first.inner_text()
        assert float(loss) == pytest.approx(run.records[at].loss, rel=1e-3)
        ops = run.ops(at)
        rows = view.locator("#rows tr[data-op]")
        assert rows.count() == len(ops)
        titles = rows.locator("td:first-child").evaluate_all("cells => cells.map(c => c.title)")
        assert titles == ops["path"].tolist()
        shown = rows.locator("td:nth-child(4)").all_inner_texts()
        for text, share in zip(shown, ops["flushed_share"], strict=True):
            number = float(text.strip("<%"))
            assert abs(number - 100 * share) <= 0.5, (text, share)


def test_buttons_filters_and_keys(view):
    slide(view, 2)
    view.click("#forward")
    assert view.locator("#where").inner_text() == "step 3"
    view.click("#back")
    view.click("#back")
    assert view.locator("#where").inner_text() == "step 1"
    every = view.locator("#rows tr[data-op]").count()
    view.click("#phases button:has-text('backward')")
    backward = view.locator("#rows tr[data-op] td:first-child")
    titles = backward.evaluate_all("cells => cells.map(c => c.title.split('/')[0])")
    assert set(titles) <= {"gradients", "weight_gradients"}
    assert 0 < len(titles) < every
    view.fill("#filter", "softmax")
    assert view.locator("#rows tr[data-op]").count() < len(titles)
    view.fill("#filter", "")
    view.click("#phases button:has-text('all')")
    view.check("#worst")
    flushed = view.locator("#rows tr[data-op] td:nth-child(4)").first.inner_text()
    assert float(flushed.strip("<%")) > 50
    view.focus("#list")
    before = view.locator("tr[aria-current]").get_attribute("data-op")
    for _ in range(3):
        view.keyboard.press("ArrowDown")
    assert view.locator("tr[aria-current]").count() == 1
    assert view.locator("tr[aria-current]").get_attribute("data-op") != before


def test_the_op_under_the_pointer_has_its_exponents_shown(view, runs):
    slide(view, 5)
    row = view.locator("#rows tr[data-op]").nth(4)
    row.hover()
    path = row.locator("td:first-child").get_attribute("title")
    view.wait_for_selector(f"#name:has-text('{path}')")
    assert view.locator("tr[aria-current] td:first-child").get_attribute("title") == path
    view.wait_for_timeout(100)
    ops = runs[EVIL].ops(5)
    counts = ops["histogram"][4]
    heights = view.evaluate("document.getElementById('histogram').data[0].y")
    assert len(heights) == len(counts[counts.nonzero()[0][0] : counts.nonzero()[0][-1] + 1])
    assert max(heights) == pytest.approx(100 * counts.max() / counts.sum())
    assert f"in {ops['format'][4]} (max" in view.locator("#said").inner_text()


def test_the_same_op_of_the_other_run_is_drawn_over_it(view, runs):
    slide(view, 5)
    row = view.locator("#rows tr[data-op]").nth(4)
    row.click()
    path = row.locator("td:first-child").get_attribute("title")
    view.wait_for_timeout(100)
    line = view.evaluate("document.getElementById('histogram').data.find(t => t.mode === 'lines')")
    assert line["name"] == "other, step 5"
    counts = runs["other"].ops(5, op=path)["histogram"][0]
    assert max(line["y"]) == pytest.approx(100 * counts.max() / counts.sum())


def test_play_goes_to_the_end_and_stops(view):
    slide(view, 3)
    view.click("#play")
    view.wait_for_selector("#where:has-text('step 5')", timeout=30_000)
    view.wait_for_selector("#play:has-text('play')", timeout=30_000)


def test_a_cell_of_the_map_opens_its_step_and_op(view):
    view.locator("#map").scroll_into_view_if_needed()
    grid = view.evaluate(
        """(() => { const map = document.getElementById("map"), l = map._fullLayout;
        const box = map.getBoundingClientRect();
        const at = (x, y) => [box.x + l._size.l + l.xaxis.d2p(x), box.y + l._size.t + l.yaxis.d2p(y)];
        const rows = map.data[0].z.length;
        return {at: at(4, rows - 2), rows, text: map.data[0].text[rows - 2][4]}; })()"""
    )
    view.mouse.move(grid["at"][0] - 2, grid["at"][1])
    view.mouse.move(*grid["at"])
    view.mouse.click(*grid["at"])
    view.wait_for_timeout(200)
    step = grid["text"].partition("step ")[2].partition(":")[0]
    assert view.locator("#where").inner_text() == f"step {step}"
    scope = grid["text"].partition(" ")[0]
    assert scope in view.locator("#name").inner_text()


def test_a_pointer_at_rest_chooses_nothing_when_the_list_scrolls_under_it(view):
    slide(view, 5)
    row = view.locator("#rows tr[data-op]").nth(4)
    row.hover()
    view.focus("#list")
    wanted = [row.get_attribute("data-op") for row in view.locator("#rows tr[data-op]").all()][24]
    for _ in range(20):
        view.keyboard.press("ArrowDown")
    view.wait_for_timeout(500)
    assert view.evaluate("document.getElementById('list').scrollTop") > 0
    assert view.locator("tr[aria-current]").get_attribute("data-op") == wanted


def test_the_op_in_trouble_and_those_behind_skips_are_a_click_away(view, runs):
    trouble = runs[EVIL].trouble
    view.select_option("#run", label="other")
    slide(view, 5)
    view.click(".alert a")
    assert view.locator("#run option:checked").inner_text() == EVIL
    assert view.locator("#where").inner_text() == f"step {trouble.step}"
    view.wait_for_selector(f"#name:has-text('{trouble.path}')")
    skip = next(r.step for r in runs["other"].records if r.skipped)
    link = view.locator(f"td a[data-run='1'][data-step='{skip}']")
    view.locator("details", has=link).locator("summary").click()
    link.click()
    assert view.locator("#run option:checked").inner_text() == "other"
    assert view.locator("#where").inner_text() == f"step {skip}"
    view.wait_for_selector(f"#name:has-text('{link.inner_text()}')")


def test_another_run_has_its_own_steps(view, runs):
    view.select_option("#run", label="other")
    slide(view, 0)
    titles = view.locator("#rows tr[data-op] td:first-child")
    assert (
        titles.evaluate_all("cells => cells.map(c => c.title)")
        == runs["other"].ops(0)["path"].tolist()
    )
    assert "skipped" in view.locator("#facts").inner_text()


def test_another_run_is_shown_at_the_same_step_and_op(view, runs):
    slide(view, 2)
    row = view.locator("#rows tr[data-op]").nth(7)
    row.click()
    path = row.locator("td:first-child").get_attribute("title")
    assert path in runs["other"].ops(2)["path"]
    for label in ("other", EVIL):
        view.select_option("#run", label=label)
        assert view.locator("#where").inner_text() == "step 2"
        chosen = view.locator("tr[aria-current] td:first-child")
        assert chosen.get_attribute("title") == path


def test_a_run_that_lacks_the_step_is_shown_at_the_nearest(browser, tmp_path):
    common = {"policy": "bf16", "observe": "hist", "checkpoint_every": 3}
    long = ps.train(tiny(steps=6, **common), out=tmp_path / "long")
    short = ps.train(tiny(steps=2, **common), out=tmp_path / "short")
    tab = opened(browser, {"long": long, "short": short}, tmp_path)
    slide(tab, 4)
    tab.select_option("#run", label="short")
    assert tab.locator("#where").inner_text() == "step 1"
    tab.select_option("#run", label="long")
    assert tab.locator("#where").inner_text() == "step 1"
    tab.close()


def test_an_op_of_zeros_says_so_where_nothing_else_is_drawn(browser, tmp_path):
    """One run's gradients are all flushed; the other's, drawn there too, stay below the sentence."""
    common = {"steps": 1, "observe": "hist", "checkpoint_every": 1}
    low = ps.train(tiny(policy=LOW, loss_scale="static:1e-5", **common), out=tmp_path / "low")
    high = ps.train(tiny(policy="bf16", loss_scale="static:0.5", **common), out=tmp_path / "high")
    tab = opened(browser, {"low": low, "high": high}, tmp_path)
    tab.fill("#filter", "gradients/lnf/layer_norm_grad")
    tab.locator("#rows tr[data-op]").first.click()
    note = tab.locator("#histogram .annotation:has-text('no nonzero value')")
    note.wait_for()
    line = tab.locator("#histogram .scatterlayer .js-line").bounding_box()
    box = note.bounding_box()
    assert box["y"] + box["height"] < line["y"]
    tab.select_option("#run", label="high")
    note.wait_for(state="detached")
    tab.close()


def test_a_loss_scale_has_a_superscript_and_is_read_aloud_as_a_power(browser, tmp_path):
    common = {"steps": 1, "observe": "hist", "checkpoint_every": 1}
    run = ps.train(tiny(policy="bf16", loss_scale="static:0.25", **common), out=tmp_path / "run")
    tab = opened(browser, {"run": run}, tmp_path)
    for place in ("#facts", ".card dl"):
        power = tab.locator(f"{place} [role=img]")
        assert power.get_attribute("aria-label") == "2 to the power \N{MINUS SIGN}2"
        assert power.inner_html() == "2<sup>\N{MINUS SIGN}2</sup>"
    tab.close()


def test_charts_keep_their_height_when_the_window_changes(view):
    """As wide as their boxes at any width; and a phone changes the height alone, all the time."""
    charts = "[...document.querySelectorAll('.chart:not([hidden])')].map"
    heights = view.evaluate(f"{charts}(c => c.clientHeight)")
    assert len(heights) == 5
    assert min(heights) > 150
    for width, height in ((1200, 500), (1000, 900), (1200, 900)):
        view.set_viewport_size({"width": width, "height": height})
        view.wait_for_timeout(400)
        assert view.evaluate(f"{charts}(c => c.clientHeight)") == heights
        room = view.evaluate(f"{charts}(c => c.clientWidth - c._fullLayout.width)")
        assert all(0 <= beside < 20 for beside in room)


def test_both_halves_of_the_drift_show_the_steps_of_the_run(view):
    slide(view, 3)
    view.wait_for_function("document.getElementById('drift').layout.shapes[0].x0 === 3")
    drift = view.evaluate(
        "(l => ({ranges: [l.xaxis.range, l.xaxis2.range], at: l.shapes.map(s => [s.xref, s.x0])}))"
        "(document.getElementById('drift').layout)"
    )
    assert drift["at"] == [["x", 3], ["x2", 3]]
    assert all(low <= 0 and high >= 5 for low, high in drift["ranges"])


def test_a_loss_that_explodes_does_not_flatten_the_others(view, runs):
    low, high = view.evaluate("document.getElementById('loss')._fullLayout.yaxis.range")
    losses = [r.loss for run in runs.values() for r in run.records]
    assert low < min(losses)
    assert high < 1.8 * summarize(runs[EVIL]).guess


def test_names_are_text_in_charts_too(view):
    assert view.locator("img").count() == 0
    assert EVIL in view.locator("#loss .legend").text_content()


@pytest.mark.parametrize("width", [1200, 600, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(browser, file, width, scheme):
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.goto(file.as_uri())
    tab.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = tab.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )

    def light(colour):
        return sum(int(part) for part in colour[4:-1].split(",")) / 765

    assert abs(light(ink) - light(paper)) > 0.7
    assert (light(paper) > 0.5) == (scheme == "light")
    tab.close()


@pytest.mark.parametrize("width", [360, 390, 600])
def test_on_a_phone_the_names_of_ops_can_be_read(browser, file, width):
    tab = browser.new_page(viewport={"width": width, "height": 800})
    tab.goto(file.as_uri())
    tab.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
    names = tab.locator("#rows tr[data-op] td:first-child")
    assert names.count() > 20
    cut = "cells => cells.filter(c => c.scrollWidth > c.clientWidth).map(c => c.innerText)"
    assert names.evaluate_all(cut) == []
    assert tab.evaluate("(l => l.scrollWidth <= l.clientWidth)(document.getElementById('list'))")
    formats = tab.locator("#rows tr[data-op] .fmt")
    assert formats.evaluate_all(cut) == []
    tab.close()


def test_without_scripts_the_tables_are_there(browser, file, runs):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    requests = []
    tab.on("request", lambda r: requests.append(r.url))
    tab.goto(file.as_uri())
    text = tab.locator("main").inner_text()
    assert "worst of" in text
    assert not tab.locator("#controls").is_visible()
    assert tab.locator(".static .chip").first.is_visible()
    assert tab.locator(".chart:visible").count() == 0
    assert f"{runs[EVIL].records[-1].loss:.5g}" in tab.locator("details").first.inner_text()
    assert requests == [file.as_uri()]
    context.close()


def test_the_address_names_the_place(view, browser, file, runs):
    view.select_option("#run", label="other")
    slide(view, 2)
    row = view.locator("#rows tr[data-op]").nth(7)
    row.click()
    path = row.locator("td:first-child").get_attribute("title")
    view.wait_for_selector(f"#name:has-text('{path}')")  # it is drawn with the next frame
    name = view.locator("#name").inner_text()
    again = browser.new_page()
    again.goto(view.url)
    again.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
    assert again.locator("#where").inner_text() == "step 2"
    assert again.locator("#name").inner_text() == name
    assert again.locator("#run option:checked").inner_text() == "other"
    again.close()
    for nonsense in ("#run=9&step=2&op=1", "#run=0&step=x&op=y", "#step=1e9", "#%%%"):
        again = browser.new_page()
        errors = []
        again.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        again.goto(file.as_uri() + nonsense)
        again.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
        assert errors == []
        assert again.locator("#where").inner_text().startswith("step ")
        again.close()

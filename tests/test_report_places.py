"""Where the report puts its reader, what it says of trouble, and how it looks with little to show."""

import pytest
from report_tabs import chromium, needs_chromium, opened, slide
from tiny_runs import MIXED, tiny

import precsim as ps
from precsim.analyse.recorded import ops_of

pytestmark = needs_chromium

CHOSEN = "tr[aria-current] td:first-child"
COMMON = {"observe": "hist", "warmup": 0, "steps": 9, "checkpoint_every": 9}


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
    """Two runs that lose updates as their rate falls: gains of norms first, then whole matrices."""
    top = tmp_path_factory.mktemp("lossy")
    late = ps.train(tiny(policy="bf16", lr=1e-2, **COMMON), out=top / "late")
    soon = ps.train(tiny(policy="bf16", lr=3e-3, **COMMON), out=top / "soon")
    assert 0 < soon.trouble.step < late.trouble.step
    return {"late": late, "soon": soon}


def at(tab, trouble):
    """Whether the player shows the step and the op of a trouble, within the list's window."""
    row = tab.locator("tr[aria-current]").evaluate(
        "r => { const [a, b] = [r, document.getElementById('list')].map(e => e.getBoundingClientRect());"
        "return a.top >= b.top && a.bottom <= b.bottom; }"
    )
    title = tab.locator(CHOSEN).get_attribute("title")
    place = tab.locator("#where").inner_text()
    return (place, title, row) == (f"step {trouble.step}", trouble.path, True)


def test_a_run_opens_at_its_first_op_in_trouble(browser, lossy, tmp_path):
    """Which is not the worst of its step: the gains of norms, passed over, have lost more."""
    trouble = lossy["late"].trouble
    ops = ops_of(lossy["late"], trouble.step)
    worst = max(ops, key=lambda op: op.counts.swamped_share).counts.path
    assert worst != trouble.path
    tab = opened(browser, lossy, tmp_path)
    assert at(tab, trouble)
    assert tab.evaluate("scrollY") == 0
    assert tab.locator("#metrics [aria-pressed=true]").inner_text() == "updates lost"
    assert "less than 1%" in tab.locator(".card .alert").first.inner_text()
    tab.select_option("#run", label="soon")  # nothing was chosen, so it opens at its own
    assert at(tab, lossy["soon"].trouble)
    slide(tab, 8)
    tab.select_option("#run", label="late")  # a step was chosen: the same one
    assert tab.locator("#where").inner_text() == "step 8"
    assert tab.locator(CHOSEN).get_attribute("title") == lossy["soon"].trouble.path
    assert tab.wrong == []
    tab.close()


@pytest.mark.parametrize(
    ("policy", "scale"),
    [
        ("activations=e4m3 gradients=e4m3:stochastic master_weights=fp32", "static:0.01"),
        ("activations=e2m1:saturate gradients=e4m3:saturate master_weights=fp32", "static:1e6"),
        (MIXED, "dynamic:1e9:3"),
    ],
)
def test_in_bold_are_the_ops_that_show_complains_of(browser, tmp_path, policy, scale):
    """Not what chance brings back, and not what saturation keeps finite."""
    run = ps.train(
        tiny(policy=policy, loss_scale=scale, steps=2, observe="hist"), out=tmp_path / "r"
    )
    tab = opened(browser, {"run": run}, tmp_path)
    for step in range(len(run.records)):
        slide(tab, step)
        rows = tab.locator("#rows tr[data-op]")
        bold = rows.evaluate_all("rows => rows.map(r => r.querySelector('.bad') !== null)")
        assert bold == [bool(op.complaint) for op in ops_of(run, step)]
    tab.close()


def test_a_filter_that_nothing_passes_says_so_and_forgets_nothing(browser, lossy, tmp_path):
    tab = opened(browser, {"late": lossy["late"]}, tmp_path)
    tab.fill("#filter", "nothing of that name")
    tab.focus("#list")
    tab.keyboard.press("ArrowDown")
    assert "no op has" in tab.locator("#rows").inner_text()
    tab.wait_for_function("document.getElementById('histogram').hidden")
    assert tab.locator("#name").inner_text() == ""
    tab.fill("#filter", "")
    assert at(tab, lossy["late"].trouble)
    assert tab.wrong == []
    tab.close()


def test_an_op_that_a_skipped_step_lacks_is_shown_again_after_it(browser, tmp_path):
    config = tiny(policy=MIXED, loss_scale="dynamic:1e6:100", steps=9, observe="hist")
    run = ps.train(config, out=tmp_path / "run")
    skipped = [r.skipped for r in run.records]
    assert skipped[0]
    assert not skipped[8]
    tab = opened(browser, {"run": run}, tmp_path)
    slide(tab, 8)
    path = "master_weights/wpe.weight/apply_update"
    tab.locator(f"#rows tr:has(td[title='{path}'])").click()
    for step in (0, 8):
        slide(tab, step)
        assert (tab.locator(CHOSEN).get_attribute("title") == path) == (step == 8)
    tab.close()


@pytest.mark.parametrize("steps", [1, 3])
def test_ticks_of_steps_are_whole(browser, tmp_path, steps):
    config = tiny(policy=MIXED, loss_scale="static:256", steps=steps, checkpoint_every=1)
    tab = opened(browser, {"run": ps.train(config, out=tmp_path / "run")}, tmp_path)
    for chart in ("loss", "scale", "drift", "map"):
        texts = tab.locator(f"#{chart} .xtick text").all_text_contents()
        assert {text for text in texts if "." in text} == set(), chart
        assert set(map(str, range(steps))) <= set(texts), chart
    tab.close()


@pytest.mark.parametrize(("data", "unit"), [("zen", "byte"), ("reverse", "token")])
def test_losses_are_for_a_byte_of_text_and_a_token_of_a_task(browser, tmp_path, data, unit):
    run = ps.train(tiny(data=data, context=16, steps=2), out=tmp_path / "run")
    tab = opened(browser, {"run": run}, tmp_path)
    assert tab.locator("#loss .ytitle").text_content() == f"nats per {unit}"
    assert f"2 steps of 1 \N{MULTIPLICATION SIGN} 16 {unit}s." in tab.locator(".lead").inner_text()
    assert "letter" not in tab.locator("main").inner_text()
    tab.close()


def test_what_was_not_recorded_is_not_called_nothing(browser, tmp_path):
    runs = {
        name: ps.train(tiny(policy="bf16", observe=name), out=tmp_path / name)
        for name in ("counts", "off")
    }
    tab = opened(browser, runs, tmp_path)
    numbers = tab.locator(".card").nth(1).locator("dd").all_inner_texts()
    assert numbers[2:4] == ["-", "-"]
    assert "off has no ops to show" in tab.locator("#player").inner_text()
    note = tab.locator("#histogram .annotation:has-text('exponents were not recorded')")
    note.wait_for()
    tab.close()


def test_a_drift_that_is_nowhere_defined_has_a_sentence_and_no_chart(browser, tmp_path):
    config = tiny(policy=MIXED, loss_scale="dynamic:1e30:9", steps=2, checkpoint_every=9)
    tab = opened(browser, {"run": ps.train(config, out=tmp_path / "run")}, tmp_path)
    assert tab.locator("#drift").is_hidden()
    told = tab.locator("section:has(#drift) > .note").inner_text()
    assert told.startswith("run cannot be drawn: ")
    assert told.endswith(" gradients are not finite at step 0.")
    tab.close()


def test_paper_has_the_charts_in_ink_and_the_tables(browser, lossy, tmp_path):
    tab = opened(browser, lossy, tmp_path, color_scheme="dark")
    assert tab.locator(".static").first.is_hidden()
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.set_viewport_size({"width": 718, "height": 900})  # A4 without its margins
    assert tab.evaluate("document.documentElement.scrollWidth") <= 718
    for chart in ("loss", "drift", "map"):
        assert tab.evaluate(f"document.getElementById('{chart}').layout.paper_bgcolor") == "#ffffff"
        assert tab.locator(f"#{chart} .main-svg").first.bounding_box()["width"] <= 700
    assert tab.locator(".static").first.is_visible()
    assert tab.locator("details[data-open] table").first.is_visible()
    for hidden in ("#play", "#list", "#histogram"):
        assert tab.locator(hidden).is_hidden()
    tab.emulate_media(media="screen")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("#list").is_visible()
    assert tab.evaluate("document.getElementById('loss').layout.paper_bgcolor") != "#ffffff"
    assert tab.wrong == []
    tab.close()


def test_controls_have_names_and_the_chosen_op_is_read_aloud(browser, lossy, tmp_path):
    tab = opened(browser, lossy, tmp_path)
    tab.click("#play")
    assert tab.get_by_role("button", name="pause").count() == 1
    tab.click("#play")
    assert tab.get_by_role("button", name="play").count() == 1
    slide(tab, 3)
    assert tab.locator("#slider").get_attribute("aria-valuetext") == "step 3"
    assert tab.locator("#name").get_attribute("aria-live") == "polite"
    tab.close()

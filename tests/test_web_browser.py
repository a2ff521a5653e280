"""The page in a real browser, clicked through."""

import io
import os
import shlex
import shutil
import time
from importlib.resources import files

import pytest
from PIL import Image

from browser import CHROMIUM, Browser
from needs import need
from page_client import served as page
from patch_diffusion.cli import main
from patch_diffusion.cli.train import Train
from patch_diffusion.web.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

ATTACK = "<img src=x onerror=attacked=1>"
TINY = (
    "--data.classes True --network.width 8 --network.multipliers 1 2 --network.attention 1 --network.blocks 1 "
    "--network.dropout 0 --batch 4 --samples 2 --checkpoints 2 --log-every 1 --ema.lengths 0.05 0.1"
)


def train(folder, steps):
    assert main(["train", "digits", "--out", str(folder), "--steps", str(steps), *TINY.split()]) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server of a folder with one run, "digits"."""
    folder = tmp_path_factory.mktemp("served")
    train(folder / "runs" / "digits", 4)
    with page(Site(folder / "runs", folder / "work", "cpu")) as made:
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory, served):
    """One for all tests; at the end, nothing was asked of another machine and nothing has failed."""
    with Browser(tmp_path_factory.mktemp("browser")) as made:
        yield made
        elsewhere = [
            url for url in made.requests if not url.startswith(("http://127.0.0.1:", "blob:", "data:", "about:"))
        ]
        # Of the run that is deleted, and of the mask that is refused.
        errors = [each for each in made.errors if "name=another" not in each and "api/mask" not in each]
        assert made.requests and not elsewhere and not errors


def choose(browser, name, value):
    """A value of a field, once it is there, as if it was put in."""
    browser.wait(f"!!document.querySelector('[name={name}]')")
    browser.run(
        f"(e => {{ e.value = {value!r}; for (const n of ['input', 'change']) e.dispatchEvent(new Event(n, {{bubbles: "
        f"true}})) }})(document.querySelector('[name={name}]'))"
    )


def pixels(browser, canvas):
    """Of a canvas of the page."""
    return browser.run(
        f"(c => [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])({canvas})"
    )


def test_runs_appear_progress_and_go(browser, served, tmp_path_factory):
    folder = served.site.runs.folder
    browser.open(f"{served.address}#/runs")
    browser.wait("document.querySelectorAll('.run').length === 1")
    assert "complete" in browser.run("document.querySelector('.run').innerText")
    train(folder / "another", 2)
    (folder / ATTACK).mkdir()
    (folder / ATTACK / "config.json").write_text("{")
    browser.wait("document.querySelectorAll('.run').length === 3")
    assert ATTACK in browser.run("document.querySelector('.runs').innerText") and not browser.run("window.attacked")
    shutil.rmtree(folder / ATTACK)
    browser.click("a.run[href*=another]")
    browser.wait("document.querySelectorAll('.chart').length >= 3 && !!document.querySelector('.big img').naturalWidth")
    assert browser.run("document.querySelector('.tiles b').textContent") == "2"
    x, y = browser.middle(".area")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.wait("document.querySelector('.at').textContent.startsWith('step ')")
    shutil.rmtree(folder / "another")
    browser.wait("document.body.innerText.includes('not there any more')")
    browser.open(f"{served.address}#/runs")
    browser.wait("document.querySelectorAll('.run').length === 1")


def test_pictures_are_made_step_by_step_and_side_by_side(browser, served):
    browser.open(f"{served.address}#/generate?run=digits")
    browser.wait("!!document.querySelector('form')")
    choose(browser, "pictures", 3)
    choose(browser, "steps", 4)
    choose(browser, "class", 5)
    browser.click(".models + div button")
    browser.click("button.main")
    browser.wait("document.querySelectorAll('.made-by .command').length === 2")
    assert browser.run("document.querySelectorAll('.column').length") == 2
    assert "--class 5 --steps 4" in browser.run("document.querySelector('.made-by .command').innerText")
    last = pixels(browser, "document.querySelector('.picture canvas')")
    assert last[:2] == [16, 16] and len(set(last[2:])) > 8
    browser.run("(s => { s.value = 1; s.dispatchEvent(new Event('input')) })(document.querySelector('.scrub input'))")
    assert browser.run("document.querySelector('.scrub span').textContent") == "step 1 of 4, noise 80"
    assert pixels(browser, "document.querySelector('.picture canvas')") != last
    browser.run("(s => { s.value = 4; s.dispatchEvent(new Event('input')) })(document.querySelector('.scrub input'))")
    assert pixels(browser, "document.querySelector('.picture canvas')") == last
    browser.click(".picture")
    browser.wait("!!document.querySelector('dialog[open]')")
    assert "seed 0, 5" in browser.run("document.querySelector('dialog').innerText")
    size = "document.querySelector('dialog a').href"
    assert browser.run(f"fetch({size}).then(r => r.blob()).then(b => b.type)") == "image/png"


def test_a_seed_is_shown_as_it_is_or_refused(browser, served):
    browser.open(f"{served.address}#/generate?run=digits&again")
    browser.wait("!!document.querySelector('form')")
    choose(browser, "pictures", 1)
    choose(browser, "steps", 2)
    for seed in (1234567, 2**53 - 64):
        choose(browser, "seed", f"{seed}")
        browser.click("button.main")
        browser.wait(f"(document.querySelector('.made-by .command') ?? {{}}).innerText?.includes('--seeds {seed} ')")
        browser.click(".picture")
        browser.wait("!!document.querySelector('dialog[open]')")
        row = "[...document.querySelectorAll('dialog tr')].find(row => row.cells[0].innerText === 'seed')"
        assert browser.run(f"{row}.cells[1].innerText") == f"{seed}"
        browser.run("document.querySelector('dialog').close()")
    choose(browser, "seed", "9007199254740993")
    assert not browser.run("document.querySelector('form').checkValidity()")
    assert "9007199254740928" in browser.run("document.querySelector('[name=seed]').validationMessage")


def test_an_image_is_filled_and_extended(browser, served):
    browser.open(f"{served.address}#/edit?run=digits")
    browser.wait("!!document.querySelector('.drop')")
    assert browser.run("document.querySelector('button.main').disabled")
    browser.click(".drop .row button:last-child")
    browser.wait("!!document.querySelector('.stage') && document.querySelector('.stage .mask').width === 16")
    choose(browser, "steps", 2)
    choose(browser, "pictures", 2)
    x, y = browser.middle(".mask")
    browser.drag((x - 60, y), (x, y + 10), (x + 60, y))
    browser.wait("!document.querySelector('button.main').disabled")
    mask = pixels(browser, "document.querySelector('.mask')")[2:][3::4]
    browser.click("button.main")
    browser.wait("!!document.querySelector('.made-by .command')")
    image = pixels(browser, "document.querySelector('.stage canvas')")[2:][::4]
    made = pixels(browser, "document.querySelector('.picture canvas')")[2:][::4]
    drawn = [place for place, value in enumerate(mask) if value >= 128]
    assert 8 < len(drawn) < 128
    assert all(made[place] == image[place] for place in range(256) if place not in drawn)
    assert any(made[place] != image[place] for place in drawn)
    x, y = browser.middle(".grip.right")
    browser.drag((x, y), (x + 50, y), (x + 180, y))
    browser.wait("document.querySelector('button.main').textContent === 'Extend'")
    browser.click("button.main")
    browser.wait("document.querySelector('.made-by .command')?.innerText.includes('--extend right=')")
    width, height = pixels(browser, "document.querySelector('.picture canvas')")[:2]
    assert height == 16 and width > 16 and width % 2 == 0


def command(browser):
    """That is shown, once it is."""
    return browser.wait("document.querySelector('.made-by .command code')?.innerText").replace("\n", " ")


def test_everything_that_can_be_said_of_new_pictures(browser, served):
    browser.open(f"{served.address}#/generate?run=digits")
    # The page before may have had these, too, and is about to go.
    browser.wait("document.querySelector('details.more')?.open === false && !!document.querySelector('button.main')")
    browser.wait("document.querySelector('[name=low]')?.offsetParent === null")  # there is no guidance
    values = {"pictures": 1, "steps": 2, "guidance": 3, "guide": "step:2", "average": 0.2, "low": 0.5, "high": 90}
    values |= {"height": 20, "width": 24, "coords": "stretch", "tile": 8, "overlap": 4}
    for name, value in values.items():
        choose(browser, name, str(value))
    browser.click("button.main")
    assert (
        "--seeds 0 --ema-length 0.2 --steps 2 --guidance 3 --guide step:2 --guidance-interval 0.5 90 "
        "--resolution 20 24 --coords stretch --tile 8 --overlap 4" in command(browser)
    )
    assert pixels(browser, "document.querySelector('.picture canvas')")[:2] == [24, 20]
    browser.wait("document.querySelector('.progress .soft')?.innerText.includes('makes only noise with 2 steps')")
    choose(browser, "overlap", "")
    choose(browser, "tile", "")
    choose(browser, "width", 21)
    browser.click("button.main")
    browser.wait("document.querySelector('.error')?.innerText.includes('multiples of 2')")


@pytest.mark.parametrize(
    ("task", "values", "words"),
    [
        ("super-resolution", {"factor": 3}, "--restore super-resolution --factor 3"),
        ("deblur", {"blur": 1.5, "noise": 4}, "--restore deblur --blur 1.5 --noise 4"),
        ("denoise", {"noise": 20}, "--restore denoise --noise 20"),
    ],
)
def test_an_image_is_restored(browser, served, task, values, words):
    browser.open(f"{served.address}#/runs")
    browser.wait("!!document.querySelector('.run')")
    browser.open(f"{served.address}#/edit?run=digits")
    browser.click(".drop .row button:last-child")
    browser.wait("!!document.querySelector('.stage') && document.querySelector('.stage .mask').width === 16")
    choose(browser, "task", task)
    for tool in (".stage .mask", ".stage .grip", ".tools label", ".tools .clear"):  # nothing is drawn
        assert browser.run(f"document.querySelector('{tool}').offsetParent") is None, tool
    assert browser.run("document.querySelector('button.main').disabled") == (task == "denoise")
    for name, value in {"steps": 2, "pictures": 1, "way": "isotropic", "coords": "stretch", **values}.items():
        choose(browser, name, str(value))
    browser.click("button.main")
    found = command(browser)
    assert words in found and "--covariance isotropic" in found and "--coords stretch" in found
    side = 48 if task == "super-resolution" else 16
    assert pixels(browser, "document.querySelector('.picture canvas')")[:2] == [side, side]
    browser.click(".picture")
    browser.click("dialog .row button:last-child")  # edited further, as large as it is
    browser.wait(f"document.querySelector('.stage .mask')?.width === {side}")


@pytest.fixture(scope="module")
def axe():
    """The script of axe-core, which finds what keeps people from using a page."""
    need("axe_core_python")
    return (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")


def make(browser):
    browser.click("button.main")
    browser.wait("!!document.querySelector('.made-by .command')")


def draw(browser):
    """On a sample."""
    browser.click(".drop .row button:last-child")
    browser.wait("document.querySelector('.stage .mask')?.width === 16")
    x, y = browser.middle(".mask")
    browser.drag((x - 60, y), (x, y + 10), (x + 60, y))
    browser.wait("!document.querySelector('button.main').disabled")


def look(browser):
    """At one of the pictures that were made."""
    make(browser)
    browser.click(".picture")
    browser.wait("!!document.querySelector('dialog[open]')")


PARTS = {
    "runs": ("runs", "!!document.querySelector('.run')", None),
    "a run": ("run?name=digits", "!!document.querySelector('.chart')", None),
    "generate": ("generate?run=digits&steps=1&pictures=2&guidance=2", "!!document.querySelector('.more')", make),
    "a picture": ("generate?run=digits&steps=1&pictures=1", "!!document.querySelector('.more')", look),
    "compare": ("generate?run=digits&run=digits&steps=1&pictures=1", "!!document.querySelector('.more')", make),
    "edit": ("edit?run=digits&steps=1&pictures=1", "!!document.querySelector('.drop')", draw),
    "no image yet": ("edit?run=digits", "!!document.querySelector('.drop')", None),
    "no run yet": ("generate", "!!document.querySelector('.empty')", None),
}


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """A server of a folder without runs."""
    folder = tmp_path_factory.mktemp("nothing")
    with page(Site(folder, folder, "cpu")) as made:
        yield made


@pytest.mark.parametrize("part", PARTS)
def test_axe_finds_nothing(browser, served, nothing, axe, part):
    address, ready, act = PARTS[part]
    browser.open("about:blank")
    browser.open(f"{(nothing if part == 'no run yet' else served).address}#/{address}")
    browser.wait(ready)
    browser.run("document.querySelectorAll('details').forEach(each => { each.open = true })")
    if act is not None:
        act(browser)
    browser.run(axe)
    told = "v => [v.impact, v.id, v.nodes[0].html, v.nodes[0].failureSummary]"
    wrong = f"axe.run().then(found => found.violations.map({told}))"
    for dark in (False, True):
        browser.resize(1280, dark=dark)
        assert browser.run(wrong) == []
    browser.resize(1280)


FOCUS = "document.activeElement"


def test_the_keyboard_is_enough(browser, served):
    browser.open("about:blank")
    browser.open(f"{served.address}#/generate?run=digits&steps=1&pictures=1&guidance=2")
    browser.wait("!!document.querySelector('.more')")
    browser.run("document.querySelectorAll('details').forEach(each => { each.open = true })")
    asked = "[...document.querySelectorAll('a, button, input, select, summary')]"
    asked += ".filter(e => e.offsetParent && !e.disabled && e !== document.body)"
    browser.run(f"(window.unseen = new Set({asked})).size")
    for _ in range(60):
        browser.press("Tab")
        outline = browser.run(f"window.unseen.delete({FOCUS}) && getComputedStyle({FOCUS}).outlineStyle")
        assert outline in (False, "solid", "auto")
    assert browser.run("[...window.unseen].map(each => each.outerHTML)") == []
    browser.run("document.querySelector('button.main').focus()")
    browser.press("Enter")
    browser.wait("!!document.querySelector('.made-by .command')")
    assert browser.run("document.querySelector('.progress [role=status]').textContent") == "1 picture is ready"
    browser.wait(f"{FOCUS} === document.querySelector('button.main')")  # which was disabled meanwhile
    while not browser.run(f"{FOCUS}.matches('.picture')"):
        browser.press("Tab")
    browser.press("Enter")
    browser.wait("!!document.querySelector('dialog[open]')")
    assert browser.run(f"!!{FOCUS}.closest('dialog')")
    browser.press("Escape")
    browser.wait(f"!document.querySelector('dialog[open]') && {FOCUS}.matches('.picture')")


def test_the_list_of_runs_keeps_the_focus_as_it_changes(browser, served):
    browser.open("about:blank")
    browser.open(f"{served.address}#/runs")
    browser.wait("!!document.querySelector('a.run')")
    browser.run("document.querySelector('a.run').focus(); document.querySelector('a.run').dataset.old = 1")
    log = served.site.runs.folder / "digits" / "log.jsonl"
    os.utime(log, (log.stat().st_atime, log.stat().st_mtime + 1))  # as if a line came
    browser.wait("!!document.querySelector('a.run:not([data-old])')")
    assert browser.run(f"{FOCUS}.matches('a.run:not([data-old])')")


def covered(browser):
    """The number of pixels that are drawn over."""
    return sum(value >= 128 for value in pixels(browser, "document.querySelector('.mask')")[2:][3::4])


def upload(browser, name, picture):
    """Choose a picture as a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    browser.run(
        f"(input => {{ const files = new DataTransfer(), bytes = new Uint8Array({[*file.getvalue()]});"
        "files.items.add(new File([bytes], 'file.png')); input.files = files.files;"
        f"input.dispatchEvent(new Event('change')) }})(document.querySelector('input[type=file][aria-label={name}]'))"
    )


def test_a_stroke_is_taken_back_and_a_mask_uploaded(browser, served):
    browser.open("about:blank")
    browser.open(f"{served.address}#/edit?run=digits&steps=1&pictures=1")
    browser.wait("!!document.querySelector('.drop')")
    upload(browser, "image", Image.new("L", (64, 32), 200))
    browser.wait("document.querySelector('.stage .mask')?.width === 16")
    assert browser.run("document.querySelector('.undo').disabled")
    x, y = browser.middle(".mask")
    browser.drag((x - 60, y), (x, y), (x + 60, y))
    one = covered(browser)
    browser.drag((x, y - 60), (x, y), (x, y + 60))
    both = covered(browser)
    assert both > one > 0
    browser.press("z", control=True)
    assert covered(browser) == one
    browser.click(".clear")
    assert covered(browser) == 0 and browser.run("document.querySelector('button.main').disabled")
    browser.click(".undo")
    assert covered(browser) == one
    browser.run("document.querySelector('.grip.right').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.querySelector('button.main').textContent") == "Extend"
    browser.press("z", control=True)
    assert browser.run("document.querySelector('button.main').textContent") == "Fill in" and covered(browser) == one
    browser.click(".undo")
    assert covered(browser) == 0 and browser.run("document.querySelector('.undo').disabled")
    # Of the size of the image as it was: cropped at its centre, as that was.
    mask = Image.new("L", (64, 32))
    mask.paste(255, (0, 0, 32, 16))
    upload(browser, "mask", mask)
    browser.wait("!document.querySelector('button.main').disabled")
    drawn = pixels(browser, "document.querySelector('.mask')")[2:][3::4]
    assert [place for place, value in enumerate(drawn) if value] == [16 * y + x for y in range(8) for x in range(8)]
    upload(browser, "mask", Image.new("L", (5, 4), 255))
    browser.wait("document.querySelector('.error')?.innerText.includes('mask is 4x5, but the image is 32x64 or 16x16')")
    assert covered(browser) == 64
    browser.click(".undo")
    assert covered(browser) == 0
    upload(browser, "mask", mask.crop((24, 8, 40, 24)).point(lambda value: value // 255))  # of 0 and 1
    browser.wait("document.querySelector('.work [role=status]')?.innerText.includes('has no white')")
    make(browser)
    assert "--mask mask.png" in command(browser)


@pytest.mark.parametrize("part", ["runs", "generate", "edit"])
def test_where_nothing_is_a_command_says_how_to_begin(browser, nothing, part):
    browser.open("about:blank")
    browser.open(f"{nothing.address}#/{part}")
    found = browser.wait("document.querySelector('.empty')?.innerText")
    assert f"no run in {nothing.site.runs.folder} yet" in found
    commands = browser.run("[...document.querySelectorAll('.command code')].map(each => each.textContent)")
    assert len(commands) == 2
    for words in commands:
        program, verb, *arguments = shlex.split(words)
        assert (program, verb) == ("patch-diffusion", "train") and Train.parse(arguments)


def test_a_run_without_samples_and_one_that_saw_few_images_say_so(browser, served):
    folder = served.site.runs.folder
    shutil.copytree(folder / "digits", folder / "bare")
    shutil.rmtree(folder / "bare" / "samples")
    browser.open("about:blank")
    browser.open(f"{served.address}#/runs")
    browser.wait("document.querySelectorAll('.run').length === 2")
    assert "complete, few images seen" in browser.run("document.querySelector('a.run[href*=bare]').innerText")
    browser.click("a.run[href*=bare]")
    browser.wait("document.querySelector('.empty')?.innerText.includes('Make some under Generate')")
    assert f"sample {folder / 'bare'} " in browser.run("document.querySelector('.command code').textContent")
    assert "images seen: samples may still be blurry" in browser.run("document.querySelector('.warning.box').innerText")
    browser.open("about:blank")
    shutil.rmtree(folder / "bare")


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("part", ["runs", "run?name=digits", "generate", "edit"])
def test_nothing_is_wider_than_the_window(browser, served, part, width):
    browser.open(f"{served.address}#/{part}")
    browser.resize(width)
    browser.wait("!!document.querySelector('.run, .chart, form')")
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.resize(1280)


def names_of(browser):
    """Of the fields of the form that have a value, with it."""
    fields = "[...document.querySelectorAll('form [name]')].filter(e => e.value && !e.disabled)"
    return dict(browser.run(f"{fields}.map(e => [e.name, e.value])"))


def test_settings_survive_a_reload_and_are_passed_on(browser, served):
    browser.open(f"{served.address}#/generate?run=digits&seed=3")
    browser.wait("document.querySelector('[name=seed]')?.value === '3'")
    values = {"seed": 9007199254740928, "pictures": 2, "steps": 3, "class": 7, "solver": "euler", "guidance": 2.5}
    values |= {"guide": "crops:1/4", "low": 0.5, "tile": 8, "rho": 5}
    for name, value in values.items():
        choose(browser, name, str(value))
    browser.click(".models + div button")
    browser.wait("document.querySelectorAll('.models .pair').length === 2")
    before, address = names_of(browser), browser.run("location.href")
    assert values.items() <= {name: type(values.get(name, ""))(value) for name, value in before.items()}.items()
    assert "seed=9007199254740928" in address and "schedule" not in address  # which is at its default

    def still_there():
        browser.wait(
            "document.querySelectorAll('.models .pair').length === 2 && !!document.querySelector('button.main')"
        )
        browser.wait("document.querySelector('[name=rho]').value === '5'")
        return names_of(browser) == before and browser.run("location.href") == address

    browser.call("Page.reload")
    assert still_there()
    browser.click("nav [data-page=runs]")
    browser.wait("!!document.querySelector('.run')")
    browser.click("nav [data-page=generate]")
    assert still_there()
    browser.open(f"{served.address}#/generate?run=none&seed=x&steps=1000&class=<b>&solver=%00&guidance=NaN&tile=1e999")
    browser.wait("document.querySelector('[name=seed]')?.value === '0'")
    found = names_of(browser)
    assert (found["run"], found["steps"], found["solver"], found["guidance"]) == ("digits", "18", "heun", "1")
    assert "class" not in found and "tile" not in found


def test_what_was_made_is_shown_again_after_a_reload(browser, served):
    browser.open(f"{served.address}#/generate?run=digits&pictures=3&steps=2&class=4")
    browser.wait("document.querySelector('[name=pictures]')?.value === '3'")
    browser.click("button.main")
    browser.wait("document.querySelector('.made-by .command')?.innerText.includes('--class 4 --steps 2')")
    made = pixels(browser, "document.querySelector('.picture canvas')")
    browser.call("Page.reload")
    browser.wait("document.querySelectorAll('.made button').length >= 1 && !document.querySelector('.picture')")
    assert "seeds 0 to 2, 2 steps, just now" in browser.run("document.querySelector('.made button').innerText")
    browser.wait("[...document.querySelectorAll('.made button:first-child img')].every(i => i.naturalWidth === 16)")
    browser.click(".made button")
    browser.wait("document.querySelectorAll('.made-by .command').length === 1")
    assert pixels(browser, "document.querySelector('.picture canvas')") == made
    browser.click(".picture")
    browser.wait("!!document.querySelector('dialog[open]')")
    links = browser.run("[...document.querySelectorAll('dialog a')].map(a => [a.innerText, a.download])")
    assert links == [["Download", "000000.png"], ["Settings", "000000.json"]]
    assert "class\t4" in browser.run("document.querySelector('dialog table').innerText")


@pytest.mark.parametrize("leave", ["reload", "close", "part"])
def test_a_page_that_is_left_stops_what_it_asked_for(served, tmp_path, leave):
    with Browser(tmp_path / "left") as left:
        left.open(f"{served.address}#/generate?run=digits&steps=100&pictures=64")
        left.wait("document.querySelector('[name=pictures]')?.value === '64'")
        left.click("button.main")
        left.wait("document.querySelector('[role=status]')?.textContent.includes('step')")
        job = [*served.site.jobs._jobs.values()][-1]
        assert job.state == "running"
        if leave == "reload":
            left.call("Page.reload")
        elif leave == "close":
            left.open("about:blank")
        else:
            left.click("nav [data-page=runs]")
        end = time.monotonic() + 60
        while not job.is_over and time.monotonic() < end:
            time.sleep(0.01)
        assert job.state == "stopped" and job.asked_to_stop and not left.errors


@pytest.mark.scheduled
def test_a_killed_browser_leaves_it_standing(browser, served, tmp_path):
    with Browser(tmp_path / "killed") as killed:
        killed.open(f"{served.address}#/generate?run=digits")
        killed.wait("!!document.querySelector('form')")
        choose(killed, "steps", 100)
        choose(killed, "pictures", 64)
        killed.click("button.main")
        killed.wait("document.querySelector('[role=status]')?.textContent.includes('step')")
        killed.kill()
    job = [*served.site.jobs._jobs.values()][-1]
    assert job.state == "running"
    job.looked_at = time.monotonic() - 30  # others do not wait a minute for it
    browser.open(f"{served.address}#/generate?run=digits")
    browser.wait("!!document.querySelector('form')")
    choose(browser, "steps", 1)
    browser.click("button.main")
    browser.wait("!!document.querySelector('.made-by .command')")
    assert job.state == "stopped" and not job.asked_to_stop

"""Reports: what a page holds, that it needs nothing else, and that a real browser opens and sorts it."""

import dataclasses
import html.parser
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from scipy.special import rel_entr

from mil_jax import datasets, report, runs
from mil_jax.errors import InputError
from mil_jax.report import __main__ as command
from mil_jax.report import gallery as galleries
from mil_jax.report import page as pages
from mil_jax.report import sprites
from mil_jax.report.parts import Gallery
from mil_jax.text import cell_text

MEMBERS, BAGS, SLOTS = 3, 30, 5
VOID = {"meta", "link", "img", "input", "br"}
NASTY = "<script>alert(\"x\")</script> & 'quotes' <b>"


def draw_gallery(members: int = MEMBERS, bags: int = BAGS, slots: int = SLOTS, **changes: Any) -> Gallery:
    """Bags of 1 to `slots` images of 6 x 8 pixels, with weights and probabilities at random."""
    rng = np.random.default_rng(0)
    size = 1 + np.arange(bags) % slots
    mask = np.arange(slots) < size[:, None]
    weight = rng.gamma(0.7, size=(members, bags, slots)) * mask
    truth = np.where(mask, rng.random((bags, slots)) < 0.3, -1).astype(np.int32)
    positive = rng.random((members, bags))
    fields: dict[str, Any] = {
        "title": "Bags",
        "pool": rng.integers(0, 256, (50, 6, 8), dtype=np.uint8),
        "rows": rng.integers(0, 50, (bags, slots)) * mask,
        "mask": mask,
        "label": (truth == 1).any(axis=1).astype(np.int32),
        "instance_label": truth,
        "attention": weight / weight.sum(axis=-1, keepdims=True),
        "probability": np.stack([1 - positive, positive], axis=-1),
    }
    return Gallery(**(fields | changes))


def gallery_html(**changes: Any) -> str:
    return report.render("", [draw_gallery(**changes)]).partition("</header>")[2]


def png(width: int, height: int = 20) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width), 128, np.uint8)).save(file, "PNG")
    return file.getvalue()


ALL_KINDS = (
    report.Text("Text", ["One.", "Two."]),
    report.Settings("Settings", {"members": 3, "rate": 0.001, "own": {"hidden": (128, 64), "gated": True}}),
    report.Table("Table", ("name", "value"), [("a", 0.12345), ("b", float("nan")), ("c", None)], "In words."),
    report.Picture("Small", png(300)),
    report.Picture("Small too", png(300), "A caption."),
    report.Picture("Large", png(1400)),
    draw_gallery(),
)


class Outline(html.parser.HTMLParser):
    """Asserts that tags are closed in order, and keeps the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


# ---- the page ----


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    page = report.render("Title", ALL_KINDS, "Subtitle")
    assert page == report.render("Title", ALL_KINDS, "Subtitle")
    Outline(page)
    ids = re.findall(r' id="(.*?)"', page)
    assert len(ids) == len(set(ids))
    fetched = re.findall(r' (?:src|href)="(.*?)"', page) + re.findall(r"url\((.*?)\)", page)
    assert {address for address in fetched if not address.startswith("data:")} <= {f"#{name}" for name in ids}
    assert "@import" not in page and "http" not in page


def test_text_is_never_markup() -> None:
    parts = [
        report.Text(NASTY, [NASTY]),
        report.Settings(NASTY, {NASTY: NASTY, "group": {NASTY: [NASTY]}}),
        report.Table(NASTY, (NASTY,), [(NASTY,)], NASTY),
        report.Picture(NASTY, png(300), NASTY),
        draw_gallery(title=NASTY, caption=NASTY, classes=(NASTY, "b")),
    ]
    page = report.render(NASTY, parts, NASTY)
    assert sum(NASTY in text for text in Outline(page).text) >= 13 + BAGS
    assert page.count("<script") == 2  # the page's own, and the orders


def test_cells_and_settings() -> None:
    cells = (0.5, float("nan"), float("inf"), None, 12345, np.float32(0.25), np.int64(3), True, "text")
    expected = ["0.5000", "–", "–", "–", "12,345", "0.2500", "3", "yes", "text"]
    assert [cell_text(cell) for cell in cells] == expected
    assert [pages.setting_text(value) for value in (None, False, (1, 2), 0.001)] == ["none", "no", "1, 2", "0.001"]
    assert report.Table("", ("a", "b"), [("x", 1), ("y", None), ("z", 0.5)]).numeric == [False, True]


def test_small_pictures_stand_side_by_side_two_and_two() -> None:
    small, large, text = report.Picture("", png(300)), report.Picture("", png(1400)), report.Text("", [])
    assert pages.half_wide([small, small, small, large, small, text, small]) == {0, 1}
    assert pages.half_wide([text, small, small, small, small]) == {1, 2, 3, 4}


def test_5000_bags_stay_under_20_megabytes() -> None:
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 256, (5000, 28, 28), dtype=np.uint8)  # noise: no PNG is larger
    gallery = draw_gallery(2, 5000, 3, pool=pool, rows=rng.integers(0, 5000, (5000, 3)))
    assert len(report.render("Title", [gallery]).encode()) < 20e6


# ---- galleries ----


def test_the_facts_against_other_calculations() -> None:
    gallery = draw_gallery()
    facts = galleries.judge(gallery)
    weight, size = np.asarray(gallery.attention), np.sum(gallery.mask, axis=1)
    mean, probability = weight.mean(axis=0), np.asarray(gallery.probability)
    entropy = -np.sum(mean * np.log(np.where(mean > 0, mean, 1)), axis=1) / np.log(np.maximum(size, 2))
    prediction = (probability[..., 1].mean(axis=0) > 0.5).astype(int)
    of_one = [probability[:, bag, predicted] for bag, predicted in enumerate(prediction)]
    expected = galleries.Facts(
        prediction=prediction,
        certainty=np.mean(of_one, axis=1),
        certainty_spread=np.std(of_one, axis=1, ddof=1),
        wrong=prediction != gallery.label,
        entropy=np.where(size > 1, entropy, 0),
        disagreement=rel_entr(weight, mean).sum(axis=-1).mean(axis=0),
        weight=mean,
        spread=weight.std(axis=0, ddof=1),
    )
    for value, other in zip(facts, expected, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-6)


def test_the_orders() -> None:
    gallery = draw_gallery()
    facts = galleries.judge(gallery)
    orders = galleries.orders(facts)
    assert all(sorted(order) == list(range(BAGS)) for order in orders.values())
    first, count = next(iter(orders.values())), int(facts.wrong.sum())
    assert 0 < count < BAGS and facts.wrong[first][:count].all()
    falling = {
        "attention entropy": facts.entropy,
        "members differ in attention": facts.disagreement,
        "members differ in prediction": facts.certainty_spread,
        "prediction": np.asarray(gallery.probability)[..., 1].mean(axis=0),
        "wrong first": np.where(facts.wrong, 1 + facts.certainty, 1 - facts.certainty),
    }
    for name, values in falling.items():
        assert (np.diff(values[orders[name]]) <= 1e-12).all(), name


def test_one_member_differs_from_nobody() -> None:
    text = gallery_html(members=1)
    assert "differ" not in text and "±" not in text


def test_padding_is_never_shown_and_changes_nothing() -> None:
    """Nor do arrays of JAX."""
    gallery, text = draw_gallery(), gallery_html()
    assert text.count("<i ") == np.sum(gallery.mask)
    assert text.count("▲</b>") == np.sum(gallery.instance_label == 1)
    assert "?</b>" not in text
    pad = {"mask": False, "rows": 0, "instance_label": -1, "attention": 0.0}
    wider = {
        name: jnp.pad(getattr(gallery, name), [(0, 0)] * (np.ndim(getattr(gallery, name)) - 1) + [(0, 7)],
                      constant_values=value)
        for name, value in pad.items()
    }  # fmt: skip
    assert gallery_html(**wider) == text


def test_of_a_long_bag_the_heaviest_are_shown_and_the_others_counted() -> None:
    """Bags of 154 and of 3,000 instances, in 3,000 slots."""
    mask = np.arange(3000) < np.array([[154], [3000]])
    gallery = draw_gallery(bags=2, slots=3000, mask=mask)
    weight = np.where(mask, galleries.judge(gallery).weight, 0)
    shown = galleries.shown_slots(weight, mask)
    assert (shown.sum(axis=1) == galleries.MOST_PER_BAG).all() and not (shown & ~mask).any()
    assert (np.where(shown, weight, 1).min(axis=1) >= np.where(shown, 0, weight).max(axis=1)).all()
    even = np.tile(mask / mask.sum(axis=1, keepdims=True), (MEMBERS, 1, 1))
    text = gallery_html(bags=2, slots=3000, mask=mask, attention=even)
    assert "+130 more" in text and "+2,976 more" in text and text.count("entropy 1.00") == 2


def test_truth_that_is_not_known() -> None:
    truth = np.array(draw_gallery().instance_label)
    text = gallery_html(instance_label=np.full_like(truth, -1))
    assert "▲" not in text and "?</b>" not in text
    truth[4] = (1, 0, -1, -1, 1)  # a full bag
    assert gallery_html(instance_label=truth).count("?</b>") == 2


def test_an_empty_bag_and_weights_that_are_no_numbers() -> None:
    mask, attention = np.array(draw_gallery().mask), np.array(draw_gallery().attention)
    mask[7], attention[0, 9] = False, np.nan
    text = gallery_html(mask=mask, attention=attention)
    assert text.count("no instance</em>") == 1
    assert "nan" not in text.lower().split("base64")[0] and ">–<" in text


def test_classes_have_names() -> None:
    probability = np.random.default_rng(0).dirichlet(np.ones(4), (MEMBERS, BAGS))
    four: dict[str, Any] = {"probability": probability, "label": np.arange(BAGS) % 4}
    assert re.search("class 3 → class [0-3]", gallery_html(**four)) and "negative" not in gallery_html(**four)
    assert re.search("(positive|negative) → (positive|negative)", gallery_html())
    named = gallery_html(**four, classes=["N", "E", "S", "W"])
    assert re.search("W → [NESW] 0", named) and 'value="l3">W' in named and "class 3" not in named


@pytest.mark.parametrize("pool", [np.zeros((50, 12), np.float32), None])
def test_features_are_shown_as_weights_alone(pool: np.ndarray | None) -> None:
    text = gallery_html(pool=pool)
    assert "url(" not in text and "--x" not in text and text.count("<i ") > BAGS


# ---- sprites ----


def opened(sheet: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sheet)))


@pytest.mark.parametrize("side", [4096, 20])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_every_image_is_where_the_sprites_say(side: int, channels: tuple[int, ...], monkeypatch: Any) -> None:
    """On one sheet, and on many small ones."""
    monkeypatch.setattr(sprites, "SHEET_SIDE", side)
    pool = np.random.default_rng(0).integers(0, 256, (30, 6, 8, *channels), dtype=np.uint8)
    made = sprites.make_sprites(pool, np.arange(0, 30, 2))
    sheets = [opened(sheet) for sheet in made.sheets]
    assert (len(sheets) > 1) == (side == 20)
    assert (made.place[1::2] == -1).all()
    for row, (sheet, x, y) in list(enumerate(made.place))[::2]:
        window = sheets[sheet][y * 6 : y * 6 + 6, x * 8 : x * 8 + 8]
        np.testing.assert_array_equal(window, pool[row].reshape(window.shape))


def test_heavy_images_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MOST_BYTES", 3000)
    pool = np.random.default_rng(0).integers(0, 256, (30, 16, 16), dtype=np.uint8)
    made = sprites.make_sprites(pool, np.arange(30))
    assert (made.shrunk, made.width, made.height) == (2, 8, 8)
    mean = pool[0].reshape(8, 2, 8, 2).mean(axis=(1, 3))
    assert abs(opened(made.sheets[0])[:8, :8] - mean).max() <= 0.5


def test_floats_become_bytes() -> None:
    shades, bytes_ = np.array([[[0.0, 0.5, 1.0]]], np.float32), [[[0, 128, 255]]]
    np.testing.assert_array_equal(sprites.to_bytes(shades), bytes_)
    np.testing.assert_array_equal(sprites.to_bytes(4 * shades - 2), bytes_)
    np.testing.assert_array_equal(sprites.to_bytes(np.array([[[0, 300, 7]]])), [[[0, 255, 7]]])


# ---- bad input ----


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rows": np.full((BAGS, SLOTS), 50)}, "rows"),
        ({"rows": np.full((BAGS, SLOTS), -1)}, "rows"),
        ({"label": np.full(BAGS, 2)}, "label"),
        ({"probability": np.ones((MEMBERS, BAGS, 1))}, "probability.shape"),
        ({"classes": ("one",)}, "classes.shape"),
    ],
)
def test_galleries_that_do_not_fit(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named} = .* expected "):
        draw_gallery(**changes)


def test_rows_and_pictures_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="expected 2 cells"):
        report.Table("", ("a", "b"), [("only one",)])
    with pytest.raises(InputError, match="PNG"):
        report.Picture("", b"GIF89a")


# ---- run folders ----

NAMES = ("attention", "probability", "rows", "label", "instance_label", "mask")


def write_run(folder: Path, arrays: dict[str, np.ndarray], **data: Any) -> runs.FinishedRun:
    """A run folder without a run: what it holds is made up."""
    rows = [{"seed": i, "best_epoch": 2, "test_loss": 0.5, "warnings": ["Odd."] * (i > 0)} for i in range(MEMBERS)]
    means = {name: {"test_loss": 0.25} for name in ("mean", "standard_deviation", "ensemble")}
    config = {"experiment": "made_up", "options": {"seed": 7}, "data": {"name": "own", **data}}
    with runs.open_run(folder, config, {"paths": {}}) as run:
        run.log([{"epoch": 1, "member": i, "val_loss": 0.5 + i} for i in range(MEMBERS)])
        run.write_json("summary.json", {"members": rows, **means})
        run.write_arrays("attention.npz", **arrays)
        for name, width in (("roc_curve", 300), ("an_other", 300), ("learning_curves", 1400)):
            run.write_bytes(f"figures/{name}.png", png(width))
    return runs.load_finished(folder)


@pytest.fixture
def finished(tmp_path: Path) -> runs.FinishedRun:
    gallery = draw_gallery()
    return write_run(tmp_path / "run", {name: np.asarray(getattr(gallery, name)) for name in NAMES})


def test_the_parts_of_a_run(finished: runs.FinishedRun) -> None:
    parts = report.run_parts(finished, draw_gallery().pool)
    assert [part.title for part in parts] == [
        "Warnings", "Results on the test bags", "Mean of members, all sets", "Learning curves", "ROC curve", "An other",
        "Configuration", "Test bags",
    ]  # fmt: skip
    assert isinstance(parts[0], report.Text) and parts[0].paragraphs == ["Member 1, 2: Odd."]
    text = report.report_of(finished, draw_gallery().pool)
    Outline(text)
    assert "3 members, bags of 1 to 5 of own, seed 7: run" in text and "made it positive?" in text


def test_classes_and_the_mask_of_a_run(finished: runs.FinishedRun) -> None:
    """In a folder without a mask, all bags are full."""
    arrays = {name: value for name, value in finished.arrays.items() if name != "mask"}
    config = {**finished.config, "classes": ["benign", "malignant"]}
    bags = report.run_parts(dataclasses.replace(finished, config=config, arrays=arrays), None)[-1]
    assert isinstance(bags, Gallery) and np.all(bags.mask) and bags.classes == ("benign", "malignant")


def test_of_many_members_the_first_are_in_the_table(finished: runs.FinishedRun) -> None:
    summary = {**finished.summary, "members": finished.summary["members"][:1] * 100}
    table = report.run_parts(dataclasses.replace(finished, summary=summary), None)[0]
    assert isinstance(table, report.Table)
    assert len(table.rows) == 64 + 3 and table.caption.startswith("The first 64 of 100 members")


# ---- the command ----


def test_the_command_shows_own_bags_as_weights(finished: runs.FinishedRun) -> None:
    page = command.main(command.Config(finished.path)).read_text()
    assert page == report.report_of(finished, None) and "--x:" not in page


def test_the_command_loads_a_named_set(tmp_path: Path) -> None:
    digits = datasets.load("mnist-sample")
    arrays = {name: np.asarray(getattr(draw_gallery(), name)) for name in NAMES}
    finished = write_run(tmp_path / "run", arrays, name="mnist-sample", content_hash=digits.content_hash)
    page = command.main(command.Config(finished.path, tensorboard=True)).read_text()
    assert page == report.report_of(finished, digits.test.x) and "--x:" in page
    assert {path.name for path in (finished.path / "tensorboard").iterdir()} >= {"mean", "member_000"}
    write_run(tmp_path / "other", arrays, name="mnist-sample", content_hash="0")
    with pytest.raises(InputError, match="expected the data of the run"):
        command.main(command.Config(tmp_path / "other"))
    assert not (tmp_path / "other" / "report.html").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "no run here"),
        ("summary.json", "has not come to its end"),
        ("attention.npz", "expected a run with attention.npz; this one, made by made_up, has none"),
        ("metrics.jsonl", "not complete"),
    ],
)
def test_a_folder_without_a_report(missing: str, message: str, finished: runs.FinishedRun) -> None:
    """Refused with one sentence, and nothing is written."""
    (finished.path / missing).unlink()
    before = {file: file.read_bytes() for file in finished.path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=message) as error:
        command.main(command.Config(finished.path))
    assert error.value.argument == "run folder"
    assert {file: file.read_bytes() for file in finished.path.rglob("*") if file.is_file()} == before


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"there is no {', '.join(names)} here")
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=path, args=["--headless", "--no-sandbox", "--disable-gpu"])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report.render("Title", ALL_KINDS), encoding="utf-8")
    return path


SHOWN = "[...document.querySelectorAll('.card')].filter(c => c.offsetParent).map(c => +c.id.split('-')[1])"


def open_page(browser: Browser, path: Path, width: int = 1280, javascript: bool = True) -> tuple[Page, list[str]]:
    """The page, and what it says in the console, throws, and asks for besides itself."""
    page = browser.new_page(viewport={"width": width, "height": 900}, java_script_enabled=javascript)
    events: list[str] = []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith("data:") else events.append(asked.url))
    page.goto(path.as_uri())
    events.remove(path.as_uri())
    return page, events


def test_a_click_sorts(browser: Browser, written: Path) -> None:
    page, events = open_page(browser, written)
    orders = galleries.show(draw_gallery())["orders"]
    assert page.evaluate(SHOWN) == orders["wrong first"]
    for name in ("attention entropy", "prediction", "bag number"):
        page.click(f"[data-order='{name}']")
        assert page.evaluate(SHOWN) == orders[name]
    page.click("[data-order='bag number']")
    assert page.evaluate(SHOWN) == orders["bag number"][::-1]
    page.click("[data-order='wrong first']")
    assert page.evaluate(SHOWN) == orders["wrong first"]
    assert page.get_attribute("[aria-pressed=true]", "data-order") == "wrong first"
    assert events == []


@pytest.mark.parametrize("javascript", [True, False])
def test_bags_can_be_chosen(browser: Browser, written: Path, javascript: bool) -> None:
    """Without JavaScript, too, where the wrong ones come first, and there is nothing to sort by."""
    page, events = open_page(browser, written, javascript=javascript)
    assert page.evaluate(SHOWN) == galleries.show(draw_gallery())["orders"]["wrong first"]
    assert page.is_visible(".sort") == javascript
    page.click("label:has([value=wrong])")
    assert set(page.evaluate(SHOWN)) == set(np.flatnonzero(galleries.judge(draw_gallery()).wrong))
    page.click("label:has-text('positive')")
    assert set(page.evaluate(SHOWN)) == set(np.flatnonzero(draw_gallery().label == 1))
    assert events == []


@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_the_window_and_shows_the_images(browser: Browser, written: Path, width: int) -> None:
    page, events = open_page(browser, written, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shot = np.asarray(Image.open(io.BytesIO(page.locator(".bag i").first.screenshot())).convert("L"))
    assert len(np.unique(shot[30:60, 10:-10])) > 10  # the noise of the made-up images
    assert events == []


def test_errors_are_noticed(browser: Browser, tmp_path: Path) -> None:
    """So that the tests above would fail."""
    path = tmp_path / "broken.html"
    path.write_text("<script>console.error('one'); throw new Error('two')</script><img src='missing.png'>")
    _, events = open_page(browser, path)
    assert {word for word in ("one", "two", "missing") if word in json.dumps(events)} == {"one", "two", "missing"}

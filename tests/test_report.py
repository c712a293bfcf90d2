"""Reports: what a page holds, that it needs nothing else, and that a real browser opens and sorts it."""

import contextlib
import dataclasses
import functools
import html.parser
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from mil_jax import datasets, report
from mil_jax.errors import InputError
from mil_jax.report import __main__ as command
from mil_jax.report import gallery as galleries
from mil_jax.report import page as pages
from mil_jax.report import sprites
from mil_jax.report.parts import Gallery
from mil_jax.run.folder import open_run
from mil_jax.run.saved import FinishedRun, load_finished
from mil_jax.text import cell_text

MEMBERS, BAGS, SLOTS = 3, 30, 5
VOID = {"meta", "link", "img", "input", "br"}
NASTY = "<script>alert(\"x\")</script> & 'quotes' <b>"


def draw_gallery(members: int = MEMBERS, bags: int = BAGS, slots: int = SLOTS, **changes: Any) -> Gallery:
    """Bags of 1 to `slots` images of 6 x 8 pixels, with weights and probabilities at random."""
    rng = np.random.default_rng(0)
    mask = np.arange(slots) < 1 + np.arange(bags)[:, None] % slots
    weight = rng.gamma(0.7, size=(members, bags, slots)) * mask
    truth = np.where(mask, rng.random((bags, slots)) < 0.3, -1).astype(np.int32)
    positive = rng.random((members, bags))
    fields: dict[str, Any] = {
        "title": "Bags", "pool": rng.integers(0, 256, (50, 6, 8), dtype=np.uint8), "mask": mask,
        "rows": rng.integers(0, 50, (bags, slots)) * mask, "label": (truth == 1).any(axis=1).astype(np.int32),
        "instance_label": truth, "attention": weight / weight.sum(axis=-1, keepdims=True),
        "probability": np.stack([1 - positive, positive], axis=-1),
    }  # fmt: skip
    return Gallery(**(fields | changes))


def gallery_html(**changes: Any) -> str:
    return report.render("", [draw_gallery(**changes)]).partition("</header>")[2]


def png(width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((20, width), 128, np.uint8)).save(file, "PNG")
    return file.getvalue()


def opened(sheet: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sheet)))


SMALL, LARGE = report.Picture("Small", png(300)), report.Picture("Large", png(1400), "A caption.")
ALL_KINDS = (
    report.Text("Text", ["One.", "Two."]),
    report.Settings("Settings", {"members": 3, "rate": 0.001, "own": {"hidden": (128, 64), "gated": True}}),
    report.Table("Table", ("name", "value"), [("a", 0.12345), ("b", float("nan")), ("c", None)], "In words."),
    SMALL, SMALL, LARGE,
    draw_gallery(),
)  # fmt: skip


class Outline(html.parser.HTMLParser):
    """Asserts that tags are closed in order, and keeps the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = [""]
        self.text: list[str] = []
        self.feed(page)
        assert self.open == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += [data] if self.open[-1] not in ("style", "script") else []


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
        report.Text(NASTY, [NASTY]), report.Settings(NASTY, {NASTY: NASTY, "group": {NASTY: [NASTY]}}),
        report.Table(NASTY, (NASTY,), [(NASTY,)], NASTY), report.Picture(NASTY, png(300), NASTY),
        draw_gallery(title=NASTY, caption=NASTY, classes=(NASTY, "b")),
    ]  # fmt: skip
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
    text = report.Text("", [])
    assert pages.half_wide([SMALL, SMALL, SMALL, LARGE, SMALL, text, SMALL]) == {0, 1}
    assert pages.half_wide([text, SMALL, SMALL, SMALL, SMALL]) == {1, 2, 3, 4}


def test_5000_bags_stay_under_20_megabytes() -> None:
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 256, (5000, 28, 28), dtype=np.uint8)  # noise: no PNG is larger
    gallery = draw_gallery(2, 5000, 3, pool=pool, rows=rng.integers(0, 5000, (5000, 3)))
    assert len(report.render("Title", [gallery]).encode()) < 20e6


def test_the_facts_against_other_calculations_and_the_orders() -> None:
    gallery = draw_gallery()
    weight, size = np.asarray(gallery.attention), np.sum(gallery.mask, axis=1)
    mean, positive = weight.mean(axis=0), np.asarray(gallery.probability)[..., 1]
    prediction = (positive.mean(axis=0) > 0.5).astype(int)
    wrong, of_predicted = prediction != gallery.label, np.where(prediction, positive, 1 - positive)
    entropy = scipy.stats.entropy(mean, axis=1) / np.log(np.maximum(size, 2))
    certainty, spread = of_predicted.mean(axis=0), of_predicted.std(axis=0, ddof=1)
    disagreement = scipy.stats.entropy(weight, mean, axis=-1).mean(axis=0)
    facts = galleries.judge(gallery)
    expected = galleries.Facts(
        prediction, certainty, spread, wrong, entropy, disagreement, mean, weight.std(axis=0, ddof=1)
    )
    for value, other in zip(facts, expected, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-6)
    orders = galleries.orders(facts)
    assert all(sorted(order) == list(range(BAGS)) for order in orders.values())
    assert next(iter(orders)) == "wrong first" and 0 < facts.wrong.sum() < BAGS
    falling = {
        "attention entropy": entropy, "members differ in attention": disagreement, "prediction": positive.mean(axis=0),
        "members differ in prediction": spread, "wrong first": np.where(wrong, 1 + certainty, 1 - certainty),
    }  # fmt: skip
    for name, values in falling.items():
        assert (np.diff(values[orders[name]]) <= 1e-6).all(), name


def test_padding_is_never_shown_and_changes_nothing() -> None:
    """Nor do arrays of JAX."""
    gallery, text = draw_gallery(), gallery_html()
    assert text.count("<i ") == np.sum(gallery.mask)
    assert text.count("▲</b>") == np.sum(gallery.instance_label == 1)
    assert "?</b>" not in text
    fields = {"mask": False, "rows": 0, "instance_label": -1, "attention": 0.0}
    none = [(0, 0), (0, 0)]
    wider = {
        name: jnp.pad(array, [*none[: array.ndim - 1], (0, 7)], constant_values=fields[name])
        for name, array in fields_of(gallery).items() if name in fields
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


def test_what_is_not_known_is_not_shown() -> None:
    """Truth, differences of one member, instances of an empty bag, and weights that are no numbers."""
    gallery = draw_gallery()
    truth, mask, attention = map(np.array, (gallery.instance_label, gallery.mask, gallery.attention))
    text = gallery_html(instance_label=np.full_like(truth, -1))
    assert "▲" not in text and "?</b>" not in text
    truth[4] = (1, 0, -1, -1, 1)  # a full bag
    assert gallery_html(instance_label=truth).count("?</b>") == 2
    one = gallery_html(members=1)
    assert "differ" not in one and "±" not in one
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


@pytest.mark.parametrize("side", [4096, 20])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_every_image_is_where_the_sprites_say(side: int, channels: tuple[int, ...], monkeypatch: Any) -> None:
    """On one sheet, and on many small ones."""
    monkeypatch.setattr(sprites, "SHEET_SIDE", side)
    pool = np.random.default_rng(0).integers(0, 256, (30, 6, 8, *channels), dtype=np.uint8)
    made = sprites.make_sprites(pool, np.arange(0, 30, 2))
    sheets = list(map(opened, made.sheets))
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
    assert abs(opened(made.sheets[0])[:8, :8] - pool[0].reshape(8, 2, 8, 2).mean(axis=(1, 3))).max() <= 0.5


def test_floats_become_bytes() -> None:
    shades = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    for values in (shades, 4 * shades - 2):
        np.testing.assert_array_equal(sprites.to_bytes(values), [[[0, 128, 255]]])
    np.testing.assert_array_equal(sprites.to_bytes(np.array([[[0, 300, 7]]])), [[[0, 255, 7]]])


BAD = [
    (lambda: draw_gallery(rows=np.full((BAGS, SLOTS), 50)), "^rows = .* expected "),
    (lambda: draw_gallery(rows=np.full((BAGS, SLOTS), -1)), "^rows = .* expected "),
    (lambda: draw_gallery(label=np.full(BAGS, 2)), "^label = .* expected "),
    (lambda: draw_gallery(probability=np.ones((MEMBERS, BAGS, 1))), r"^probability.shape = .* expected "),
    (lambda: draw_gallery(classes=("one",)), "^classes.shape = .* expected "),
    (lambda: report.Table("", ("a", "b"), [("only one",)]), "expected 2 cells"),
    (lambda: report.Picture("", b"GIF89a"), "PNG"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_parts_that_do_not_fit(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


NAMES = ("attention", "probability", "rows", "label", "instance_label", "mask")


def fields_of(gallery: Gallery) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(gallery, name)) for name in NAMES}


def write_run(folder: Path, **data: Any) -> FinishedRun:
    """A run folder without a run: what it holds is made up."""
    rows = [{"seed": i, "best_epoch": 2, "test_loss": 0.5, "warnings": ["Odd."] * (i > 0)} for i in range(MEMBERS)]
    means = {name: {"test_loss": 0.25} for name in ("mean", "standard_deviation", "ensemble")}
    config = {"experiment": "made_up", "options": {"seed": 7}, "data": {"name": "own", **data}}
    with open_run(folder, config, {"paths": {}}) as run:
        run.log([{"epoch": 1, "member": i, "val_loss": 0.5 + i} for i in range(MEMBERS)])
        run.write_json("summary.json", {"members": rows, **means})
        run.write_arrays("attention.npz", **fields_of(draw_gallery()))
        for name, width in (("roc_curve", 300), ("an_other", 300), ("learning_curves", 1400)):
            run.write_bytes(f"figures/{name}.png", png(width))
    return load_finished(folder)


@pytest.fixture
def finished(tmp_path: Path) -> FinishedRun:
    return write_run(tmp_path / "run")


def test_the_parts_of_a_run_and_the_page_of_the_command(finished: FinishedRun) -> None:
    """The command has no images of somebody's own bags, and shows their weights."""
    parts = report.run_parts(finished, draw_gallery().pool)
    assert [part.title for part in parts] == [
        "Warnings", "Test bags (nothing was chosen on them)", "Mean of members, all sets", "Learning curves",
        "ROC curve", "An other", "Configuration", "Test bags",
    ]  # fmt: skip
    assert isinstance(parts[0], report.Text) and parts[0].paragraphs == ["Member 1, 2: Odd."]
    text = report.report_of(finished, draw_gallery().pool)
    Outline(text)
    assert "3 members, bags of 1 to 5 of own, seed 7: run" in text and "made it positive?" in text
    page = command.main(command.Config(finished.path)).read_text()
    assert page == report.report_of(finished, None) and "--x:" in text and "--x:" not in page


def test_a_run_of_many_members_with_named_classes_and_full_bags(finished: FinishedRun) -> None:
    """Of the members, the first are in the table; in a folder without a mask, all bags are full."""
    arrays = {name: value for name, value in finished.arrays.items() if name != "mask"}
    config = {**finished.config, "classes": ["benign", "malignant"]}
    summary = dataclasses.replace(finished.summary, members=finished.summary.members[:1] * 100)
    changed = dataclasses.replace(finished, config=config, arrays=arrays, summary=summary)
    table, *_, bags = report.run_parts(changed, None)
    assert isinstance(bags, Gallery) and np.all(bags.mask) and bags.classes == ("benign", "malignant")
    assert isinstance(table, report.Table)
    assert len(table.rows) == 64 + 3 and table.caption.startswith("the first 64 of 100 members")


def test_the_command_loads_a_named_set(tmp_path: Path) -> None:
    digits = datasets.load("mnist-sample")
    finished = write_run(tmp_path / "run", name="mnist-sample", content_hash=digits.content_hash)
    page = command.main(command.Config(finished.path, tensorboard=True)).read_text()
    assert page == report.report_of(finished, digits.test.x) and "--x:" in page
    assert {path.name for path in (finished.path / "tensorboard").iterdir()} >= {"mean", "member_000"}
    other = write_run(tmp_path / "other", name="mnist-sample", content_hash="0").path
    with pytest.raises(InputError, match="expected the data of the run"):
        command.main(command.Config(other))
    assert not (other / "report.html").exists()


def test_a_folder_without_a_report(finished):
    """Refused with one sentence, and nothing is written; test_run_folder has what else a folder may lack."""
    (finished.path / "attention.npz").unlink()
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    message = "expected a run with attention.npz; this one, made by made_up, has none"
    with pytest.raises(InputError, match=message) as error:
        command.main(command.Config(finished.path))
    assert error.value.argument == "run folder"
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")} == before


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Opens a page of all kinds of parts in a browser."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no Chromium here")
    page = tmp_path_factory.mktemp("page") / "report.html"
    page.write_text(report.render("Title", ALL_KINDS), encoding="utf-8")
    with sync_playwright() as driver:
        arguments = ["--headless", "--no-sandbox", "--disable-gpu"]
        yield functools.partial(open_page, driver.chromium.launch(executable_path=path, args=arguments), page)


SHOWN = "[...document.querySelectorAll('.card')].filter(c => c.offsetParent).map(c => +c.id.split('-')[1])"
ORDERS = galleries.show(draw_gallery())["orders"]


@contextlib.contextmanager
def open_page(browser: Browser, path: Path, width: int = 1280, javascript: bool = True) -> Iterator[Page]:
    """The page, which says nothing in the console, throws nothing, and asks for nothing besides itself."""
    page = browser.new_page(viewport={"width": width, "height": 900}, java_script_enabled=javascript)
    events: list[str] = []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith("data:") else events.append(asked.url))
    page.goto(path.as_uri())
    yield page
    assert events == [path.as_uri()]


def test_a_click_sorts(visit: Callable[..., Any]) -> None:
    with visit() as page:
        assert page.evaluate(SHOWN) == ORDERS["wrong first"]
        for name in ("attention entropy", "prediction", "bag number"):
            page.click(f"[data-order='{name}']")
            assert page.evaluate(SHOWN) == ORDERS[name]
        page.click("[data-order='bag number']")
        assert page.evaluate(SHOWN) == ORDERS["bag number"][::-1]
        page.click("[data-order='wrong first']")
        assert page.evaluate(SHOWN) == ORDERS["wrong first"]
        assert page.get_attribute("[aria-pressed=true]", "data-order") == "wrong first"


@pytest.mark.parametrize("javascript", [True, False])
def test_bags_can_be_chosen(visit: Callable[..., Any], javascript: bool) -> None:
    """Without JavaScript, too, where the wrong ones come first, and there is nothing to sort by."""
    gallery = draw_gallery()
    with visit(javascript=javascript) as page:
        assert page.evaluate(SHOWN) == ORDERS["wrong first"]
        assert page.is_visible(".sort") == javascript
        page.click("label:has([value=wrong])")
        assert set(page.evaluate(SHOWN)) == set(np.flatnonzero(galleries.judge(gallery).wrong))
        page.click("label:has-text('positive')")
        assert set(page.evaluate(SHOWN)) == set(np.flatnonzero(gallery.label == 1))


@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_the_window_and_shows_the_images(visit: Callable[..., Any], width: int) -> None:
    with visit(width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shot = opened(page.locator(".bag i").first.screenshot())
        assert len(np.unique(shot[30:60, 10:-10, 0])) > 10  # the noise of the made-up images

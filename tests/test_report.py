"""Reports: what a page holds, that it needs nothing else, and that a real browser opens and sorts it."""

import base64
import dataclasses
import html.parser
import importlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import rel_entr

from mil_jax import report, runs
from mil_jax.errors import InputError
from mil_jax.report import gallery as galleries
from mil_jax.report import page as pages
from mil_jax.report import sprites
from mil_jax.report.parts import Gallery

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "benchmarks"))
chromium: Any = importlib.import_module("chromium")

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
    """Asserts that tags are closed in order; keeps text, and what the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


# ---- the page ----


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    text = report.render("Title", ALL_KINDS, "Subtitle")
    outline = Outline(text)
    assert all(address.startswith(("data:", "#")) for address in outline.fetched)
    assert all(address.startswith("data:") for address in re.findall(r"url\((.*?)\)", text))
    assert "@import" not in text and "http" not in text
    assert len(outline.ids) == len(set(outline.ids))
    assert {f"#{name}" for name in outline.ids} >= {each for each in outline.fetched if each.startswith("#")}


def test_the_same_input_gives_the_same_page() -> None:
    assert report.render("Title", ALL_KINDS) == report.render("Title", ALL_KINDS)


def test_text_is_never_markup() -> None:
    parts = [
        report.Text(NASTY, [NASTY]),
        report.Settings(NASTY, {NASTY: NASTY, "group": {NASTY: [NASTY]}}),
        report.Table(NASTY, (NASTY,), [(NASTY,)], NASTY),
        report.Picture(NASTY, png(300), NASTY),
        draw_gallery(title=NASTY, caption=NASTY),
    ]
    plain = [dataclasses.replace(part, title="plain") for part in parts]
    outline = Outline(report.render(NASTY, parts, NASTY))
    assert sum(NASTY in each for each in outline.text) >= 13
    assert outline.tags.count("script") == Outline(report.render("plain", plain)).tags.count("script")


def test_cells_and_settings() -> None:
    cells = (0.5, float("nan"), float("inf"), None, 12345, np.float32(0.25), np.int64(3), True, "text")
    expected = ["0.5000", "–", "–", "–", "12,345", "0.2500", "3", "yes", "text"]
    assert [pages.cell_text(cell) for cell in cells] == expected
    assert [pages.setting_text(value) for value in (None, False, (1, 2), 0.001)] == ["none", "no", "1, 2", "0.001"]


def test_numbers_stand_on_the_right() -> None:
    table = pages.table_html(report.Table("", ("a", "b"), [("x", 1), ("y", None), ("z", 0.5)]))
    assert re.findall(r"<th [^>]*>", table) == ['<th scope="col">', '<th scope="col" class="n">']


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
    facts = galleries.gallery_facts(gallery)
    weight, mask = np.asarray(gallery.attention), np.asarray(gallery.mask)
    mean = weight.mean(axis=0)
    np.testing.assert_allclose(facts.weight, mean, atol=1e-6)
    np.testing.assert_allclose(facts.spread, weight.std(axis=0, ddof=1), atol=1e-6)
    np.testing.assert_allclose(facts.disagreement, rel_entr(weight, mean).sum(axis=-1).mean(axis=0), atol=1e-6)
    size = mask.sum(axis=1)
    entropy = -np.sum(mean * np.log(np.where(mean > 0, mean, 1)), axis=1) / np.log(np.maximum(size, 2))
    np.testing.assert_allclose(facts.entropy, np.where(size > 1, entropy, 0), atol=1e-6)
    probability = np.asarray(gallery.probability)
    assert (facts.prediction == (probability[..., 1].mean(axis=0) > 0.5)).all()
    assert (facts.wrong == (facts.prediction != gallery.label)).all()
    of_one = [probability[:, i, predicted] for i, predicted in enumerate(facts.prediction)]
    np.testing.assert_allclose(facts.certainty, np.mean(of_one, axis=1))
    np.testing.assert_allclose(facts.certainty_spread, np.std(of_one, axis=1, ddof=1))


def test_the_orders() -> None:
    gallery = draw_gallery()
    facts = galleries.gallery_facts(gallery)
    orders = galleries.orders(facts)
    assert all(sorted(order) == list(range(BAGS)) for order in orders.values())
    assert next(iter(orders)) == "wrong first"
    wrong = facts.wrong[orders["wrong first"]]
    count = int(wrong.sum())
    assert 0 < count < BAGS and wrong[:count].all()
    certainty = facts.certainty[orders["wrong first"]]
    assert (np.diff(certainty[:count]) <= 0).all() and (np.diff(certainty[count:]) >= 0).all()
    positive = np.asarray(gallery.probability)[..., 1].mean(axis=0)
    assert (np.diff(positive[orders["prediction"]]) <= 1e-12).all()
    for name, values in (
        ("attention entropy", facts.entropy),
        ("members differ in attention", facts.disagreement),
        ("members differ in prediction", facts.certainty_spread),
    ):
        assert (np.diff(values[orders[name]]) <= 0).all()


def test_one_member_differs_from_nobody() -> None:
    text = galleries.gallery_html(draw_gallery(members=1), "g")
    assert "differ" not in text and "±" not in text


def test_padding_is_never_shown() -> None:
    gallery = draw_gallery()
    text = galleries.gallery_html(gallery, "g")
    assert text.count("<i ") == np.asarray(gallery.mask).sum()
    assert text.count("▲</b>") == (np.asarray(gallery.instance_label) == 1).sum()
    assert "?</b>" not in text


def test_truth_that_is_not_known() -> None:
    gallery = draw_gallery()
    unknown = np.full_like(gallery.instance_label, -1)
    nothing_known = galleries.gallery_html(dataclasses.replace(gallery, instance_label=unknown), "g")
    assert "▲" not in nothing_known and "?</b>" not in nothing_known
    mixed = np.array(gallery.instance_label)
    mixed[4] = (1, 0, -1, -1, 1)  # a full bag
    assert galleries.gallery_html(dataclasses.replace(gallery, instance_label=mixed), "g").count("?</b>") == 2


def test_of_a_long_bag_the_heaviest_are_shown_in_their_order() -> None:
    gallery = draw_gallery(bags=4, slots=200)
    gallery = dataclasses.replace(gallery, mask=np.ones((4, 200), bool))
    weight = np.asarray(galleries.gallery_facts(gallery).weight)
    for shown, weights in zip(galleries.shown_slots(weight, np.asarray(gallery.mask)), weight, strict=True):
        assert len(shown) == galleries.MOST_PER_BAG
        assert (np.diff(shown) > 0).all()
        assert weights[shown].min() >= np.delete(weights, shown).max()
    assert galleries.gallery_html(gallery, "g").count("+176 more") == 4


def test_an_empty_bag_and_weights_that_are_no_numbers() -> None:
    gallery = draw_gallery()
    mask = np.array(gallery.mask)
    mask[7] = False
    attention = np.array(gallery.attention)
    attention[0, 9] = np.nan
    text = galleries.gallery_html(dataclasses.replace(gallery, mask=mask, attention=attention), "g")
    assert text.count("no instance</em>") == 1
    assert "nan" not in text.lower().split("base64")[0] and ">–<" in text


def test_classes_have_names_where_there_are_two() -> None:
    probability = np.random.default_rng(0).dirichlet(np.ones(4), (MEMBERS, BAGS))
    label = np.arange(BAGS) % 4
    of_four = galleries.gallery_html(draw_gallery(probability=probability, label=label), "g")
    assert "class 3 → class" in of_four and "negative" not in of_four
    assert re.search("(positive|negative) → (positive|negative)", galleries.gallery_html(draw_gallery(), "g"))


def test_arrays_may_be_of_jax() -> None:
    gallery = draw_gallery()
    arrays = {
        field.name: jnp.asarray(getattr(gallery, field.name))
        for field in dataclasses.fields(gallery)
        if field.name not in ("title", "caption")
    }
    text = galleries.gallery_html(dataclasses.replace(gallery, **arrays), "g")
    assert text.count("<i ") == np.asarray(gallery.mask).sum()


# ---- sprites ----


def sheets_of(made: sprites.Sprites) -> list[np.ndarray]:
    raw = [base64.b64decode(uri.removeprefix("data:image/png;base64,")) for uri in made.sheets]
    return [np.asarray(Image.open(io.BytesIO(each))) for each in raw]


@pytest.mark.parametrize("side", [4096, 20])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_every_image_is_where_the_sprites_say(
    side: int, channels: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one sheet, and on many small ones."""
    monkeypatch.setattr(sprites, "SHEET_SIDE", side)
    pool = np.random.default_rng(0).integers(0, 256, (30, 6, 8, *channels), dtype=np.uint8)
    shown = np.arange(0, 30, 2)
    made = sprites.make_sprites(pool, shown)
    sheets = sheets_of(made)
    assert (len(sheets) > 1) == (side == 20)
    assert (made.place[1::2] == -1).all()
    for row in shown:
        sheet, x, y = made.place[row]
        window = sheets[sheet][y * 6 : y * 6 + 6, x * 8 : x * 8 + 8]
        np.testing.assert_array_equal(window, pool[row].reshape(window.shape))


def test_heavy_images_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MOST_BYTES", 3000)
    pool = np.random.default_rng(0).integers(0, 256, (30, 16, 16), dtype=np.uint8)
    made = sprites.make_sprites(pool, np.arange(30))
    assert (made.shrunk, made.width, made.height) == (2, 8, 8)
    mean = pool[0].reshape(8, 2, 8, 2).mean(axis=(1, 3))
    assert abs(sheets_of(made)[0][:8, :8] - mean).max() <= 0.5


def test_floats_become_bytes() -> None:
    shades = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    np.testing.assert_array_equal(sprites.to_bytes(shades), [[[0, 128, 255]]])
    np.testing.assert_array_equal(sprites.to_bytes(4 * shades - 2), [[[0, 128, 255]]])
    np.testing.assert_array_equal(sprites.to_bytes(np.array([[[0, 300, 7]]])), [[[0, 255, 7]]])


def test_features_are_shown_as_weights_alone() -> None:
    text = galleries.gallery_html(draw_gallery(pool=np.zeros((50, 12), np.float32)), "g")
    assert "url(" not in text and "--x" not in text and text.count("<i ") > BAGS


# ---- bad input ----


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rows": np.full((BAGS, SLOTS), 50)}, "rows"),
        ({"rows": np.full((BAGS, SLOTS), -1)}, "rows"),
        ({"probability": np.ones((MEMBERS, BAGS, 1))}, "probability.shape"),
    ],
)
def test_galleries_that_do_not_fit(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as error:
        draw_gallery(**changes)
    assert error.value.argument == named


def test_rows_and_pictures_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="give 2 cells"):
        report.Table("", ("a", "b"), [("only one",)])
    with pytest.raises(InputError, match="PNG"):
        report.render("", [report.Picture("", b"GIF89a")])


# ---- run folders ----


@pytest.fixture
def finished(tmp_path: Path) -> runs.FinishedRun:
    """A run folder without a run: what it holds is made up."""
    gallery = draw_gallery()
    rows = [{"seed": i, "best_epoch": 2, "test_loss": 0.5, "warnings": ["Odd."] * (i > 0)} for i in range(MEMBERS)]
    number = {"test_loss": 0.25}
    config = {"experiment": "made_up", "options": {"seed": 7}, "data": {"name": "none"}}
    with runs.open_run(tmp_path / "run", config, {"paths": {}}) as run:
        run.log([{"epoch": 1, "member": i, "val_loss": 0.5 + i} for i in range(MEMBERS)])
        run.write_json("summary.json", {
            "members": rows, "mean": number, "standard_deviation": number, "ensemble": number
        })  # fmt: skip
        names = ("attention", "probability", "rows", "label", "instance_label", "mask")
        run.write_arrays("attention.npz", **{name: np.asarray(getattr(gallery, name)) for name in names})
        run.write_bytes("figures/roc_curve.png", png(300))
        run.write_bytes("figures/an_other.png", png(300))
        run.write_bytes("figures/learning_curves.png", png(1400))
    return runs.load_finished(tmp_path / "run")


def test_the_parts_of_a_run(finished: runs.FinishedRun) -> None:
    parts = report.run_parts(finished, draw_gallery().pool)
    assert [part.title for part in parts] == [
        "Warnings", "Results on the test bags", "Mean of members, all sets", "Learning curves", "ROC curve", "An other",
        "Configuration", "Test bags",
    ]  # fmt: skip
    assert isinstance(parts[0], report.Text) and parts[0].paragraphs == ["Member 1, 2: Odd."]
    Outline(report.render("Run", parts))
    assert len(report.run_parts(finished, None)) == len(parts) - 1


def test_of_many_members_the_first_are_in_the_table(finished: runs.FinishedRun) -> None:
    summary = {**finished.summary, "members": finished.summary["members"][:1] * 100}
    table = report.run_parts(dataclasses.replace(finished, summary=summary), None)[0]
    assert isinstance(table, report.Table)
    assert len(table.rows) == 64 + 3 and table.caption.startswith("The first 64 of 100 members")


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    command = chromium.find()
    if command is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome here")
    with chromium.browser(command) as found:
        yield found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report.render("Title", ALL_KINDS), encoding="utf-8")
    return path


SHOWN = "[...document.querySelectorAll('.card')].filter(c => c.offsetParent).map(c => +c.id.split('-')[1])"


def orders_of(gallery: Gallery) -> dict[str, list[int]]:
    return {name: order.tolist() for name, order in galleries.orders(galleries.gallery_facts(gallery)).items()}


def test_a_click_sorts(browser: Any, written: Path) -> None:
    page = chromium.Page(browser, written)
    orders = orders_of(draw_gallery())
    assert page.value(SHOWN) == orders["wrong first"]
    for name in ("attention entropy", "prediction", "bag number"):
        page.click(f"[data-order='{name}']")
        assert page.value(SHOWN) == orders[name]
    page.click("[data-order='bag number']")
    assert page.value(SHOWN) == orders["bag number"][::-1]
    page.click("[data-order='wrong first']")
    assert page.value(SHOWN) == orders["wrong first"]
    assert page.value("document.querySelector('[aria-pressed=true]').dataset.order") == "wrong first"
    assert page.messages == []
    assert page.requests == [written.as_uri()]
    page.close()


@pytest.mark.parametrize("javascript", [True, False])
def test_bags_can_be_chosen(browser: Any, written: Path, javascript: bool) -> None:
    page = chromium.Page(browser, written, javascript=javascript)
    facts = galleries.gallery_facts(draw_gallery())
    page.click("label:has([value=wrong])")
    assert set(page.value(SHOWN)) == set(np.flatnonzero(facts.wrong))
    page.click("label:has([value=positive])")
    assert set(page.value(SHOWN)) == set(np.flatnonzero(draw_gallery().label == 1))
    assert page.messages == []
    page.close()


def test_without_javascript_the_wrong_ones_come_first(browser: Any, written: Path) -> None:
    page = chromium.Page(browser, written, javascript=False)
    assert page.value(SHOWN) == orders_of(draw_gallery())["wrong first"]
    assert page.value("getComputedStyle(document.querySelector('.sort')).display") == "none"
    assert page.messages == []
    page.close()


@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_the_window_and_shows_the_images(browser: Any, written: Path, width: int) -> None:
    page = chromium.Page(browser, written, width=width)
    assert page.value("document.documentElement.scrollWidth") <= width
    page.value("document.querySelector('.cards').scrollIntoView({behavior: 'instant'})")
    page.milliseconds()  # waits for the next frame
    tile = (
        "(() => { const r = document.querySelector('.bag i').getBoundingClientRect(); return [r.x, r.y, r.width]; })()"
    )
    x, y, tile_width = page.value(tile)
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    image = shot[int(y) + 30 : int(y) + 60, int(x) + 10 : int(x + tile_width) - 10]
    assert len(np.unique(image)) > 10  # the noise of the made-up images
    assert page.messages == []
    page.close()


def test_errors_are_noticed(browser: Any, tmp_path: Path) -> None:
    """So that the tests above would fail."""
    path = tmp_path / "broken.html"
    path.write_text("<script>console.error('one'); throw new Error('two')</script><img src='missing.png'>")
    page = chromium.Page(browser, path)
    assert {word for word in ("one", "two", "missing") if word in json.dumps(page.messages + page.requests)} == {
        "one", "two", "missing"
    }  # fmt: skip
    page.close()

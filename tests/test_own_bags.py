"""Bags of one's own from files to predictions: what a run leaves, that it repeats and resumes, what is refused."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import assert_same_bits, command_here, rows_of
from PIL import Image

from mil_jax.datasets import digits_cohort
from mil_jax.folds import check_uncut
from mil_jax.metrics import roc_auc
from mil_jax.run import cohort as run_cohort
from mil_jax.run import fit
from mil_jax.run.folder import RunFolder
from mil_jax.run.saved import load_run
from mil_jax.split_files import read_splits

own_bags: Any = importlib.import_module("own_bags")
predict_bags: Any = importlib.import_module("predict_bags")

SLIDES, FEATURES, FITS, MEMBERS, EPOCHS = 24, 10, 2, 2, 2
NAMES = [f"s{slide:02}" for slide in range(SLIDES)]
CLASSES, THREE = ("benign", "tumour"), ("squamous", "normal", "adeno")
SMALL = f"--folds {FITS} --members {MEMBERS} --epochs {EPOCHS} --hidden 8 --attention-units 4 --plot-bags 0".split()
SAME = ("predictions.csv", "scores.csv", "members.csv", "metrics.csv", "metrics.jsonl", "attention.npz", "features.npz")
FIGURES = {"attention_statistics", "confusion_matrix", "learning_curves", "precision_recall_curve", "reliability",
           "reliability_of_members", "roc_curve"}  # fmt: skip


pytestmark = pytest.mark.usefixtures("cache")


def write_cohort(folder: Path, classes: tuple[str, ...], shift: float = 0.0, features: int = FEATURES) -> Path:
    """24 slides of 12 patients with 3 to 6 instances, of which one tells the class, and their table."""
    draw, lines = np.random.default_rng(0), ["slide_id,case_id,label"]
    (folder / "features").mkdir(parents=True)
    for slide, name in enumerate(NAMES):
        label = slide // 2 % len(classes)
        instances = draw.normal(size=(3 + slide % 4, features)).astype(np.float32) + np.float32(shift)
        instances[0, label] += 4
        np.save(folder / "features" / f"{name}.npy", instances)
        lines.append(f"{name},p{slide // 2},{classes[label]}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("files") / "cohort", CLASSES)


def options_of(cohort: Path) -> list[str]:
    return ["--features", str(cohort / "features"), "--table", str(cohort / "table.csv"), *SMALL]


def run_of(cohort: Path, out: Path, *more: str) -> Path:
    """Runs the command in this process."""
    status, lines = command_here(own_bags, *options_of(cohort), "--out", str(out), *more)
    assert status == 0 and lines[-1] == f"run folder: {out}", lines
    return out


@pytest.fixture(scope="module")
def printed(cache: Path, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run with the scale chosen in each fold, and what it printed."""
    out = tmp_path_factory.mktemp("here") / "run"
    status, lines = command_here(own_bags, *options_of(cohort), "--out", str(out))
    assert status == 0, lines
    return out, "\n".join(lines)


@pytest.fixture(scope="module")
def here(printed: tuple[Path, str]) -> Path:
    return printed[0]


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name] or "nan") for row in rows])


def assert_same_run(one: Path, other: Path) -> None:
    """Asserts the same bytes and the same parameters."""
    assert [name for name in SAME if (one / name).read_bytes() != (other / name).read_bytes()] == []
    assert_same_bits(load_run(one).members.params, load_run(other).members.params)


# ---- what a run leaves ----


def test_it_leaves_these_files_and_says_where(printed: tuple[Path, str]) -> None:
    out, text = printed
    splits = {f"splits/splits_{fit}{end}.csv" for fit in range(FITS) for end in ("", "_bool")}
    expected = {"config.json", "log.txt", "summary.json", "report.html", ".lock", *SAME, *splits}
    expected |= {f"figures/{name}.png" for name in FIGURES}
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith("checkpoint/")} == expected
    assert f"2 fits (1 round) x 3 settings x {MEMBERS} members = 12 models; 0 bags held out" in text
    for part in (*CLASSES, "times chosen", "mean of folds", "total ", f"run folder: {out}"):
        assert part in text, part


def test_every_bag_is_predicted_by_members_that_have_not_seen_it(here: Path) -> None:
    rows, arrays = rows_of(here / "predictions.csv"), np.load(here / "attention.npz")
    assert sorted(row["bag"] for row in rows) == NAMES
    by_name = {row["bag"]: row for row in rows}
    folds = read_splits(here / "splits", NAMES)
    check_uncut(folds, [by_name[name]["group"] for name in NAMES])
    for number, test in enumerate(folds.test):
        assert {by_name[NAMES[bag]]["fit"] for bag in test[test >= 0]} == {str(number)}
    for slide, name in enumerate(NAMES):
        row = by_name[name]
        assert (row["group"], row["label"], row["round"]) == (f"p{slide // 2}", CLASSES[slide // 2 % 2], "0")
        probability, spread = ([float(row[f"{what}_{c}"]) for c in CLASSES] for what in ("probability", "spread"))
        members = arrays["probability"][:, slide]
        assert sum(probability) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(probability, members.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(spread, members.std(axis=0, ddof=1), atol=1e-6)
        assert row["called"] == CLASSES[int(np.argmax(probability))]
        assert row["called_at_threshold"] == CLASSES[probability[1] >= float(row["threshold"])]


def test_the_scores_are_those_of_the_predictions(here: Path) -> None:
    rows, scores = rows_of(here / "predictions.csv"), rows_of(here / "scores.csv")
    names = ["all folds", "mean of folds", "fold 0", "fold 1", "all folds"]
    assert [row["bags"] for row in scores] == names
    assert [row["model"] for row in scores] == ["gated attention"] * 4 + ["linear probe on mean features"]
    label = np.array([CLASSES.index(row["label"]) for row in rows])
    positive, of_fit = column(rows, "probability_tumour").astype(np.float32), column(rows, "fit")
    auc = lambda where: float(roc_auc(jax.numpy.asarray(positive[where]), jax.numpy.asarray(label[where])))  # noqa: E731
    by_fit = [auc(of_fit == number) for number in range(FITS)]
    expected = [auc(of_fit >= 0), np.mean(by_fit), *by_fit]
    np.testing.assert_allclose(column(scores[:4], "auc"), expected, atol=1e-6)
    assert float(scores[1]["auc_se"]) == pytest.approx(np.std(by_fit, ddof=1) / 2**0.5, abs=1e-6)
    assert (column(scores, "auc_low") <= column(scores, "auc_high")).all()
    assert column(scores, "count").tolist() == [24, 24, 12, 12, 24] and float(scores[0]["groups"]) == 12


def test_summary_and_report_name_classes_settings_and_tables(here: Path) -> None:
    summary, page = json.loads((here / "summary.json").read_text()), (here / "report.html").read_text()
    titles = [table["title"] for table in summary["tables"]]
    assert titles == ["Bags that the members have not seen", "The same by fit",
                      "Validation loss of each setting (* chosen)"]  # fmt: skip
    for part in (*titles, *CLASSES, "standard, rate 0.0005, decay 0.0001", "linear probe on mean features"):
        assert part in page, part
    assert [(row["fit"], row["round"]) for row in summary["members"]] == [(0, 0)] * MEMBERS + [(1, 0)] * MEMBERS
    assert summary["seconds"]["total"] > 0
    assert json.loads((here / "config.json").read_text())["classes"] == list(CLASSES)


def test_the_splits_given_back_lead_to_the_same_run(here: Path, cohort: Path, tmp_path: Path) -> None:
    again = run_of(cohort, tmp_path / "run", "--splits", str(here / "splits"), "--no-report")
    assert_same_run(here, again)
    assert not (again / "report.html").exists()


def test_stopped_and_resumed_it_ends_with_the_same_bits(
    here: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after an epoch, then before the setting is chosen; the options come from the folder."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(fit, "any_process", lambda asked: True)
        status, lines = command_here(own_bags, *options_of(cohort), "--out", str(out))
    assert status == 130 and "keeps the log of 1 epochs" in lines[-1] and lines[-1].endswith("go on with --resume")
    status, lines = command_here(predict_bags, str(out), "--features", str(cohort / "features"))
    assert status == 2 and "one that has come to its end" in lines[-1]
    with monkeypatch.context() as patch:
        patch.setattr(run_cohort.crossing, "choose_settings", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        status, lines = command_here(own_bags, "--resume", "--out", str(out))
    assert status == 130, lines
    status, lines = command_here(own_bags, "--resume", "--out", str(out))
    assert status == 0, lines
    assert_same_run(here, out)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_file_cut_short_in_the_middle_of_a_run_is_named_and_the_run_goes_on_when_it_is_mended(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In windows, so that every epoch reads the files again."""
    copy = shutil.copytree(cohort, tmp_path / "cohort")
    windows = ("--window", "60", "--scale", "raw", "--no-report")
    whole, out, file = run_of(copy, tmp_path / "whole", *windows), tmp_path / "run", copy / "features" / "s07.npy"
    sound, save = file.read_bytes(), RunFolder.save_progress

    def save_and_cut(*given: Any) -> None:
        save(*given)
        file.write_bytes(sound[:-40])

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_progress", save_and_cut)
        status, lines = command_here(own_bags, *options_of(copy), *windows, "--out", str(out))
    assert status == 2 and lines[-1].startswith("error: ") and str(file) in lines[-1], lines
    file.write_bytes(sound)
    status, lines = command_here(own_bags, "--resume", "--out", str(out))
    assert status == 0, lines
    assert_same_run(whole, out)


# ---- other cohorts and options ----


@pytest.fixture(scope="module")
def everything(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, bags held out, two rounds, the optimism gap, features as they are."""
    folder = tmp_path_factory.mktemp("everything")
    more = ["--holdout", "0.2", "--repeats", "2", "--optimism", "--scale", "raw", "--classes", *THREE]
    return run_of(write_cohort(folder / "cohort", THREE[::-1]), folder / "run", *more)


def test_rounds_held_out_bags_and_optimism(everything: Path) -> None:
    rows, scores = rows_of(everything / "predictions.csv"), rows_of(everything / "scores.csv")
    held = [row for row in rows if row["fit"] == "held out"]
    judged = [row for row in rows if row["fit"] != "held out"]
    held_names, held_groups = ({row[name] for row in held} for name in ("bag", "group"))
    assert held and not held_groups & {row["group"] for row in judged}
    for number in "01":
        assert sorted(row["bag"] for row in judged if row["round"] == number) == sorted(set(NAMES) - held_names)
    assert [(row["bags"], row["model"].split(",")[0]) for row in scores] == [
        ("all folds", "gated attention"), ("mean of folds", "gated attention"),
        *((f"round {number}, fold {fold}", "gated attention") for number in (0, 1) for fold in (0, 1)),
        ("held out", "gated attention"), ("all folds", "linear probe on mean features"),
        ("all folds", "gated attention"),
    ]  # fmt: skip
    assert scores[-1]["model"].endswith("CHOSEN ON the test folds") and float(scores[-1]["loss"]) > 0
    assert float(scores[0]["auc_se"]) >= 0 and float(scores[6]["count"]) == len(held)
    assert {row["fit"] for row in rows_of(everything / "members.csv")} == set("0123")
    assert len(list((everything / "splits").iterdir())) == 8
    assert load_run(everything).members.scaler is None


def test_three_classes_go_by_their_names_in_the_order_asked_for(everything: Path) -> None:
    rows, page = rows_of(everything / "predictions.csv"), (everything / "report.html").read_text()
    assert list(rows[0])[5:8] == [f"probability_{name}" for name in THREE]
    np.testing.assert_allclose(sum(column(rows, f"probability_{name}") for name in THREE), 1, atol=1e-6)
    assert {row["label"] for row in rows} == set(THREE) >= {row["called"] for row in rows}
    assert "threshold" not in rows[0] and all(name in page for name in THREE)
    figures = {path.stem for path in (everything / "figures").iterdir()}
    assert figures == (FIGURES - {"roc_curve", "precision_recall_curve"}) | {"one_against_rest"}


def test_without_options_it_runs_on_digits_and_draws_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps, tiles and GeoJSON of the first bags of each class, and attention against the true instances."""
    monkeypatch.setattr(digits_cohort, "PATIENTS", 12)
    monkeypatch.setattr(digits_cohort, "SIZES", (12, 15))
    out = tmp_path / "run"
    status, lines = command_here(own_bags, *SMALL, "--members", "1", "--maps", "1", "--no-report", "--out", str(out))
    assert status == 0, lines
    maps = {"patient00_slide0", "patient01_slide0"}
    assert {path.stem for path in (out / "maps").iterdir()} == maps
    figures = {path.stem for path in (out / "figures").iterdir()}
    drawn = {f"map_{name}{end}" for name in maps for end in ("", "_tiles")}
    assert figures == (FIGURES - {"reliability_of_members"}) | drawn
    for name in maps:
        shapes = json.loads((out / "maps" / f"{name}.geojson").read_text())
        assert len(shapes["features"]) in range(12, 16)
        with Image.open(out / "figures" / f"map_{name}.png") as image:
            assert min(image.size) >= 200 and np.asarray(image.convert("L")).std() > 5
    titles = [table["title"] for table in json.loads((out / "summary.json").read_text())["tables"]]
    assert "Attention against the true instances" in titles


# ---- predicting ----


def predict(run: Path, features: Path, out: Path, *more: str) -> tuple[list[dict[str, str]], list[str]]:
    status, lines = command_here(predict_bags, str(run), "--features", str(features), "--out", str(out), *more)
    assert status == 0, lines
    return rows_of(out / "predictions.csv"), lines


@pytest.mark.parametrize("moved", [False, True], ids=["here", "a copy"])
def test_the_members_of_a_fit_say_what_they_said_in_the_run(
    here: Path, cohort: Path, tmp_path: Path, moved: bool
) -> None:
    run = Path(shutil.copytree(here, tmp_path / "elsewhere" / "copy")) if moved else here
    trained = rows_of(here / "predictions.csv")
    for number in range(FITS):
        rows, lines = predict(run, cohort / "features", tmp_path / f"fit{number}", "--fit", str(number))
        assert [row["bag"] for row in rows] == NAMES and not any("warning" in line for line in lines)
        by_name = {row["bag"]: row for row in rows}
        for row in (row for row in trained if row["fit"] == str(number)):
            again = by_name[row["bag"]]
            for name in (*(f"{what}_{c}" for what in ("probability", "spread") for c in CLASSES), "threshold"):
                assert float(again[name]) == pytest.approx(float(row[name]), abs=1e-6), name
            assert (again["called"], again["called_at_threshold"]) == (row["called"], row["called_at_threshold"])


def test_all_members_say_what_they_said_of_held_out_bags(everything: Path, tmp_path: Path) -> None:
    rows, _ = predict(everything, everything.parent / "cohort" / "features", tmp_path / "out")
    by_name = {row["bag"]: row for row in rows}
    for row in (row for row in rows_of(everything / "predictions.csv") if row["fit"] == "held out"):
        for name in (f"{what}_{c}" for what in ("probability", "spread") for c in THREE):
            assert float(by_name[row["bag"]][name]) == pytest.approx(float(row[name]), abs=1e-6)
    entropy, information = column(rows, "entropy"), column(rows, "mutual_information")
    assert (information >= 0).all() and (information <= entropy + 1e-6).all() and (entropy <= np.log(3) + 1e-6).all()
    assert column(rows, "unlike_training").max() == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "out" / "config.json").exists()


def test_bags_that_are_unlike_those_of_the_training_are_named(here: Path, tmp_path: Path) -> None:
    shifted = write_cohort(tmp_path / "shifted", CLASSES, shift=20)
    rows, lines = predict(here, shifted / "features", tmp_path / "out")
    text = " ".join(lines)
    assert f"warning: {SLIDES} of {SLIDES} bags are unlike those of the training (s00, s01" in text
    assert (column(rows, "unlike_training") > 1.5).all()


# ---- what is refused ----


def test_predicting_refuses_what_does_not_fit_and_leaves_nothing(here: Path, cohort: Path, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "other", CLASSES, features=7)
    features, out = str(cohort / "features"), ["--out", str(tmp_path / "out")]
    cases = [
        ([str(here), "--features", str(other / "features")], "expected features [10]"),
        ([str(here), "--features", features, "--fit", "2"], "--fit 2: expected 0 to 1"),
        ([str(here), "--features", features, "--fit", "-1"], "--fit -1: expected a whole number from 0"),
        ([str(here), "--features", features, "--maps", "-1"], "--maps -1: expected a whole number from 0"),
        ([str(here), "--features", str(tmp_path / "nothing")], "--features "),
        ([str(tmp_path), "--features", features], "expected a run"),
        ([str(here), "--features", features, "--resume"], "--resume True: expected "),
    ]
    for options, part in cases:
        status, lines = command_here(predict_bags, *options, *out)
        assert status == 2 and lines[-1].startswith("error: ") and part in lines[-1], lines
        assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]
    status, lines = command_here(predict_bags, str(here), "--features", features, "--out", str(here))
    assert status == 2 and lines[-1].startswith(f"error: --out {here}: ")
    assert command_here(predict_bags)[0] == 2


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("--folds 7", "--folds 7: expected at most 6, the groups"),
        ("--folds 1", "--folds 1: expected "),
        ("--holdout 0.9", "--holdout 0.9: expected "),
        ("--val-share 0", "--val-share 0.0: expected "),
        ("--weight-decays -1", "--weight-decays -1.0: expected "),
        ("--maps -1", "--maps -1: expected "),
        ("--label-column grade", "grade"),
        ("--splits nowhere", "nowhere"),
        ("--split-column label", "expected train, val or test"),
        ("--classes a b", "a"),
        ("--head concat", "the head 'sum'"),
        ("--thumbnails nowhere", "--thumbnails nowhere: expected "),
        ("--vary bags", "--vary bags: expected "),
    ],
)
def test_a_refused_option_leaves_no_folder(cohort: Path, tmp_path: Path, options: str, part: str) -> None:
    status, lines = command_here(own_bags, *options_of(cohort), *options.split(), "--out", str(tmp_path / "run"))
    assert status == 2 and lines[-1].startswith("error: ") and part in lines[-1], lines
    assert not any(tmp_path.iterdir())


def test_tables_and_splits_that_do_not_fit_are_refused(cohort: Path, tmp_path: Path) -> None:
    """Features without a table, a table without features, a split that cuts a patient, and one without a class."""
    features, table = str(cohort / "features"), str(cohort / "table.csv")
    cut, poor = tmp_path / "cut.csv", tmp_path / "poor.csv"
    cut.write_text(",train,val,test\n0,s00,s04,s01\n1,s02,s06,s08\n")
    poor.write_text(",train,val,test\n0,s00,s02,s06\n1,s04,,s08\n")
    for options, part in (
        (["--features", features], "--table None: expected "),
        (["--table", table], "--features None: expected "),
        (["--features", features, "--table", table, "--splits", str(cut)], "all its bags in one part of split 0"),
        (["--features", features, "--table", table, "--splits", str(poor)], "got none of 'tumour'"),
    ):
        status, lines = command_here(own_bags, *options, "--out", str(tmp_path / "run"))
        assert status == 2 and part in lines[-1], lines
    assert not (tmp_path / "run").exists()

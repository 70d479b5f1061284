"""The report of a run: its figures, its page, and that it survives what is missing or broken."""

import html.parser
import json
import re

import cv2
import jax
import numpy as np
import pytest

from configs import first_layers
from scratchdet_jax.datasets.folders import prepare_voc_folder
from scratchdet_jax.detector import Detector
from scratchdet_jax.evaluation import saved_run
from scratchdet_jax.ops.nms import Detections
from scratchdet_jax.reports.report import images, setup, training
from scratchdet_jax.reports.results import evaluate_run
from scratchdet_jax.run.checkpoints import Checkpoints, RunInfo
from scratchdet_jax.run.open import open_run
from scratchdet_jax.tools import report
from tests import browser
from tests.command import exit_status
from tests.small_voc import write_voc
from tests.tiny import tiny_config

CLASSES = ("cat", "dog<b>", "zebra")
CAT, DOG, FREE = (10, 20, 60, 90), (80, 30, 150, 110), (70, 2, 100, 20)  # xmin, ymin, xmax, ymax
PLACES = {"v1": [("cat", CAT), ("dog<b>", DOG)], "v2": [("dog<b>", DOG)], "v3": []}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared splits: val, one image, all empty, and a set of other classes."""
    root = tmp_path_factory.mktemp("data")
    train = {"t1": [(name, CAT) for name in CLASSES]}
    empty = {"n1": [], "n2": []}
    splits = {"train": train, "val": PLACES, "one": {"o1": [("cat", CAT)]}, "empty": empty}
    write_voc(root / "Set", splits)
    prepare_voc_folder(root / "Set", root / "data", "mine")
    other = {"w1": [("cat", CAT), ("yak", DOG)]}
    write_voc(root / "Other", {"train": {"u1": other["w1"]}, "val": other})
    prepare_voc_folder(root / "Other", root / "data", "other")
    return root / "data"


def save(workdir, data, classes=CLASSES, **fields):
    """A checkpoint of step 7 without weights: the tests detect without a network."""
    config = tiny_config(
        **{
            "data.dir": str(data),
            "data.train": "voc_folder/mine:train",
            "data.eval": "voc_folder/mine:val",
            "eval.score_threshold": 0.0,
            **fields,
        }
    )
    checkpoints = Checkpoints(workdir)
    checkpoints.save(7, {"nothing": np.zeros(1)}, RunInfo(config, classes))
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
    path = save(tmp_path_factory.mktemp("runs") / "first", data)
    lines = [
        {
            "kind": "train",
            "step": step,
            "loss": 5 / step,
            "loss_classification": 3 / step,
            "loss_localization": 2 / step,
            "learning_rate": 0.1,
            "gradient_norm": 2.0,
            "gradient_fluctuation": 0.5,
            "images_per_second": 40.0 + step % 3,
            "loader_wait": 0.75,
            "host_memory": 2.0 * 2**30,
        }
        for step in range(1, 301)
    ]
    lines.append({"kind": "eval", "step": 300, "mAP": 0.5, "AP": {}})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def detected(monkeypatch, *rows):
    """Every image gets the detections (label, score, box), without a network."""
    boxes = np.array([row[2] for row in rows], np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
    boxes /= np.array([120, 160, 120, 160], np.float32)

    def detect(self, variables, batch, *_, **__):
        count = len(batch)
        return Detections(
            np.tile(boxes, (count, 1, 1)),
            np.tile(np.array([row[1] for row in rows], np.float32), (count, 1)),
            np.tile(np.array([row[0] for row in rows], np.int32), (count, 1)),
        )

    monkeypatch.setattr(Detector, "detect", detect)
    anchors = np.zeros((0, 4), np.float32)
    monkeypatch.setattr(
        saved_run,
        "load_detector",
        lambda run, config: (Detector(config, None, anchors, run.info.class_names), {}),
    )


ALL = ((1, 0.9, CAT), (2, 0.8, DOG))


def run(*arguments):
    """The exit status."""
    return exit_status(report.main, *arguments)


class Checker(html.parser.HTMLParser):
    """Tags are balanced, nothing is loaded, and every picture has a text alternative."""

    void = ("meta", "img")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.sections = [], set(), set(), []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("script", "link", "iframe", "object", "embed")
        assert attributes.get("src", "data:").startswith("data:")
        if tag == "a":
            self.links.add(attributes["href"].removeprefix("#"))
        if "id" in attributes:
            assert attributes["id"] not in self.ids
            self.ids.add(attributes["id"])
            self.sections += [attributes["id"]] if tag == "section" else []
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
        if tag == "img":
            assert attributes["alt"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):  # of an SVG
        assert tag not in self.void

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(path):
    """The text of a page that is sound."""
    page = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert checker.links == set(checker.sections)
    assert "nan" not in re.sub(r"data:[^\"]*", "", page)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    return page


def test_the_figures_and_the_page_of_a_run(workdir, tmp_path, monkeypatch, capsys):
    detected(monkeypatch, *ALL)
    output, figures = tmp_path / "new" / "r.html", tmp_path / "r.json"
    assert run(workdir, f"--output={output}", f"--json={figures}") == 0
    found = json.loads(figures.read_text())["runs"]["first"]
    # On v1 both are right; on v2 there is no cat; on v3 there is nothing.
    assert found["precision"]["per_class"] == {"cat": 1.0, "dog<b>": 1.0, "zebra": None}
    assert found["precision"]["objects"] == {"cat": 1, "dog<b>": 2, "zebra": 0}
    assert found["precision"]["precision"] == {
        "cat": pytest.approx(1 / 3),
        "dog<b>": pytest.approx(2 / 3),
        "zebra": None,
    }
    assert found["errors"]["counts"] == {
        "classification": 0,
        "localization": 0,
        "both": 0,
        "duplicate": 0,
        "background": 3,
        "missed": 0,
    }
    assert found["confusion"]["matrix"] == [[1, 0, 0, 0], [0, 2, 0, 0], [0] * 4, [2, 1, 0, 0]]
    assert found["sizes"]["objects"] == {"small": 0, "medium": 3, "large": 0}
    assert (found["images"]["without_error"], found["images"]["judged"]) == (1, 3)
    assert found["training"]["loader_wait"] == 0.75
    assert found["setup"]["versions"]["jax"] == jax.__version__
    page = checked(output)
    assert page.count("<img") == 2 * 3  # the worst two and the best
    assert "v3: F1 0.00; 0 correct, 2 false, 0 missed" in page
    assert "dog&lt;b&gt;" in page and "dog<b>" not in page
    assert "the loader bounds it: the loop waited 75 %" in page
    assert "2.00 GiB" in page
    printed = capsys.readouterr().out
    assert "the loop waited 75 % of the time for the loader" in printed
    assert printed.rstrip().endswith(f"page: {output}")


def test_the_map_is_that_of_eval(workdir, tmp_path, monkeypatch):
    detected(monkeypatch, (1, 0.9, CAT), (2, 0.8, FREE), (2, 0.7, DOG), (3, 0.6, DOG))
    figures = tmp_path / "r.json"
    assert run(workdir, f"--output={tmp_path / 'r.html'}", f"--json={figures}") == 0
    opened = open_run(workdir)
    evaluation = evaluate_run(opened, opened.info.config, tmp_path / "eval")
    found = json.loads(figures.read_text())["runs"]["first"]["precision"]
    assert 0 < found["mean"] == evaluation.results["mAP"] < 1
    assert found["strict_mean"] == evaluation.results["mAP@.5:.95"]
    written = json.loads((tmp_path / "eval/results.json").read_text())
    assert found["constant"] == written["constant_box"]["AP"]
    checked(tmp_path / "r.html")


def test_a_run_with_cocos_metric(data, tmp_path, monkeypatch):
    path = save(tmp_path / "run", data, **{"eval.metric": "coco"})
    detected(monkeypatch, (1, 0.9, CAT), (2, 0.8, FREE), (2, 0.7, DOG))
    figures = tmp_path / "r.json"
    assert run(path, f"--output={tmp_path / 'r.html'}", f"--json={figures}") == 0
    found = json.loads(figures.read_text())["runs"]["run"]
    # The cat is found first of three guesses; both dogs only after three guesses elsewhere.
    assert found["precision"]["per_class"]["cat"] == pytest.approx(1.0)
    assert 0.3 < found["precision"]["per_class"]["dog<b>"] < 0.5
    assert found["precision"]["mean"] == found["precision"]["strict_mean"]
    assert found["sizes"]["ap"]["medium"] == pytest.approx(1.0)  # the false ones are small
    assert "COCO, IoU 0.5:0.95" in checked(tmp_path / "r.html")


def test_runs_side_by_side(workdir, data, tmp_path, monkeypatch, capsys):
    second = save(tmp_path / "second", data, **{"optimizer.learning_rate": 0.5})
    other_fields = {"data.train": "voc_folder/other:train", "data.eval": "voc_folder/other:val"}
    other = save(tmp_path / "other", data, classes=("cat", "yak"), **other_fields)
    detected(monkeypatch, *ALL)
    output = tmp_path / "r.html"
    assert run(workdir, second, f"--output={output}") == 0
    page = checked(output)
    field = r"<td>optimizer.learning_rate</td>\s*<td[^>]*>0.02</td>\s*<td[^>]*>0.5</td>"
    assert re.search(field, page)
    assert "different classes" not in page
    assert run(workdir, other, f"--output={output}") == 0  # replaces its own page
    page = checked(output)
    assert "only the 1 that all of them have are compared" in page
    assert "scored on different splits" in page
    capsys.readouterr()
    assert run(workdir, f"{workdir}@7", f"--output={output}") == 1
    assert "step 7" in (told := capsys.readouterr().err) and "given twice" in told


def test_runs_without_a_common_class(workdir, data, tmp_path, monkeypatch):
    write_voc(tmp_path / "Far", {"val": {"x1": [("apple", CAT)]}, "train": {}})
    prepare_voc_folder(tmp_path / "Far", data, "far")
    far = save(tmp_path / "far", data, classes=("apple",), **{"data.eval": "voc_folder/far:val"})
    detected(monkeypatch, (1, 0.9, CAT))
    assert run(workdir, far, f"--output={tmp_path / 'r.html'}") == 0
    assert "no class in common" in checked(tmp_path / "r.html")


@pytest.mark.parametrize("split", ["val", "one"])
def test_no_detections(workdir, tmp_path, monkeypatch, split):
    detected(monkeypatch)
    arguments = (f"--split=voc_folder/mine:{split}", f"--output={tmp_path / 'r.html'}")
    assert run(workdir, *arguments) == 0
    page = checked(tmp_path / "r.html")
    assert "No image has a correct detection." in page
    assert "No object was taken" in page or "<table" in page


def test_no_error(workdir, tmp_path, monkeypatch):
    detected(monkeypatch, (1, 0.9, CAT))
    arguments = ("--split=voc_folder/mine:one", f"--output={tmp_path / 'r.html'}")
    assert run(workdir, *arguments) == 0
    page = checked(tmp_path / "r.html")
    assert "No image has an error." in page
    assert "no kind of error alone costs anything" in page
    assert "No ground truth of dog&lt;b&gt;, zebra: no AP." in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere"], "there is no run in"),
        (["{run}@99"], "there is no checkpoint '99'"),
        (["{run}", "{run}@7"], "is given twice"),
        (["{run}", "--split=voc_folder/mine:nosuch"], "nosuch"),
        (["{run}", "--split=voc_folder/mine:empty"], "none of 2 images has a box"),
        (["{run}", "--split=voc_folder/other:val"], "choose a split with the same classes"),
        (["{run}", "--data_dir={}"], "voc_folder/mine"),
        (["{run}", "--json={}/r.html"], "name the same file"),
    ],
)
def test_wrong_arguments_are_one_sentence(workdir, tmp_path, capsys, arguments, message):
    arguments = [a.replace("{run}", str(workdir)).replace("{}", str(tmp_path)) for a in arguments]
    assert run(*arguments, f"--output={tmp_path / 'r.html'}") == 1
    told = capsys.readouterr().err
    assert told.splitlines()[0].startswith("error: ") and message in told
    assert "Traceback" not in told
    assert not (tmp_path / "r.html").exists()


def test_a_run_without_an_eval_split(data, tmp_path, capsys, monkeypatch):
    silent = save(tmp_path / "silent", data, **{"data.eval": "", "eval.metric": "none"})
    output = f"--output={tmp_path / 'r.html'}"
    assert run(silent, output) == 1
    assert "was trained without an eval split: name one with --split" in capsys.readouterr().err
    detected(monkeypatch, *ALL)
    assert run(silent, output, "--split=voc_folder/mine:val") == 0
    assert "VOC area" in checked(tmp_path / "r.html")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (None, "no curves: "),
        ("", "has no records yet"),
        ('{"kind": "tra\n{"kind": "train", "step": 1, "loss": 2.0}\n', "line 1 is not a record"),
        ('{"kind": "train", "step": 1, "loss": 2.0}\n{"kind": "tr', "1 of 20"),
        ('{"kind": "train", "step": 1, "loss": "much", "gradient_norm": []}\n', "1 of 20"),
        ('{"kind": "diverged", "step": 3, "quantity": "loss"}\n', "diverged at step 3"),
    ],
)
def test_a_log_that_is_missing_or_broken(data, tmp_path, monkeypatch, log, said):
    path = save(tmp_path / "run", data)
    if log is not None:
        (path / "metrics.jsonl").write_text(log)
    detected(monkeypatch, *ALL)
    assert run(path, f"--output={tmp_path / 'r.html'}") == 0
    assert said in checked(tmp_path / "r.html")


def test_files_of_somebody_else_are_kept(workdir, tmp_path, capsys, monkeypatch):
    detected(monkeypatch, *ALL)
    theirs = tmp_path / "notes.html"
    theirs.write_text("<html>notes</html>")
    for arguments in (
        [f"--output={theirs}"],
        [f"--output={tmp_path / 'r.html'}", f"--json={theirs}"],
        [f"--output={tmp_path}"],
    ):
        assert run(workdir, *arguments) == 1
        assert "was not written by this command" in capsys.readouterr().err
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "missing.html")
    assert run(workdir, f"--output={link}") == 1
    (tmp_path / "file").write_text("")
    assert run(workdir, f"--output={tmp_path / 'file' / 'r.html'}") == 1
    assert "cannot be written" in capsys.readouterr().err
    assert theirs.read_text() == "<html>notes</html>"
    assert {path.name for path in tmp_path.iterdir()} == {"notes.html", "link.html", "file"}


def test_a_broken_picture_does_not_lose_the_page(workdir, tmp_path, monkeypatch):
    detected(monkeypatch, *ALL)

    def broken(*_):
        raise ValueError("truncated")

    def unforeseen(*_, **__):
        raise RuntimeError("out of colours")

    for name, function in (("decode_to_canvas", broken), ("draw_detections", unforeseen)):
        with monkeypatch.context() as patch:
            patch.setattr(images, name, function)
            assert run(workdir, f"--output={tmp_path / 'r.html'}") == 0
        page = checked(tmp_path / "r.html")
        assert page.count("The image could not be drawn.") == 3 and "<img" not in page


def test_the_threshold_and_the_number_of_images(workdir, tmp_path, monkeypatch, capsys):
    detected(monkeypatch, *ALL)
    output = f"--output={tmp_path / 'r.html'}"
    assert run(workdir, output, "--threshold=0.85", "--images=0") == 0
    page = checked(tmp_path / "r.html")
    assert "score from 0.85" in page and "<img" not in page
    for wrong, status in (("--threshold=2", 1), ("--threshold=x", 2), ("--images=-1", 2)):
        assert run(workdir, output, wrong) == status
    capsys.readouterr()


def test_the_recipe_is_found_by_name():
    assert setup.find_recipe("shapes")[1] == "the recipe shapes"
    assert setup.find_recipe("mmdet_release_ssd300")[1] == "the recipe mmdet_release/ssd300"
    row = next(iter(first_layers.PUBLISHED))
    assert setup.find_recipe(f"first_layers_{row}")[1] == f"the recipe first_layers:{row}"
    assert setup.find_recipe("unheard_of")[1].startswith("the defaults, as no recipe unheard_of")


@pytest.mark.parametrize(
    ("wait", "start"),
    [
        (0.9, "the loader"),
        (0.02, "the step"),
        (0.3, "either the loader"),
        (None, "the log does not"),
    ],
)
def test_what_bounds_the_throughput(wait, start):
    assert training.bound(wait).startswith(start)


def test_many_classes_are_readable(data, tmp_path, monkeypatch):
    names = tuple(f"class{i:02d}" for i in range(20))
    places = {f"i{n}": [(name, CAT)] for n, name in enumerate(names)}
    write_voc(tmp_path / "Many", {"train": {}, "val": places})
    prepare_voc_folder(tmp_path / "Many", data, "many")
    many = save(tmp_path / "many", data, classes=names, **{"data.eval": "voc_folder/many:val"})
    detected(monkeypatch, (1, 0.9, CAT))
    assert run(many, f"--output={tmp_path / 'r.html'}") == 0
    page = checked(tmp_path / "r.html")
    assert "each of 20 classes" in page and "Most frequent confusions" in page
    assert '<figure class="matrix">' in page


@pytest.mark.skipif(browser.find() is None, reason="Chromium is not installed")
def test_the_page_fits_wide_and_narrow_windows(workdir, data, tmp_path, monkeypatch):
    second = save(tmp_path / "second", data, **{"optimizer.learning_rate": 0.5})
    detected(monkeypatch, *ALL)
    for runs in ([workdir], [workdir, second]):
        assert run(*runs, f"--output={tmp_path / 'r.html'}") == 0
        page = checked(tmp_path / "r.html")
        for width in (1280, 390):
            inner, needed, height = browser.measure(page, width, tmp_path)
            assert needed <= inner and height > 2000
    light, dark = (
        cv2.imread(str(browser.screenshot(page, (900, 700), tmp_path, dark=dark)))
        for dark in (False, True)
    )
    assert light.mean() > 180 and dark.mean() < 80
    assert light.std() > 5 and dark.std() > 5  # there is something on the page

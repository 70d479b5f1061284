"""export: the file does what the run does, opens without this package, and is never half right."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import jax
import jax.export
import numpy as np
import pytest

import scratchdet_jax
from scratchdet_jax.config.defaults import flatten
from scratchdet_jax.detector import build_detector
from scratchdet_jax.errors import UserError
from scratchdet_jax.interop import onnx_file
from scratchdet_jax.run.checkpoints import IMPORTED, Checkpoints, RunInfo
from scratchdet_jax.run.exported import VERSION, read_export
from scratchdet_jax.run.open import open_run
from scratchdet_jax.run.state import TrainState
from scratchdet_jax.tools import export
from scratchdet_jax.tools.export import write_export
from scratchdet_jax.tools.predict import __main__ as predict
from scratchdet_jax.training.init_from import init_from_run
from tests.command import exit_status
from tests.plain import FIELDS, plain_backbone
from tests.tiny import random_variables, tiny_config

ROOT = Path(__file__).parents[2]
NAMES = ("cat", "dog", "cow")
RESNET = {name: flatten(tiny_config())[name] for name in FIELDS}


def save_run(path, seed=0, score=None, **overrides):
    """A run with a checkpoint of random weights at step 7; of the least network by default."""
    config = tiny_config(**FIELDS | {"eval.score_threshold": 0.0} | overrides)
    detector = build_detector(config, NAMES)
    variables = random_variables(detector.model, config.image_size, np.random.default_rng(seed))
    state = TrainState(step=np.int32(7), opt_state=(), **variables)
    checkpoints = Checkpoints(path)
    checkpoints.save(7, jax.tree.map(jax.numpy.asarray, state), RunInfo(config, NAMES), score)
    checkpoints.close()
    return path


def run(workdir, output, *options):
    return exit_status(export.main, f"--workdir={workdir}", f"--output={output}", *options)


def picture(seed, shape=(50, 60, 3)):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_CUBIC)


def same_weights(a, b):
    same_names = a.weights.keys() == b.weights.keys()
    return same_names and all(np.array_equal(a.weights[n], b.weights[n]) for n in a.weights)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)
    assert found.size == expected.size and found.names == expected.names


@pytest.fixture(scope="module", autouse=True)
def network():
    with plain_backbone():
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run"), score=0.25)


@pytest.fixture(scope="module")
def file(workdir, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.jaxexport"
    assert run(workdir, path) == 0
    return path


@pytest.fixture(scope="module")
def live(workdir):
    return scratchdet_jax.load(workdir, batch_size=3)


@pytest.fixture
def broken(tmp_path):
    return tmp_path / "broken.jaxexport"


def test_the_file_finds_what_the_run_finds(file, live):
    detector = scratchdet_jax.load(str(file), batch_size=3)
    assert detector.class_names == NAMES and detector.canvas == live.canvas
    images = [picture(seed, (30 + 9 * seed, 90 - seed, 3)) for seed in range(5)]
    images.append(picture(9, (300, 200, 3)))  # above the canvas
    for found, expected in zip(detector(images, 0), live(images, 0), strict=True):
        assert len(found) > 0
        assert_same(found, expected)
    assert_same(detector(images[0], 0.3), live(images[0], 0.3))


@pytest.mark.parametrize(
    "overrides",
    [
        {"model.dtype": "bfloat16"},
        pytest.param(RESNET, marks=pytest.mark.slow),
        pytest.param(
            RESNET | {"model.layout": "packed", "data.canvas": (48, 80)}, marks=pytest.mark.slow
        ),
        pytest.param(
            RESNET | {"model.backbone": "vgg16", "model.norm": "none", "model.head_norm": "none"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            RESNET | {"model.depth": 50, "model.preactivation": True}, marks=pytest.mark.slow
        ),
    ],
    ids=["bfloat16", "resnet", "packed", "vgg16", "preactivation"],
)
def test_other_networks(overrides, tmp_path):
    workdir = save_run(tmp_path / "run", **overrides)
    assert run(workdir, tmp_path / "model") == 0
    image, live = picture(1), scratchdet_jax.load(workdir)
    expected = live(image, 0)
    found = scratchdet_jax.load(tmp_path / "model")(image, 0)
    assert len(found) == len(expected) > 0
    rough = 0.02 if "model.dtype" in overrides else 1e-5
    np.testing.assert_allclose(found.scores, expected.scores, atol=rough)


def test_it_is_lowered_for_all_platforms_and_any_batch(file):
    exported = jax.export.deserialize(bytearray(read_export(file).function))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert [str(a) for a in exported.in_avals[-2:]] == ["uint8[b,64,64,3]", "int32[b,2]"]
    outputs = {str(a) for a in exported.out_avals}
    assert outputs == {"float32[b,20,4]", "float32[b,20]", "int32[b,20]"}
    assert str(ROOT).encode() not in read_export(file).function


@pytest.mark.slow  # compiles for a TPU
def test_libtpu_compiles_the_program_for_a_tpu(file):
    pytest.importorskip("libtpu", reason="libtpu exists for Linux on x86-64 only")
    code = (
        "import sys\n"
        "from scratchdet_jax.forecast import chips\n"
        "chips.prepare_environment()\n"
        "import jax, jax.export, numpy as np\n"
        "file = np.load(sys.argv[1])\n"
        "exported = jax.export.deserialize(bytearray(file['function.bin']))\n"
        "device = jax.sharding.SingleDeviceSharding(chips.devices('v5e:2x2')[1][0])\n"
        "shapes = jax.tree.unflatten(exported.in_tree, exported.in_avals)\n"
        "for batch in (1, 8):\n"
        "    like = lambda a: jax.ShapeDtypeStruct(\n"
        "        tuple(d if isinstance(d, int) else batch for d in a.shape), a.dtype,\n"
        "        sharding=device)\n"
        "    arguments, _ = jax.tree.map(like, shapes)\n"
        "    jax.jit(exported.call).lower(*arguments).compile()\n"
        "    print('compiled', batch)\n"
    )
    command = [sys.executable, "-c", code, file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["compiled", "1", "compiled", "8"], done.stderr


def run_example(name, file, photo):
    """What an example of docs/ prints where neither this package nor what it needs is installed."""
    blocker = (
        "import runpy, sys\n"
        "for name in ('scratchdet_jax', 'flax', 'orbax', 'ml_collections', 'cv2'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", blocker, ROOT / "docs" / name, file, photo]
    done = subprocess.run(command, cwd=photo.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def check_rows(rows, expected):
    """Compares them with detections from a score of 0.5 on, as in the examples."""
    assert [row[0] for row in rows] == expected.names and len(rows) > 0
    numbers = np.array([[float(text) for text in row[1:]] for row in rows])
    np.testing.assert_allclose(numbers[:, 0], expected.scores, atol=1e-5)
    np.testing.assert_allclose(numbers[:, [2, 1, 4, 3]], expected.boxes, atol=0.05)


def test_the_example_needs_nothing_of_this_package(file, live, tmp_path):
    image = picture(2)
    cv2.imwrite(str(tmp_path / "photo.png"), image[:, :, ::-1])
    check_rows(run_example("exported_example.py", file, tmp_path / "photo.png"), live(image))


def test_numpy_reads_what_the_file_says(file, workdir):
    archive = np.load(file, allow_pickle=False)
    about = json.loads(archive["metadata.json"])
    assert about["class_names"] == list(NAMES)
    assert (about["image_size"], about["canvas"]) == (64, [64, 64])
    assert (about["score_threshold"], about["nms_iou"], about["max_detections"]) == (0, 0.45, 20)
    origin = about["origin"]
    assert (origin["workdir"], origin["step"], origin["mAP"]) == (str(workdir), 7, 0.25)
    assert origin["jax"] == jax.__version__ and origin["imported"] is None
    assert about["config"]["model"]["width"] == 0.125
    assert set(about["weights"]) == set(archive.files) - {"metadata.json", "function.bin"}


def test_only_an_export_of_the_same_run_is_replaced(workdir, file, tmp_path, capsys):
    other = save_run(tmp_path / "other", seed=1)
    before = file.read_bytes()
    assert run(other, file) == 1
    assert "exists and was not written by this command" in capsys.readouterr().err
    assert file.read_bytes() == before
    (tmp_path / "photo.png").write_bytes(b"a photo")
    assert run(workdir, tmp_path / "photo.png") == 1
    assert (tmp_path / "photo.png").read_bytes() == b"a photo"
    (tmp_path / "link").symlink_to(file)
    assert run(workdir, tmp_path / "link") == 1
    assert run(workdir, tmp_path) == 1
    again = tmp_path / "again"
    again.write_bytes(before)
    assert run(workdir, again) == 0
    assert same_weights(read_export(again), read_export(file))
    assert run(workdir, tmp_path / "nowhere" / "model") == 1
    assert "cannot be written (No such file" in capsys.readouterr().err


def test_what_cannot_be_exported(file, tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path / "model") == 1
    assert "there is no run in" in capsys.readouterr().err
    backbone = save_run(tmp_path / "backbone")
    record = {"format": "torchvision ResNet", "initial": ["head/level1"]}
    (backbone / IMPORTED).write_text(json.dumps(record))
    assert run(backbone, tmp_path / "model") == 1
    assert "holds an imported backbone, which is no detector yet" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    for name in (f"{file}@7", f"{file}@latest"):
        with pytest.raises(UserError, match=r"is an exported file and has no checkpoint '(7|lat)"):
            scratchdet_jax.load(name)


def same(a, b):
    return a.metadata == b.metadata and a.function == b.function and same_weights(a, b)


def test_damage_is_one_sentence_and_never_other_weights(file, broken):
    content, sound = file.read_bytes(), read_export(file)
    rng = np.random.default_rng(0)
    directory = len(content) - content.rindex(b"PK\1\2", 0, content.index(b"PK\1\2") + 4)
    positions = {*rng.integers(0, len(content), 100), *range(120), *range(-120, 0)}
    positions |= {-int(p) for p in rng.integers(1, directory + 1, 150)}
    caught = 0
    for position in sorted(map(int, positions)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.integers(8)
        broken.write_bytes(damaged)
        try:
            assert same(read_export(broken), sound), position  # such as a date in the archive
        except UserError as error:
            caught += 1
            assert "that this version reads, or it is damaged (" in str(error)
    assert caught > 200
    for length in [0, 1, 40, *rng.integers(0, len(content), 30), len(content) - 1]:
        broken.write_bytes(content[: int(length)])
        with pytest.raises(UserError, match="that this version reads, or it is damaged"):
            read_export(broken)


def test_foreign_files(broken, tmp_path):
    def archive(members):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as file:
            for name, text in members.items():
                file.writestr(name, text)
        return content.getvalue()

    arrays = io.BytesIO()
    np.savez(arrays, a=np.zeros(3))
    foreign = [b"", b"text", b"\x89PNG\r\n", arrays.getvalue(), archive({"a.txt": "a"})]
    foreign += [archive({"metadata.json": text}) for text in ("{}", "[1]", '{"format": "other"}')]
    for content in foreign:
        broken.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.jaxexport is not an exported detector"):
            scratchdet_jax.load(broken)
    with pytest.raises(UserError, match="there is no run in"):
        scratchdet_jax.load(tmp_path / "missing.jaxexport")


def test_files_of_other_versions_and_platforms(file, workdir, broken, monkeypatch):
    sound = read_export(file)
    newer = sound.metadata | {"version": VERSION + 1}
    monkeypatch.setattr("scratchdet_jax.run.exported.VERSION", VERSION + 1)
    write_export(sound._replace(path=broken, metadata=newer))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"a newer version.*update scratchdet_jax"):
        scratchdet_jax.load(broken)
    write_export(sound._replace(path=broken, function=b"of another JAX"))
    with pytest.raises(UserError, match=r"cannot be used by JAX .* written with JAX .*; install"):
        scratchdet_jax.load(broken)
    fewer = dict(list(sound.weights.items())[1:])
    write_export(sound._replace(path=broken, weights=fewer))
    with pytest.raises(UserError, match="cannot be used by JAX"):
        scratchdet_jax.load(broken)
    write_export(export.export_run(open_run(workdir), broken, platforms=("tpu", "cuda")))
    with pytest.raises(UserError, match="exported for tpu, cuda, and this machine runs JAX on cpu"):
        scratchdet_jax.load(broken)


def test_predict_takes_the_file(file, live, tmp_path, capsys):
    image = tmp_path / "photo.png"
    cv2.imwrite(str(image), picture(3)[:, :, ::-1])
    options = (f"--workdir={file}", f"--output={tmp_path / 'found'}", "--threshold=0")
    for _ in range(2):  # it replaces its own results
        assert exit_status(predict.main, *options, image) == 0
    record = json.loads((tmp_path / "found" / "detections.json").read_text())
    found, expected = record["annotations"], live(image, 0)
    assert [row["category_id"] for row in found] == expected.labels.tolist()
    scores = [row["score"] for row in found]
    np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
    assert exit_status(predict.main, *options, "--checkpoint=latest", image) == 1
    assert "has no checkpoint 'latest'" in capsys.readouterr().err


def test_a_run_starts_from_the_file_as_from_the_run(file, workdir, capsys, broken):
    config = tiny_config(**FIELDS)
    detector = build_detector(config, ("dog", "unicorn"))
    initial = random_variables(detector.model, config.image_size, np.random.default_rng(5))
    expected = init_from_run(str(workdir), detector, initial)
    listed = capsys.readouterr().out.splitlines()
    moved = init_from_run(str(file), detector, initial)
    jax.tree.map(np.testing.assert_array_equal, moved, expected)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"parameters from {file} step 7:" and printed[1:] == listed[1:]
    broken.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"config\.init_from '.*broken.*is not an exported"):
        init_from_run(str(broken), detector, initial)


def test_an_interrupted_export_leaves_nothing(workdir, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(workdir, tmp_path / "model") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_the_converter_of_onnx_a_sentence_says_what_to_install(
    workdir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None)
    assert run(workdir, tmp_path / "model.onnx", "--format=onnx") == 1
    text = "--format=onnx needs jax2onnx: pip install --no-deps -r requirements-onnx.txt"
    assert text in capsys.readouterr().err
    assert (ROOT / "requirements-onnx.txt").exists() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_onnxruntime_finds_what_the_run_finds(dtype, tmp_path):
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    workdir = save_run(tmp_path / "run", **{"model.dtype": dtype, "data.canvas": (64, 80)})
    file = tmp_path / "model.onnx"
    assert run(workdir, file, "--format=onnx") == 0
    assert run(workdir, file, "--format=onnx") == 0  # replaces its own file
    assert run(save_run(tmp_path / "other"), file, "--format=onnx") == 1
    session = onnxruntime.InferenceSession(file)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list(NAMES)
    assert json.loads(about["origin"])["step"] == 7

    cv2.imwrite(str(tmp_path / "photo.png"), picture(2)[:, :, ::-1])
    rows = run_example("onnx_example.py", file, tmp_path / "photo.png")

    with_float32 = save_run(tmp_path / "float32", **{"data.canvas": (64, 80)})
    live = scratchdet_jax.load(with_float32)
    check_rows(rows, live(picture(2)))
    step = live.function
    for seed, (height, width) in enumerate([(64, 80), (50, 61), (20, 80), (1, 1)]):
        images = np.zeros((1, 64, 80, 3), np.uint8)
        images[0, :height, :width] = picture(seed, (height, width, 3))
        sizes = np.int32([[height, width]])
        found = session.run(["boxes", "scores", "labels"], {"images": images, "sizes": sizes})
        boxes, scores, labels = jax.device_get(step(images, sizes))
        np.testing.assert_array_equal(found[2], labels)
        np.testing.assert_allclose(found[1], scores, atol=1e-5)
        np.testing.assert_allclose(found[0], boxes, atol=1e-4)
        assert (labels > 0).any()

"""What a run survives: damaged checkpoints, a full disk, a second run, a stall."""

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scratchdet_jax.buckets import gcs
from scratchdet_jax.errors import UserError
from scratchdet_jax.files import size, write_atomically
from scratchdet_jax.mirror import Mirror
from scratchdet_jax.paths import in_bucket, run_path
from scratchdet_jax.run import watchdog as watchdogs
from scratchdet_jax.run.checkpoints import CHECKSUMS, Checkpoints, RunInfo
from scratchdet_jax.run.metrics import JsonLines
from scratchdet_jax.run.state import FINITE, TrainState
from scratchdet_jax.run.workdir import check_resume, differences, locked
from scratchdet_jax.training.step import update_unless_diverged
from tests.tiny import tiny_config

INFO = RunInfo(tiny_config(), ("a", "b"))


def state(step: int, size: int = 64) -> TrainState:
    rng = np.random.default_rng(step)
    params = {"w": jnp.asarray(rng.normal(size=(size, size)).astype(np.float32))}
    return TrainState(jnp.int32(step), params, {"mean": jnp.ones(3) * step}, (params, ()))


@pytest.fixture(params=["disk", "bucket"])
def workdir(request, tmp_path):
    """A folder for a run."""
    if request.param == "disk":
        return tmp_path
    return run_path(f"{request.getfixturevalue('bucket')}/run")


@pytest.fixture
def saved(workdir):
    checkpoints = Checkpoints(workdir, keep=3)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step), INFO, progress={"at": step})
    checkpoints.close()
    return workdir


def files(directory):
    if in_bucket(directory):
        return [directory / name for name in gcs.checksums(directory)]
    return [path for path in directory.rglob("*") if path.is_file()]


def largest_file(directory):
    return max(files(directory), key=size)


def put(path, content):
    write_atomically(path, lambda file: file.write(content))


def truncate(directory):
    file = largest_file(directory)
    content = file.read_bytes()
    put(file, content[: len(content) // 2])


def overwrite(directory):
    file = largest_file(directory)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    put(file, bytes(content))


def remove_file(directory):
    largest_file(directory).unlink()


def remove_recipe(directory):
    (directory / "recipe" / "metadata").unlink()


def spoil_checksums(directory):
    put(directory / CHECKSUMS, b"{")


def stamp_badly(directory):
    put(directory / "_CHECKPOINT_METADATA", b"{")


DAMAGES = (truncate, overwrite, remove_file, remove_recipe, spoil_checksums, stamp_badly)


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_checkpoint_is_moved_and_the_previous_one_used(saved, harm, capsys):
    harm(saved / "checkpoints/30")
    checkpoints = Checkpoints(saved, keep=3)
    assert checkpoints.newest_sound_step() == 20
    assert "the checkpoint of step 30 is damaged (" in capsys.readouterr().err
    assert (saved / "corrupt/30").is_dir()
    assert checkpoints.latest_step == 20
    restored = checkpoints.restore(20, state(0))
    jax.tree.map(np.testing.assert_array_equal, restored, state(20))
    assert checkpoints.progress(20) == {"at": 20}
    checkpoints.save(30, state(30), INFO)  # the step can be written again
    checkpoints.close()
    assert Checkpoints(saved, read_only=True).latest_step == 30


def test_a_checkpoint_without_checksums_is_used_as_it_is(saved):
    (saved / "checkpoints/30" / CHECKSUMS).unlink()
    checkpoints = Checkpoints(saved, keep=3)
    assert checkpoints.newest_sound_step() == 30
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(30, state(0)), state(30))
    truncate(saved / "checkpoints/30")
    assert checkpoints.newest_sound_step() == 30
    with pytest.raises(UserError, match=r"step 30 in .* cannot be read .*delete it and resume"):
        checkpoints.restore(30, state(0))


def test_if_all_are_damaged_nothing_is_moved_and_the_run_stops(saved):
    for step in (10, 20, 30):
        truncate(saved / f"checkpoints/{step}")
    checkpoints = Checkpoints(saved, keep=3)
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged \(step 30: .*step 10"):
        checkpoints.newest_sound_step()
    assert checkpoints.latest_step == 30
    assert not (saved / "corrupt").exists()


def test_partial_checkpoints_are_ignored_and_cleaned(saved):
    if in_bucket(saved):  # the files of a whole one, without the mark that is written last
        whole, partial = saved / "checkpoints/30", saved / "checkpoints/40"
        for file in files(whole):
            if file.name != "commit_success.txt" or file.parent != whole:
                put(partial / str(file).removeprefix(f"{whole}/"), file.read_bytes())
    else:
        partial = saved / "checkpoints/40.orbax-checkpoint-tmp-7"
        (partial / "state").mkdir(parents=True)
        (partial / "state/half").write_text("x")
    assert Checkpoints(saved, read_only=True).latest_step == 30
    checkpoints = Checkpoints(saved, keep=3)
    assert checkpoints.newest_sound_step() == 30
    assert not partial.exists()
    checkpoints.save(40, state(40), INFO)
    checkpoints.close()
    again = Checkpoints(saved, read_only=True)
    jax.tree.map(np.testing.assert_array_equal, again.restore(40, state(0)), state(40))


def test_checkpoints_keep_their_checksums_when_they_are_copied(bucket, tmp_path):
    remote, local = run_path(f"{bucket}/run"), tmp_path / "local"
    for workdir in (remote, local):
        checkpoints = Checkpoints(workdir)
        checkpoints.save(10, state(10), INFO)
        checkpoints.close()
    for source, target in ((remote, tmp_path / "copy"), (local, run_path(f"{bucket}/copy"))):
        for file in files(source / "checkpoints"):
            copy = target / "checkpoints" / str(file).removeprefix(f"{source / 'checkpoints'}/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            put(copy, file.read_bytes())
        put(target / "checkpoints/10/commit_success.txt", b"copied")
        assert Checkpoints(target).newest_sound_step() == 10
        truncate(target / "checkpoints/10")
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
            Checkpoints(target).newest_sound_step()


def test_a_bucket_that_is_away_loses_one_checkpoint_and_no_earlier_one(
    bucket, storage, monkeypatch, capsys
):
    checkpoints = Checkpoints(run_path(f"{bucket}/run"), keep=3)
    checkpoints.save(10, state(10), INFO)
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(gcs, "PATIENCE", 0.5)
        storage.network.share, storage.network.kinds = 1.0, ("403",)
        checkpoints.save(20, state(20), INFO)
        checkpoints.set_score(20, 0.5)
        storage.network.share, storage.network.kinds = 0.0, ("429", "503", "cut", "part", "slow")
    told = capsys.readouterr().err
    assert told.count("the checkpoint of step 20 could not be written to gs://") == 1
    assert "check the network" in told
    assert checkpoints.latest_step == 10
    checkpoints.save(30, state(30), INFO)
    checkpoints.wait()
    assert checkpoints.steps() == [10, 30]
    checkpoints.close()


def test_a_score_comes_later_and_says_whether_the_evaluation_is_complete(saved):
    checkpoints = Checkpoints(saved, keep=1)
    assert not checkpoints.is_scored(20)
    checkpoints.set_score(20, 0.7)
    checkpoints.set_score(30, None)
    again = Checkpoints(saved, read_only=True)
    assert again.is_scored(20) and again.is_scored(30) and not again.is_scored(10)
    assert again.best_step == 20
    checkpoints.save(40, state(40), INFO)
    checkpoints.close()
    assert Checkpoints(saved, read_only=True).steps() == [20, 40]  # the best and the latest


def test_a_full_disk_loses_one_checkpoint_and_no_earlier_one(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(10, state(10), INFO)
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # weights cannot be written, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
        checkpoints.save(20, state(20, 400), INFO)
        checkpoints.set_score(20, 0.5)  # of a missing checkpoint
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the checkpoint of step 20 could not be written" in capsys.readouterr().err
    assert checkpoints.latest_step == 10
    checkpoints.save(30, state(30), INFO)
    checkpoints.wait()
    assert checkpoints.latest_step == 30
    restored = checkpoints.restore(10, state(0))
    jax.tree.map(np.testing.assert_array_equal, restored, state(10))
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    checkpoints.close()


def test_lines_wait_for_room_on_the_disk_and_are_never_partial(tmp_path, monkeypatch, capsys):
    lines, write = JsonLines(tmp_path / "m.jsonl"), os.write
    lines.append("1")
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda file, data: write(file, data[:1]))
        lines.append("22")
        lines.append("33")
    assert lines.waiting == ["22", "33"]
    lines.append("44")
    lines.close()
    assert (tmp_path / "m.jsonl").read_text() == "1\n22\n33\n44\n"
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_restoring_needs_no_pickle(saved, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    checkpoints = Checkpoints(saved, read_only=True)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(30, state(0)), state(30))
    assert checkpoints.info(30).class_names == ("a", "b")


def test_a_different_shape_is_named(saved):
    words = r"shape: \(8, 8\) .* stored shape: \(64, 64\).* if config\.model has changed"
    with pytest.raises(UserError, match=words):
        Checkpoints(saved, read_only=True).restore(30, state(0, 8))


def test_every_field_that_changes_the_result_is_named_at_once(tmp_path):
    other = tiny_config(
        **{"seed": 5, "model.width": 0.25, "optimizer.momentum": 0.5, "num_steps": 40}
    )
    with pytest.raises(UserError) as error:
        check_resume(INFO, INFO._replace(config=other), tmp_path, force=False)
    for part in (
        "config.seed: was 0, now 5",
        "config.model.width: was 0.125, now 0.25",
        "config.num_steps: was 20, now 40",
        "config.optimizer.momentum: was 0.9, now 0.5",
        "--resume=force",
    ):
        assert part in str(error.value)


def test_fields_without_effect_may_change_and_force_prints_the_others(tmp_path, capsys):
    free = tiny_config(
        **{
            "log_every": 7,
            "data.threads": 3,
            "keep_checkpoints": 9,
            "checkpoint_every": 5,
            "eval.every_steps": 2,
            "parallel": "pmap",
            "data.dir": "elsewhere",
            "data.on_error": "substitute",
            "stall_seconds": 5.0,
            "train_images": 77,
        }
    )
    assert differences(INFO.config, free) == []
    other = INFO._replace(config=tiny_config(seed=1))
    check_resume(INFO, other, tmp_path, force=True)
    assert "config.seed: was 0, now 1" in capsys.readouterr().out
    with pytest.raises(UserError, match="has a run with the classes a, b, not c"):
        check_resume(INFO, INFO._replace(class_names=("c",)), tmp_path, force=True)


def test_two_runs_cannot_write_into_one_workdir(tmp_path):
    used = rf"in use by another run \(process {os.getpid()} on"
    with locked(tmp_path), pytest.raises(UserError, match=used), locked(tmp_path):
        pass
    with locked(tmp_path):  # released
        pass


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import os, pathlib, signal, sys; sys.path.insert(0, os.getcwd())\n"
        "from scratchdet_jax.run.workdir import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2]
    )
    assert done.returncode == -signal.SIGKILL
    assert "process" in (tmp_path / "lock").read_text()
    with locked(tmp_path):
        pass


def test_a_stall_is_reported_with_the_stacks_of_all_threads(tmp_path, capfd):
    ended = threading.Event()
    statuses = []

    def end(status):
        statuses.append(status)
        ended.set()

    watchdog = watchdogs.Watchdog(0.4, Mirror(tmp_path), end)
    watchdog.beat(7)
    with watchdog.paused():
        time.sleep(1.0)
    assert not statuses
    watchdog.beat()  # a batch of an evaluation
    assert ended.wait(10)
    watchdog.close()
    assert statuses == [watchdogs.STALLED] == [69]
    report = (tmp_path / "stalled.txt").read_text()
    assert "no progress for 0.4 s (config.stall_seconds) after step 7" in report
    assert "test_a_stall_is_reported" in report and "_watch" in report


def test_the_first_step_is_watched_too(tmp_path, capfd):
    ended = threading.Event()
    watchdog = watchdogs.Watchdog(0.2, Mirror(tmp_path), lambda status: ended.set())
    assert ended.wait(10)
    watchdog.close()
    assert "after step 0: the data source or another process" in capfd.readouterr().err


def test_time_in_which_the_process_is_suspended_does_not_count(tmp_path):
    code = f"""if True:
        import time
        from pathlib import Path
        from scratchdet_jax.mirror import Mirror
        from scratchdet_jax.run.watchdog import Watchdog
        watchdog = Watchdog(4.0, Mirror(Path({str(tmp_path)!r})))
        print("ready", flush=True)
        for _ in range(15):
            time.sleep(0.1)
        watchdog.close()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGSTOP)
    time.sleep(6)
    process.send_signal(signal.SIGCONT)
    error = process.communicate(timeout=20)[1]
    assert process.returncode == 0 and not error


@pytest.mark.parametrize("harmed", ["params", "batch_stats", "metric"])
def test_a_non_finite_update_is_skipped_and_so_are_all_later_ones(harmed):
    before, after = state(4), state(5)
    metrics = {"loss": jnp.float32(1.0)}
    if harmed == "metric":
        bad, shown = after, {"loss": jnp.float32("nan")}
    else:
        spoiled = jax.tree.map(lambda x: x.at[0].set(jnp.inf), getattr(after, harmed))
        bad, shown = after.replace(**{harmed: spoiled}), metrics
    update = jax.jit(update_unless_diverged)
    kept, reported = update(before, bad, shown)
    assert int(kept.step) == ~4
    jax.tree.map(np.testing.assert_array_equal, kept.replace(step=before.step), before)
    assert int(reported[FINITE + "parameters"]) == (harmed != "params")
    assert int(reported[FINITE + "statistics"]) == (harmed != "batch_stats")
    later, _ = update(kept, after, metrics)
    jax.tree.map(np.testing.assert_array_equal, later, kept)
    made, _ = update(before, after, metrics)
    jax.tree.map(np.testing.assert_array_equal, made, after)


def test_the_progress_of_a_checkpoint_is_json(saved):
    assert json.loads(json.dumps(Checkpoints(saved, read_only=True).progress(10))) == {"at": 10}

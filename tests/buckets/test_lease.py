"""The lock of a workdir in a bucket: one run at a time, whatever happens to the other."""

import json
import threading
import time

import pytest

from scratchdet_jax.buckets import gcs, lease
from scratchdet_jax.errors import UserError
from scratchdet_jax.paths import user_path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.2)
    monkeypatch.setattr(lease, "EXPIRES", 1.0)


@pytest.fixture
def path(bucket):
    return user_path(f"{bucket}/run/lock")


def holder(path):
    content, _ = gcs.read_versioned(path)
    return json.loads(content)["run"]


def test_a_lock_is_held_renewed_and_given_back(path):
    with lease.leased(path, "mine"):
        _, first = gcs.read_versioned(path)
        assert holder(path) == "mine"
        time.sleep(0.7)
        _, later = gcs.read_versioned(path)
        assert later != first
    assert gcs.read_versioned(path) is None


def test_a_second_run_is_refused_with_who_and_where(path, capsys):
    with lease.leased(path, "process 7 on host3"):
        began = time.monotonic()
        with pytest.raises(UserError, match=r"/run is in use by another run \(process 7 on host3"):
            lease.leased(path, "second").__enter__()
        assert time.monotonic() - began < 3
    assert "is locked by another run (process 7 on host3" in capsys.readouterr().err
    with lease.leased(path, "second"):
        pass


def test_the_lock_of_a_killed_run_is_taken(path, capsys):
    gcs.write_if(path, json.dumps({"run": "killed", "renewed": "then"}).encode(), 0)
    began = time.monotonic()
    with lease.leased(path, "next"):
        assert 1.0 <= time.monotonic() - began < 4
        assert holder(path) == "next"
    assert "waiting up to" in capsys.readouterr().err


def test_a_lock_that_is_given_back_meanwhile_is_taken(path):
    generation = gcs.write_if(path, b"{}", 0)
    threading.Timer(0.3, path.unlink).start()
    began = time.monotonic()
    with lease.leased(path, "next"):
        assert time.monotonic() - began < 1.0
        assert gcs.read_versioned(path)[1] != generation


def test_of_many_that_wait_one_gets_it(path):
    gcs.write_if(path, b"garbled", 0)
    got, refused = [], []
    ended = threading.Event()

    def run(name):
        try:
            with lease.leased(path, name):
                got.append(name)
                ended.wait(10)
        except UserError:
            refused.append(name)

    threads = [threading.Thread(target=run, args=(f"run {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        if len(got) + len(refused) == 4:
            break
        time.sleep(0.05)
    ended.set()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 3


@pytest.mark.parametrize("fault", ["cut", "503", "part"])
def test_a_renewal_whose_answer_is_lost_is_no_loss_of_the_lock(path, storage, fault):
    ended = []
    mine = lease._Lease(path, "mine", ended.append)
    mine.acquire()
    for _ in range(6):
        storage.network.fail_next[:] = [fault]
        time.sleep(0.25)
    storage.network.fail_next.clear()
    assert not ended and holder(path) == "mine"
    mine.release()
    assert gcs.read_versioned(path) is None


def test_a_run_whose_lock_was_taken_ends(path, capsys):
    ended = []
    mine = lease._Lease(path, "mine", ended.append)
    mine.acquire()
    while True:  # between two renewals
        try:
            gcs.write_if(path, b'{"run": "other"}', gcs.read_versioned(path)[1])
            break
        except FileExistsError:
            continue
    for _ in range(100):
        if ended:
            break
        time.sleep(0.05)
    assert ended == [1]
    assert "another run (other" in capsys.readouterr().err
    mine.release()
    assert holder(path) == "other"


def test_a_lock_that_somebody_deleted_is_taken_again(path):
    ended = []
    mine = lease._Lease(path, "mine", ended.append)
    mine.acquire()
    path.unlink()
    time.sleep(0.6)
    assert not ended and holder(path) == "mine"
    mine.release()

"""Early stopping: the rule against a plain search, and a run with a given course of the mAP."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchdet_jax.evaluation.evaluator import Evaluation, Evaluator
from scratchdet_jax.run.checkpoints import Checkpoints
from scratchdet_jax.training import loop
from scratchdet_jax.training.optimizer import Improvement
from tests.training.small_run import assert_same_run, lines, small_config, train, train_in_parts

SCORES = st.lists(st.none() | st.sampled_from([0.0, 0.1, 0.2, 0.3]), max_size=12)


@given(SCORES, st.integers(1, 4))
def test_a_run_ends_at_the_first_evaluation_with_no_better_one_among_the_last(scores, patience):
    def slow_end():
        for n in range(patience, len(scores) + 1):
            before = [s for s in scores[: n - patience] if s is not None]
            last = [s for s in scores[n - patience : n] if s is not None]
            if not last or (before and max(last) <= max(before)):
                return n
        return None

    state, ended = Improvement(), None
    for n, score in enumerate(scores, 1):
        state = state.after(score)
        assert state == Improvement.from_json({"improvement": list(state)})
        assert not state.ends(0)
        if ended is None and state.ends(patience):
            ended = n
    assert ended == slow_end()


def test_a_checkpoint_of_an_older_version_knows_of_no_evaluation():
    assert Improvement.from_json(None) == Improvement.from_json({"norm": 1.0}) == Improvement()


@pytest.fixture
def given_scores(monkeypatch):
    """Replaces the evaluation: 0.5, 0.4, 0.6 after the first steps, then 0.5."""
    evaluate = loop._Loop._evaluate

    def at_step(self):
        results = {"mAP": {2: 0.4, 3: 0.6}.get(self.step, 0.5), "AP": {}}
        with monkeypatch.context() as patch:
            patch.setattr(Evaluator, "evaluate", lambda *arguments: Evaluation(results, {}, {}, {}))
            evaluate(self)

    monkeypatch.setattr(loop._Loop, "_evaluate", at_step)


@pytest.mark.slow  # trains several runs
def test_a_run_stops_early_says_so_and_decides_the_same_when_resumed(
    tmp_path, monkeypatch, given_scores, capsys
):
    fields = {"num_steps": 9, "eval.every_steps": 1, "keep_checkpoints": 2}
    config = small_config(tmp_path, monkeypatch, **fields, **{"eval.stop_after": 2})
    whole = train(config, tmp_path / "whole")
    assert int(whole.step) == 5
    assert [line["step"] for line in lines(tmp_path / "whole", "eval")] == [1, 2, 3, 4, 5]
    told = capsys.readouterr().out
    assert "stopped early, after 5 of 9 steps: no better mAP in 2 evaluations" in told
    assert "best mAP 0.6000 at step 3" in told

    parts = train_in_parts(config, tmp_path / "parts", monkeypatch, 3, 5)
    assert_same_run((parts, tmp_path / "parts"), (whole, tmp_path / "whole"))
    # Killed after the last evaluation, or before it: nothing more is trained.
    for scored in (True, False):
        if not scored:
            (tmp_path / "parts/checkpoints/5/score.json").unlink()
        capsys.readouterr()
        again = train(config, tmp_path / "parts")
        assert_same_run((again, tmp_path / "parts"), (whole, tmp_path / "whole"))
        told = capsys.readouterr().out
        assert ("already finished" in told) == scored
        assert "stopped early, after 5 of 9 steps" in told

    with config.unlocked():
        config.eval.stop_after = 0
    assert int(train(config, tmp_path / "parts").step) == 9
    assert "trained 9 steps; best mAP 0.6000 at step 3" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "parts", read_only=True).progress(9)["improvement"] == [0.6, 5]

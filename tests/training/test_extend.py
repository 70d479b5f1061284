"""A longer schedule for a finished run equals a run that had it from the beginning."""

import pytest

from scratchdet_jax.errors import UserError
from scratchdet_jax.run.open import open_run
from tests.training.small_run import assert_same_run, lines, small_config, train, train_in_parts


@pytest.mark.slow  # trains several runs
def test_a_finished_run_that_is_extended_equals_one_that_was_planned_so(
    tmp_path, monkeypatch, capsys
):
    def config(**fields):
        fields = {"num_steps": 3, "optimizer.drop_at": (0.4, 0.9)} | fields
        return small_config(tmp_path, monkeypatch, **fields)

    planned = train(config(extend="2x"), tmp_path / "planned")
    assert [line["step"] for line in lines(tmp_path / "planned", "eval")] == [2, 3, 4, 6]
    rates = [line["learning_rate"] for line in lines(tmp_path / "planned", "train")]
    assert rates == pytest.approx([0.02, 0.002, 0.002, 0.002, 0.002, 0.0002])

    workdir = tmp_path / "extended"
    assert int(train(config(), workdir).step) == 3
    capsys.readouterr()
    extended = train_in_parts(config(extend="2x"), workdir, monkeypatch, 5)
    told = capsys.readouterr().out
    assert "resumed from step 3 of 6\nextended: the learning rate goes from 0.002 to 0.002" in told
    assert_same_run((extended, workdir), (planned, tmp_path / "planned"))
    assert open_run(workdir, "latest").info.config.extend == "2x"

    # The command without the extension, or with a longer run instead of it, is refused.
    with pytest.raises(
        UserError, match=r"config\.extend: was '2x', now ''\): use the same values,"
    ):
        train(config(), workdir)
    with pytest.raises(
        UserError, match=r"num_steps: was 3, now 8.*for a longer run: with --config"
    ):
        train(config(num_steps=8, extend=""), workdir)
    assert int(train(config(extend="2x,56"), workdir).step) == 7

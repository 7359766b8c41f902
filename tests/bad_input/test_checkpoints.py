"""Checkpoints that are missing, foreign, cut short, or of another model."""

import shutil

import pytest


@pytest.fixture
def after_sft(tiny_run, tmp_path):
    """A work directory with a warm start, and its folder of checkpoints."""
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    return workdir, config, workdir / "sft" / "checkpoints"


def steps_of(folder):
    return sorted(path for path in folder.iterdir() if path.name.isdigit())


def test_no_warm_start(t2g, tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run")
    for words in (["annotate"], ["evaluate"], ["train-policy", "--method", "grpo"]):
        outcome = t2g(words[0], workdir, config, *words[1:])
        assert outcome.status == 2
        assert "first run `t2g sft CONFIG`" in outcome.error


def says_how_to_mend_it(workdir, outcome):
    return (
        outcome.status == 2
        and f"delete {workdir / 'sft'} and run `t2g sft CONFIG`" in outcome.error
    )


@pytest.mark.parametrize("whole_folder", [True, False])
def test_missing(t2g, after_sft, whole_folder):
    workdir, config, folder = after_sft
    for path in [folder] if whole_folder else steps_of(folder):
        shutil.rmtree(path)
    outcome = t2g("annotate", workdir, config)
    assert outcome.error.startswith(f"no checkpoint in {folder}")
    assert says_how_to_mend_it(workdir, outcome)


def test_foreign(t2g, after_sft):
    workdir, config, folder = after_sft
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "holiday.jpg").write_text("a picture")
    outcome = t2g("annotate", workdir, config)
    assert outcome.error.startswith(f"{folder} is not a checkpoint folder of t2g_jax")
    assert "holiday.jpg" in outcome.error
    assert says_how_to_mend_it(workdir, outcome)


def test_a_foreign_folder_where_training_would_write(t2g, after_sft):
    workdir, config, _ = after_sft
    theirs = workdir / "grpo" / "checkpoints"
    theirs.mkdir(parents=True)
    (theirs / "holiday.jpg").write_text("a picture")
    outcome = t2g("train-policy", workdir, config, "--method", "grpo")
    assert outcome.status == 2
    assert outcome.error.startswith(f"{theirs} is not a checkpoint folder of t2g_jax")
    assert (theirs / "holiday.jpg").exists()


def test_truncated(t2g, after_sft):
    workdir, config, folder = after_sft
    for step in steps_of(folder):
        files = [path for path in step.rglob("*") if path.is_file() and path.stat().st_size > 200]
        assert files
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    outcome = t2g("annotate", workdir, config)
    assert f"in {folder} is damaged (" in outcome.error
    assert says_how_to_mend_it(workdir, outcome)
    shutil.rmtree(workdir / "sft")
    assert t2g("sft", workdir, config).status == 0
    assert t2g("annotate", workdir, config).status == 0


def test_of_another_shape(t2g, tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", model__mlp_width=96)
    outcome = t2g("annotate", workdir, config)
    assert f"in {workdir / 'sft' / 'checkpoints'} does not fit: " in outcome.error
    assert "mlp.down.kernel: expected float32[1, 96, 32], found float32[1, 64, 32]" in outcome.error
    assert says_how_to_mend_it(workdir, outcome)

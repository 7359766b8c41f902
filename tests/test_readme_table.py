"""README's table and picture come from runs, all from the same ones."""

import json
import re
import shutil
import struct
import sys

import pytest
import tiny


@pytest.fixture
def readme(root, monkeypatch):
    """readme(*words) is `python -m benchmarks.readme`."""
    monkeypatch.syspath_prepend(str(root))
    from benchmarks import readme as module

    def readme(*words):
        monkeypatch.setattr(sys, "argv", ["readme", *map(str, words)])
        module.main()

    return readme


@pytest.fixture
def finished(tiny_run, tmp_path):
    """Two finished work folders, of seeds 0 and 1."""
    for seed in (0, 1):
        folder = tmp_path / f"runs/seed{seed}"
        shutil.copytree(tiny_run.workdir, folder)
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(re.sub(r"(?m)^seed: .*", f"seed: {seed}", config))
    path = tmp_path / "runs/seed1/rltf_sd/evaluation.json"
    score = json.loads(path.read_text()) | {"accuracy": 0.9875}
    path.write_text(json.dumps(score))
    return tmp_path / "runs"


PAGE = "# Page\n\n<!-- quickstart -->\nold\n<!-- end of quickstart -->\n\nThe end.\n"


@pytest.mark.parametrize("how", ["seeds", "folders"])
def test_the_table_is_of_the_runs(readme, finished, tmp_path, tiny_run, capsys, how):
    page, picture = tmp_path / "page.md", tmp_path / "docs/report.png"
    page.write_text(PAGE)
    which = {
        "seeds": ["--seeds", 0, 1, "--workdir", finished],
        "folders": [finished / "seed0", finished / "seed1"],
    }[how]
    readme(*which, "--page", page, "--picture", picture)
    if how == "seeds":
        assert capsys.readouterr().out.count("finished before") == 2
    text = page.read_text()
    assert text.startswith("# Page\n")
    assert text.endswith("\n\nThe end.\n")
    assert "old" not in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == ["seed", "warm start", "and after one critique", *tiny_run.config.methods]
    assert [row[0] for row in rows[2:]] == ["0", "1", "**mean**"]
    sft = json.loads((finished / "seed0/sft/evaluation.json").read_text())
    assert rows[2][1] == f"{100 * sft['accuracy']:.1f}\u202f%"
    last = [row[rows[0].index("rltf-sd")] for row in rows[2:]]
    assert last[1].startswith("98.8")
    first, mean = (float(re.match(r"[\d.]+", cell)[0]) for cell in (last[0], last[2]))
    assert mean == pytest.approx((first + 98.75) / 2, abs=0.11)
    assert "`python -m benchmarks.readme --seeds 0 1`" in " ".join(text.split())
    if shutil.which("chromium"):
        header = picture.read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        assert struct.unpack(">II", header[16:]) == (1000, 1900)


def test_without_a_browser_the_picture_stays(readme, finished, tmp_path, monkeypatch, capsys):
    page, picture = tmp_path / "page.md", tmp_path / "report.png"
    page.write_text(PAGE)
    picture.write_bytes(b"as it was")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROME", raising=False)
    readme(finished / "seed0", "--page", page, "--picture", picture)
    assert "there is no Chromium here" in capsys.readouterr().out
    assert picture.read_bytes() == b"as it was"


def test_what_is_no_finished_run_is_refused(readme, finished, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    (finished / "seed1/rltf_sd/evaluation.json").unlink()
    with pytest.raises(SystemExit, match=r"seed1 is no finished run: .*rltf_sd/evaluation\.json"):
        readme(finished / "seed0", finished / "seed1", "--page", page)
    assert page.read_text() == PAGE
    with pytest.raises(SystemExit, match="ended with 2; the same command goes on from here"):
        readme("--seeds", 5, "--config", tmp_path / "none.yaml", "--workdir", finished)
    with pytest.raises(SystemExit, match="2"):
        readme("--seeds", 5, "--page", page, finished / "seed0")


def test_runs_of_other_settings_are_not_put_into_one_table(readme, finished, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    path = finished / "seed1/config.yaml"
    path.write_text(path.read_text().replace("samples_per_prompt: ", "samples_per_prompt: 1"))
    with pytest.raises(SystemExit, match=r"differ in more than their seed, in evaluate$"):
        readme(finished / "seed0", finished / "seed1", "--page", page)


def test_runs_of_other_commits_are_not_put_into_one_table(readme, finished, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    for path in (finished / "seed0").glob("*/complete.json"):
        record = tiny.without_checksum(path)
        record["environment"]["commit"] = "0123456789ab"
        path.write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=r"differ in more than their seed, in commit$"):
        readme(finished / "seed0", finished / "seed1", "--page", page)
    readme(finished / "seed0", "--page", page, "--picture", tmp_path / "report.png")
    assert "Made at commit 0123456789ab, with jax" in page.read_text()


def test_the_readme_has_the_markers(root):
    text = (root / "README.md").read_text()
    (table,) = re.findall("<!-- quickstart -->(.*?)<!-- end of quickstart -->", text, re.S)
    assert "| seed | warm start |" in table

"""An exported model in an empty folder that is there already stays in that very folder."""

import os

from t2g_jax.phases.export import _move_up


def test_configs_come_last(tmp_path, monkeypatch):
    partial = tmp_path / ".x.partial"
    (partial / "t2g").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "t2g/heads.safetensors", "tokenizer.json"):
        (partial / name).write_text(name)
    moved = []
    rename = os.rename
    monkeypatch.setattr(
        os, "rename", lambda a, b: (moved.append(os.path.basename(b)), rename(a, b))
    )
    before = tmp_path.stat().st_ino
    _move_up(partial)
    assert moved[-1] == "config.json"
    assert sorted(os.listdir(tmp_path)) == sorted(moved)
    assert (tmp_path / "t2g" / "heads.safetensors").exists()
    assert tmp_path.stat().st_ino == before

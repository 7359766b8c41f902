"""Other values for a run that has begun: recorded only if it can go on with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

from t2g_jax.config import Config, diff, load_config, require_measured, section_of
from t2g_jax.run import pretrained, provenance
from t2g_jax.run.context import Context, checked_parts, say
from t2g_jax.run.workspace import Workspace, accept_changes, is_run
from t2g_jax.runtime import hosts


def accept(config: Config, workdir: Path, methods: Collection[str] = ()) -> None:
    """Records what differs from the config of the run in a work folder, and says it.

    First comes all that a phase checks as it begins, of the sections of methods that the config
    does not name, too, if they changed. Without a run there is nothing that a change could be of.

    Args:
      methods: that are to be trained at once.

    Raises:
      T2GError: the run could not go on; then nothing is recorded.
    """
    if not hosts.broadcast_from_primary(lambda: is_run(workdir)):
        return
    recorded = workdir / "config.yaml"
    if changed := hosts.broadcast_from_primary(lambda: diff(load_config(recorded), config)):
        workspace = Workspace(workdir, config, free=[field.name for field in fields(config)])
        sections = {key.partition(".")[0] for key in changed}
        asked = config
        for method in config.known_methods:
            if method in methods or section_of(method) in sections:
                asked = asked.including(method)
        made = checked_parts(asked, workdir)
        # Without work the tokenizer is made anew.
        stays = hosts.broadcast_from_primary(
            lambda: workspace.has_work() and workspace.tokenizer.exists()
        )
        if stays:
            provenance.require_loadable(workspace)
            hosts.broadcast_from_primary(
                lambda: pretrained.check_tokenizer(config, workspace.tokenizer)
            )
            Context.assembled(workspace, *made).prompts.test_examples()  # which need room
        done = hosts.broadcast_from_primary(workspace.complete_phases)
        require_measured(config, [method for method in methods if method not in done])
    for change in accept_changes(workdir, config):
        say(f"changed: {change}")

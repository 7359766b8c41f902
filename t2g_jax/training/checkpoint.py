"""Checkpoints of a run, and the parameters that a phase leaves to the next, by Orbax.

Orbax's stable public API is used (`CheckpointManager`): its successor, `orbax.checkpoint.v1`, is
still only under `orbax.checkpoint.experimental`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from etils import epath

from t2g_jax.errors import T2GError, reason
from t2g_jax.runtime import hosts
from t2g_jax.training import checksums

MARKER = "t2g_checkpoints.json"
DELETED = "deleted"
"""Subfolder that old steps are moved to before they are deleted: half a step is never seen."""
PyTree = Any

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://")
_UNREADABLE = re.compile(r"[][*?\\\udc80-\udcff]|:/")
"""Orbax takes some of these for patterns, TensorStore others for another folder or a URL."""


class Checkpoints:
    """The checkpoints of one run: a folder, with a subfolder a step.

    A checkpoint is a pytree of arrays (bfloat16 and typed PRNG keys included) and a JSON object
    about it: phase, config hash, parent, data cursor, controllers. A step appears whole or not at
    all, restores onto any mesh, and carries checksums that `restore` verifies. All processes of a
    run make the same calls.

    Args:
      directory: local or remote (gs://…); made if missing, unless `read_only`.
      keep_last: how many of the latest steps are kept.
      keep_best: (metric name, "max" or "min"): the best step by that metric is kept as well.
      async_: write in the background; the arrays may be donated as soon as `save` returns.
      read_only: change nothing, as another run may be writing here.
      made_by: the command that writes these checkpoints, for the error when there are none.

    Raises:
      T2GError: the folder holds something else; with `read_only`, there is no checkpoint.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: tuple[str, Literal["max", "min"]] | None = None,
        async_: bool = True,
        read_only: bool = False,
        made_by: str | None = None,
    ):
        self.directory = epath.Path(directory)
        if not _REMOTE.match(os.fspath(directory)):  # Orbax wants absolute paths
            self.directory = self.directory.expanduser().absolute()
        self._read_only, self._made_by, self._keep_best = read_only, made_by, keep_best
        self._saved: int | None = None
        self._keep_last = keep_last
        if keep_last < 1:
            raise T2GError(f"keep_last is {keep_last}; keep at least 1 to resume from")
        hosts.broadcast_from_primary(self._claim)

        managers, handlers = ocp.checkpoint_managers, ocp.handlers
        keep: list[Any] = [managers.LatestN(keep_last)]
        if keep_best is not None:
            keep.append(
                managers.BestN(
                    get_metric_fn=self._quality, n=1, keep_checkpoints_without_metrics=False
                )
            )
        registry = handlers.DefaultCheckpointHandlerRegistry()
        for item, handler, arguments in (
            ("state", ocp.PyTreeCheckpointHandler(), (ocp.args.PyTreeSave, ocp.args.PyTreeRestore)),
            ("meta", ocp.JsonCheckpointHandler(), (ocp.args.JsonSave, ocp.args.JsonRestore)),
            ("checksums", ocp.JsonCheckpointHandler(), (ocp.args.JsonSave, ocp.args.JsonRestore)),
        ):
            for argument in arguments:
                registry.add(item, argument, handler)
        self._link = _link(self.directory) if _UNREADABLE.search(str(self.directory)) else None
        with self._damage_named(None):
            self._manager = ocp.CheckpointManager(
                self._link or self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=managers.AnyPreservationPolicy(keep),
                    best_fn=self._quality if keep_best else None,
                    create=not read_only,
                    cleanup_tmp_directories=not read_only,
                    todelete_subdir=None if read_only else DELETED,
                    enable_async_checkpointing=async_,
                ),
                handler_registry=registry,
            )
        self._clear_deleted()
        self._read_back = not self.steps
        """Whether the next step saved is read at once: nobody knows yet that it can be."""

    @property
    def steps(self) -> list[int]:
        """The steps in the folder, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The best step by `keep_best`, the later of equals; None if no step has the metric."""
        if self._keep_best is None:
            raise T2GError("best_step needs keep_best=(metric, 'max' or 'min')")
        self.wait()
        quality = {step: self._quality(self._manager.metrics(step) or {}) for step in self.steps}
        best = max(quality, key=lambda step: (quality[step], step), default=None)
        return None if best is None or quality[best] == -math.inf else best

    def save(
        self,
        step: int,
        state: PyTree,
        meta: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Saves a step; saving again the step that was just saved does nothing.

        Args:
          step: above all steps in the folder.
          state: pytree whose leaves are arrays.
          meta: JSON-able; `restore` returns it as JSON reads it (tuples become lists).
          metrics: what `keep_best` compares; without its metric the step is never the best.

        Raises:
          T2GError: a leaf is no array or has no elements, meta is not JSON, later steps exist, or
            this or the last step could not be written, or the first one not be read back. Those
            before are as they were.
        """
        if self._read_only:
            raise T2GError(f"{self.directory} was opened read_only")
        if step == self._saved:
            return
        if later := [s for s in self.steps if s >= step]:
            raise T2GError(
                f"cannot save step {step}: {self.directory} has the steps {later}; resume from "
                f"{later[-1]}, or delete them"
            )
        for path, leaf in checksums.leaves(state).items():
            if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
                raise T2GError(f"{path} is {type(leaf).__name__}; keep arrays in the state")
            if 0 in leaf.shape:  # Orbax cannot store it, and hangs for minutes on the way out
                raise T2GError(f"{path} has shape {list(leaf.shape)}; leave empty arrays out")
        try:
            # A copy: the caller may change his own while ours is written.
            meta = json.loads(json.dumps(dict(meta), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise T2GError(f"the meta of step {step} is not JSON: {error}") from error
        compared = None
        if self._keep_best:
            name, _ = self._keep_best
            compared = {name: float(metrics[name])} if metrics and name in metrics else {}
        sums = {**checksums.of_arrays(state), "meta": checksums.of_json(meta)}
        smallest = _smallest(state) if self._read_back else {}
        with self._full_disk_named():
            self._manager.wait_until_finished()
            self._clear_deleted()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    meta=ocp.args.JsonSave(meta),
                    checksums=ocp.args.JsonSave(sums),
                ),
                metrics=compared,
                force=True,
            )
        self._saved = step
        if self._read_back:
            self._restore(smallest, step, whole=False)
            self._read_back = False

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[PyTree, dict]:
        """Returns (state, meta) of a step, the latest by default.

        Args:
          abstract_state: the saved structure with `jax.ShapeDtypeStruct` leaves (or arrays, read
            for their shape); each leaf goes to its `sharding`, or else to the first device.

        Raises:
          T2GError: there is no such checkpoint; it has other parameters, shapes or dtypes (named);
            it is damaged (the step to go back to is named).
        """
        restored = self._restore(abstract_state, step, whole=True)
        if step is None and not self._read_only:
            self._prune()
        return restored

    def restore_params(
        self, abstract_params: PyTree, step: int | None = None
    ) -> tuple[PyTree, dict]:
        """As `restore`, of the state's `params` alone: the rest is not read."""
        state, meta = self._restore({"params": abstract_params}, step, whole=False)
        return state["params"], meta

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The meta of a step, the latest by default; reads no array. Raises as `restore`."""
        step = self._existing(step)
        with self._damage_named(step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )
            self._verify(step, {"meta": checksums.of_json(restored["meta"])})
            return restored["meta"]

    def fingerprint(self, step: int | None = None) -> str:
        """16 hexadecimal digits that stand for a step's parameters. Raises as `meta`."""
        step = self._existing(step)
        with self._damage_named(step):
            return checksums.fingerprint(self._checksums(step), "params.")

    def wait(self) -> None:
        """Returns when all that was saved is on disk.

        Raises:
          T2GError: the last step could not be written.
        """
        with self._full_disk_named():
            self._manager.wait_until_finished()
        self._clear_deleted()

    def close(self) -> None:
        """Waits, and frees the threads. Raises as `wait`."""
        try:
            with self._full_disk_named():
                self._manager.close()
            self._clear_deleted()
        finally:
            if self._link is not None:
                shutil.rmtree(self._link.parent, ignore_errors=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _restore(self, abstract: PyTree, step: int | None, *, whole: bool) -> tuple[PyTree, dict]:
        step = self._existing(step)
        abstract = jax.tree.map(_struct, abstract)
        with self._damage_named(step):
            saved = self._manager.item_metadata(step)["state"].tree
        found, expected = (
            {path: checksums.described(leaf) for path, leaf in checksums.leaves(tree).items()}
            for tree in (saved, abstract)
        )
        self._require_equal(step, expected, found, whole=whole)
        with self._damage_named(step):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        abstract,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                        partial_restore=not whole,
                    ),
                    meta=ocp.args.JsonRestore(),
                ),
            )
            state = restored["state"]
            meta = {"meta": checksums.of_json(restored["meta"])}
            self._verify(step, checksums.of_arrays(state) | meta)
        # On disk a typed key is its uint32 data, so only now can the two be told apart.
        dtypes = {path: str(leaf.dtype) for path, leaf in checksums.leaves(state).items()}
        wanted = {path: str(leaf.dtype) for path, leaf in checksums.leaves(abstract).items()}
        self._require_equal(step, wanted, dtypes, whole=True)
        return state, restored["meta"]

    def _require_equal(
        self, step: int, expected: dict[str, str], found: dict[str, str], *, whole: bool
    ) -> None:
        paths = expected | found if whole else expected
        wrong = [
            f"{path}: expected {expected.get(path, 'nothing')}, found {found.get(path, 'nothing')}"
            for path in paths
            if expected.get(path) != found.get(path)
        ]
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise T2GError(
                f"step {step} in {self.directory} does not fit: {'; '.join(wrong[:5])}{more}. "
                f"Use the configuration that it was saved with"
            )

    def _verify(self, step: int, found: Mapping[str, int]) -> None:
        """Raises ValueError, naming the array, if what was read is not what was saved."""
        saved = self._checksums(step)
        wrong = [path for path, value in found.items() if saved.get(path) != value]
        if wrong:
            raise ValueError(f"{', '.join(wrong[:5])}: the checksum is not that of what was saved")

    def _checksums(self, step: int) -> dict[str, int]:
        if not (self.directory / str(step) / "checksums").exists():
            raise ValueError("its checksums are missing")
        restored = self._manager.restore(
            step, args=ocp.args.Composite(checksums=ocp.args.JsonRestore())
        )
        return restored["checksums"]

    def _existing(self, step: int | None) -> int:
        self.wait()
        steps = self.steps
        if not steps:
            raise self._nothing()
        if step is not None and step not in steps:
            raise T2GError(f"no step {step} in {self.directory}; it has {steps}")
        return steps[-1] if step is None else step

    def _claim(self) -> None:
        """Marks the folder as ours, so that old steps of someone else are never deleted."""
        held = sorted(p.name for p in self.directory.iterdir()) if self.directory.is_dir() else []
        if MARKER in held:
            return
        if held:
            raise T2GError(
                f"{self.directory} is not a checkpoint folder of t2g_jax: it holds {held[:8]}; "
                f"pass the folder of a run, or a new one"
            )
        if self._read_only:
            raise self._nothing()
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / MARKER).write_text('{"format": 1}\n')

    def _nothing(self) -> T2GError:
        first = f"run `{self._made_by}` first" if self._made_by else "run the phase that saves it"
        return T2GError(f"no checkpoint in {self.directory}; {first}, or correct the path")

    @contextlib.contextmanager
    def _damage_named(self, step: int | None) -> Iterator[None]:
        """Orbax and TensorStore raise many kinds of errors; ours names the step and the way out."""
        try:
            yield
        except Exception as error:
            if step is None:
                raise T2GError(
                    f"a checkpoint in {self.directory} is damaged ({reason(error)[:200]}); delete "
                    f"its subfolder"
                ) from error
            earlier = [s for s in self.steps if s < step]
            way_out = (
                f"delete {self.directory / str(step)} to go back to step {earlier[-1]}"
                if earlier
                else f"no earlier step is left, delete {self.directory} and start again"
            )
            raise T2GError(
                f"step {step} in {self.directory} is damaged ({reason(error)[:200]}); {way_out}"
            ) from error

    @contextlib.contextmanager
    def _full_disk_named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            kept = self.steps if self.directory.exists() else []
            raise T2GError(
                f"a checkpoint could not be written to {self.directory} ({reason(error)[:300]})"
                f"; make room there, or make it writable, then run the same command again: it goes "
                f"on from {f'step {kept[-1]}' if kept else 'the beginning of the phase'}"
            ) from error

    def _prune(self) -> None:
        """Deletes what a save that was killed after it had its own step in place would have."""
        kept = {*self.steps[-self._keep_last :], self.best_step if self._keep_best else None}
        for old in [step for step in self.steps if step not in kept]:
            self._manager.delete(old)
        self._clear_deleted()

    def _clear_deleted(self) -> None:
        deleted = self.directory / DELETED
        if not self._read_only and hosts.is_primary() and deleted.exists():
            deleted.rmtree(missing_ok=True)

    def _quality(self, metrics: Mapping[str, float]) -> float:
        name, mode = self._keep_best
        value = metrics.get(name, math.nan)
        return -math.inf if math.isnan(value) else value if mode == "max" else -value


def _link(directory: epath.Path) -> epath.Path | None:
    """A way to a local folder whose name every library reads as it is; None for a remote one."""
    if _REMOTE.match(str(directory)):
        return None
    link = epath.Path(tempfile.mkdtemp(prefix="t2g-")) / "checkpoints"
    os.symlink(directory, link, target_is_directory=True)
    return link


def _smallest(state: PyTree) -> PyTree:
    """The smallest array of a state, alone in the same structure of names; nothing if none is."""
    flat, _ = jax.tree.flatten_with_path(state)
    named = [
        ([getattr(key, "key", None) or getattr(key, "name", None) for key in path], leaf)
        for path, leaf in flat
    ]
    named = [(names, leaf) for names, leaf in named if all(isinstance(n, str) for n in names)]
    if not named:
        return {}
    names, leaf = min(named, key=lambda item: item[1].size)
    tree: PyTree = _struct(leaf)
    for name in reversed(names):
        tree = {name: tree}
    return tree


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

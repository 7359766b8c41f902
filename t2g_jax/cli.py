"""The `t2g` command: what a command line asks for is done, and becomes an exit status."""

import argparse
import dataclasses
import errno
import gc
import hashlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from t2g_jax.commands import COMMANDS, EXAMPLE_CONFIG, parsers, require_method
from t2g_jax.config import (
    Config,
    installed_methods,
    knowing_those_of,
    load_config,
    print_options,
)
from t2g_jax.config.base import read_yaml
from t2g_jax.errors import EXIT_USER_ERROR, ConfigError, T2GError
from t2g_jax.printing import one_line, show_error, tell
from t2g_jax.runtime import files, streams

EXIT_INTERRUPTED = 130

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_PATHS = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY}
_PATHS |= {errno.ENAMETOOLONG, errno.ELOOP}

_OF_A_RUN = {field.name for field in dataclasses.fields(Config)} - {"name"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0: done. 2: something the user gave cannot be used, or a disk cannot be written to; one line
    says what (`T2G_DEBUG=1` adds the traceback). 75: SIGTERM came, as when a machine is about to be
    taken away; the step under way was finished and saved, and launchers run the same command again.
    70: no progress for long (`training.watchdog_minutes`), or another process of the run is gone.
    130: interrupted (Ctrl-C), nothing was saved that was not before. A second signal ends the
    process at once; whatever ends it, the same command goes on from the last checkpoint.

    One of several processes (see `hosts.initialize`) ends here rather than return.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    streams.prepare()
    # Imports and tracing make hundreds of thousands of objects that stay: to look through them for
    # garbage every 700 takes a fifth of a start.
    gc.set_threshold(100_000, 50, 100)
    # Only its tokenizers are used; it need not say that PyTorch is missing.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.excepthook = show_error
    from t2g_jax.runtime import hosts

    try:
        return hosts.leave(_status_of(arguments))
    except Exception:
        if hosts.joined():  # the interpreter's own way out would wait for the others
            show_error(*sys.exc_info())
            hosts.leave(1)
        raise


def _status_of(arguments: Sequence[str]) -> int:
    from t2g_jax.runtime import hosts
    from t2g_jax.runtime.preemption import EXIT_PREEMPTED, Preempted, watched

    try:
        with watched():
            _dispatch(arguments)
            sys.stdout.flush()
    except Preempted:
        tell(f"t2g: stopped by SIGTERM; the same command {_next_time(arguments)}")
        return EXIT_PREEMPTED
    except T2GError as error:
        if hosts.lost_another(error):
            return _lost()
        if os.environ.get("T2G_DEBUG") == "1":
            raise
        tell("t2g: " + str(error).replace("\n", "\n     "))  # one line for each problem
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        tell(f"\nt2g: interrupted; the same command {_next_time(arguments)}")
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in _DISK | _PATHS or os.environ.get("T2G_DEBUG") == "1":
            raise
        if error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the rest of it fails on the way out
        what = error.filename or "the standard output"
        tell(f"t2g: {what}: {error.strerror}; make room there, or give another")
        return EXIT_USER_ERROR
    except Exception as error:
        if not hosts.lost_another(error):
            raise
        return _lost()
    return 0


def _next_time(arguments: Sequence[str]) -> str:
    """What the command that was stopped does when it is given again."""
    name = next((word for word in arguments if word in COMMANDS), None)
    return "begins anew" if name and not COMMANDS[name].goes_on else "goes on from here"


def _lost() -> int:
    from t2g_jax.runtime.hosts import EXIT_LOST

    show_error(*sys.exc_info())
    tell("t2g: another process of this run is gone; its log says why")
    return EXIT_LOST


def _dispatch(arguments: Sequence[str]) -> None:
    if "--" in arguments:
        raise T2GError("command line: `--` stands for nothing here; overrides look like `--seed 1`")
    parser, subparsers = parsers()
    known, overrides = parser.parse_known_args(arguments)
    for name, value in vars(known).items():
        if isinstance(value, pathlib.Path):
            setattr(known, name, files.expanded(value))
    if known.command is None:
        parser.print_help()
        return
    subparser = subparsers[known.command]
    if known.command == "study":
        _study(subparser, known, overrides)
        return
    if known.config is None and not known.help:
        subparser.error(f"name a configuration file, e.g. {EXAMPLE_CONFIG}")
    folder = None
    if known.config:
        if overrides and not known.config.exists():
            _require_first(known.config, overrides, known.command)
        known.config, folder = _file_and_run(known.config)
    config = _load(known.config, overrides, _methods_named(known)) if known.config else None
    if known.help:
        subparser.print_help()
        if config:
            print()
            print_options(config)
        return
    require_method(config, known)
    workdir = known.workdir or folder or pathlib.Path("runs") / config.name
    if known.command == "plan":  # trains nothing, and the devices are not those of this machine
        COMMANDS["plan"].action(config, workdir, known)
        return
    if known.command != "import" and (workdir / "config.yaml").is_file():
        config = knowing_those_of(config, load_config(workdir / "config.yaml"))
    from t2g_jax.runtime import hosts
    from t2g_jax.runtime.compilation_cache import use_compilation_cache
    from t2g_jax.runtime.watchdog import watching

    use_compilation_cache()
    hosts.initialize()
    if hosts.several():
        hosts.require_alike(_asked(known, config))
    try:
        if known.accept_changes and known.command != "import":
            from t2g_jax.run.acceptance import accept

            accept(config, workdir, _trained(known, config))
        with watching(config.training.watchdog_minutes, workdir):
            COMMANDS[known.command].action(config, workdir, known)
    except OSError as error:
        if error.errno in _DISK:
            raise T2GError(
                f"{error.filename or workdir}: {error.strerror}; make room there, or permit it, "
                "then run the same command again: it goes on from here"
            ) from error
        raise


def _methods_named(known: argparse.Namespace) -> list[str]:
    """Methods that a command line speaks of outside of the config; for its help, all there are."""
    if known.help:
        usable, problems = installed_methods()
        for problem in problems:
            tell(f"t2g: warning: {one_line(problem)}")
        return usable
    named = (getattr(known, option, None) for option in ("method", "only"))
    return [name for name in named if name is not None]


def _load(path: pathlib.Path, overrides: Sequence[str], methods: Sequence[str]) -> Config:
    try:
        return load_config(path, overrides, methods=methods)
    except ConfigError as error:
        if _describes(path, "seeds", "tasks", "arms"):
            raise T2GError(f"{path} describes a study; use `t2g study {path}`") from error
        raise


def _require_first(path: pathlib.Path, overrides: Sequence[str], command: str) -> None:
    """Raises T2GError if an option's value was taken for the file, which comes after it."""
    option, last = overrides[0], overrides[-1]
    if option.startswith("--") and pathlib.Path(last).exists():
        raise T2GError(
            f"{path} is no file, and {last} comes too late: name it before all options, as in "
            f"`t2g {command} {last} {option} …`"
        )


def _describes(path: pathlib.Path, *keys: str) -> bool:
    """Whether a file says one of these at the top."""
    try:
        return not read_yaml(path).keys().isdisjoint(keys)
    except ConfigError:
        return False


def _file_and_run(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The configuration file that is meant, and the work folder, if it is that of a run.

    Raises:
      T2GError: it is a folder, but not that of a run.
    """
    if not path.is_dir() and path.name != "config.yaml":
        return path, None
    from t2g_jax.run.workspace import is_run

    if not path.is_dir():
        return path, path.parent if is_run(path.parent) else None
    if (path / "config.yaml").exists():
        return path / "config.yaml", path
    if is_run(inside := path.resolve().parent):
        raise T2GError(f"{path} is a part of the run {inside}; name that, and a policy by --method")
    raise T2GError(
        f"{path} is no run: it has no config.yaml; name a configuration file, e.g. "
        f"{EXAMPLE_CONFIG}, or the work folder of a run"
    )


def _asked(known: argparse.Namespace, config: Config) -> dict[str, Any]:
    """What every process of a run must have in common, by name."""
    import jax

    from t2g_jax.config.base import values
    from t2g_jax.version import __version__

    code = hashlib.sha256()
    for file in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    versions = {"t2g_jax": f"{__version__} ({code.hexdigest()[:8]})", "jax": jax.__version__}
    local = {"config", "workdir", "to"}  # paths may differ from machine to machine
    options = {name: value for name, value in vars(known).items() if name not in local}
    for name, method in config.outside.items():
        file = getattr(sys.modules[method.__module__], "__file__", None)
        digest = hashlib.sha256(pathlib.Path(file).read_bytes() if file else b"").hexdigest()[:8]
        versions[f"method {name}"] = f"{method.__module__} ({digest})"
    return versions | options | values(config)


def _trained(known: argparse.Namespace, config: Config) -> tuple[str, ...]:
    """The methods that a command trains."""
    if known.command == "train-policy" and known.method is not None:
        return (known.method,)
    return config.methods if known.command == "run" else ()


def _study(
    subparser: argparse.ArgumentParser, known: argparse.Namespace, rest: Sequence[str]
) -> None:
    if known.help:
        subparser.print_help()
        return
    if known.config is None:
        subparser.error("name the file of a study, e.g. configs/study/puzzles.yaml")
    if rest:
        raise T2GError(f"t2g study has no option `{rest[0]}`; what cells are, only the file says")
    from t2g_jax.study import command, plan

    try:
        study = plan.load_study(known.config)
    except ConfigError as error:
        if _describes(known.config, "arms") or not _describes(known.config, *_OF_A_RUN):
            raise
        raise T2GError(
            f"{known.config} is the configuration of one run; use `t2g run {known.config}`"
        ) from error
    root = known.workdir or pathlib.Path("runs") / study.file.name
    command.run(study, root, at_once=known.jobs, report_only=known.report_only)

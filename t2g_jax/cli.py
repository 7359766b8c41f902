"""The `t2g` command: one subcommand for each phase, and `run` for all of them."""

import argparse
import dataclasses
import errno
import gc
import hashlib
import os
import pathlib
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from t2g_jax.config import METHODS, Config, Method, load_config, print_options
from t2g_jax.errors import ConfigError, T2GError
from t2g_jax.printing import one_line, show_error, tell
from t2g_jax.runtime import files, streams
from t2g_jax.sections import read_yaml

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_PATHS = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY}
_PATHS |= {errno.ENAMETOOLONG, errno.ELOOP}

_DESCRIPTION = """\
Reinforcement learning from text feedback. Start here:

  t2g run configs/quickstart.yaml     all phases; then open runs/quickstart/report.html

Every command takes a configuration file and keeps its results in a work folder; or it takes the
work folder of a run, which has its configuration: `t2g report runs/quickstart`. A command that was
stopped goes on where it was when started again; a finished one is not repeated.
"""

_OVERRIDES = """\
Any value of the configuration can be changed for one run, by its path in the file:

  t2g {command} {config} --workdir runs/wide --seed 1 --model.width 256

`t2g {command} {config} --help` lists them all, with the values they have in that file.
In place of the file there may be the work folder of a run: its own configuration, and no --workdir.

A work folder belongs to one configuration: give a changed one a --workdir of its own, or go on
with --accept-changes; what is complete stays as it is. What changes nothing that is learned may
differ from command to command: evaluate, checkpoint, training, tracking, limits of the judge,
task.test_size, rows_at_once, eval_every, methods and name; and to generate, evaluate or export,
sampling, judge, seed, mesh and model.attention, too.
"""

_STUDY = """\
Compare methods on several tasks and seeds, at equal numbers of generated tokens.

  reads  the file of a study: tasks, seeds, and arms, which are methods with their settings
  writes a work folder for each task, seed and arm; then, from what they measured, the page of
         results that the file names, with its figures

A study that was stopped goes on where it was when started again. A cell that fails leaves its log
behind and stops no other; starting again tries it again.
"""

_EXAMPLE_CONFIG = "configs/quickstart.yaml"
_OF_A_RUN = {field.name for field in dataclasses.fields(Config)} - {"name"}


class _Command(NamedTuple):
    """One subcommand: what it says about itself, and the function that does the work."""

    summary: str
    reads: str
    writes: str
    action: Callable[[Config, pathlib.Path, argparse.Namespace], None]
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    goes_on: bool = True
    """Whether one that was stopped goes on where it was; else it begins anew."""


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
    name = next((word for word in arguments if word in _COMMANDS), None)
    return "begins anew" if name and not _COMMANDS[name].goes_on else "goes on from here"


def _lost() -> int:
    from t2g_jax.runtime.hosts import EXIT_LOST

    show_error(*sys.exc_info())
    tell("t2g: another process of this run is gone; its log says why")
    return EXIT_LOST


def _dispatch(arguments: Sequence[str]) -> None:
    if "--" in arguments:
        raise T2GError("command line: `--` stands for nothing here; overrides look like `--seed 1`")
    parser, subparsers = _parsers()
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
        subparser.error(f"name a configuration file, e.g. {_EXAMPLE_CONFIG}")
    folder = None
    if known.config:
        if overrides and not known.config.exists():
            _require_first(known.config, overrides, known.command)
        known.config, folder = _file_and_run(known.config)
    config = _load(known.config, overrides) if known.config else None
    if known.help or config is None:
        _print_help(subparser, config)
        return
    workdir = known.workdir or folder or pathlib.Path("runs") / config.name
    if known.command == "plan":  # trains nothing, and the devices are not those of this machine
        _COMMANDS["plan"].action(config, workdir, known)
        return
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
            _COMMANDS[known.command].action(config, workdir, known)
    except OSError as error:
        if error.errno in _DISK:
            raise T2GError(
                f"{error.filename or workdir}: {error.strerror}; make room there, or permit it, "
                "then run the same command again: it goes on from here"
            ) from error
        raise


def _load(path: pathlib.Path, overrides: Sequence[str]) -> Config:
    try:
        return load_config(path, overrides)
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


def _path(word: str) -> pathlib.Path:
    """A path that a user gives; as of an empty variable of a shell it would be the folder here."""
    if not word:
        raise argparse.ArgumentTypeError("it is empty; name a file or folder")
    return pathlib.Path(word)


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
        f"{_EXAMPLE_CONFIG}, or the work folder of a run"
    )


def _asked(known: argparse.Namespace, config: Config) -> dict[str, Any]:
    """What every process of a run must have in common, by name."""
    import jax

    from t2g_jax import __version__
    from t2g_jax.sections import values

    code = hashlib.sha256()
    for file in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    versions = {"t2g_jax": f"{__version__} ({code.hexdigest()[:8]})", "jax": jax.__version__}
    local = {"config", "workdir", "to"}  # paths may differ from machine to machine
    options = {name: value for name, value in vars(known).items() if name not in local}
    return versions | options | values(config)


def _trained(known: argparse.Namespace, config: Config) -> tuple[Method, ...]:
    """The methods that a command trains."""
    if known.command == "train-policy" and known.method is not None:
        return (known.method,)
    return config.methods if known.command == "run" else ()


def _print_help(subparser: argparse.ArgumentParser, config: Config | None) -> None:
    subparser.print_help()
    if config:
        print()
        print_options(config)


class _Once(argparse.Action):
    """Keeps an option's value; a second one is an error, not its successor."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, None)
        if option_string and before is not None:
            raise argparse.ArgumentError(
                self, f"given twice, as {one_line(before)} and as {one_line(values)}; leave one out"
            )
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """One whose errors are a line, as all errors here, and whose options are given once."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.register("action", None, _Once)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER_ERROR, f"t2g: {message}; `{self.prog} --help` says more\n")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    from t2g_jax import __version__

    parser = _Parser(
        prog="t2g",
        description=_DESCRIPTION,
        epilog="`t2g COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"t2g_jax {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands, phases in the order `run` runs them"
    )
    subparsers: dict[str, argparse.ArgumentParser] = {}
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.summary,
            description=_describe(command),
            epilog=_OVERRIDES.format(command=name, config=_EXAMPLE_CONFIG),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=f"t2g {name} CONFIG|RUN [--workdir DIR] [--a.b VALUE ...]",
            allow_abbrev=False,
            add_help=False,
        )
        _add_what_all_take(
            subparser,
            metavar="CONFIG",
            config="a YAML file, or the work folder of a run",
            workdir="where artifacts are read and written (the work folder given as CONFIG; or "
            "runs/NAME, NAME being the config's name)",
            page="this page; with CONFIG, all its values too",
        )
        subparser.add_argument(
            "--accept-changes",
            action="store_true",
            help="go on in DIR with values that differ from those it began with",
        )
        if command.arguments:
            command.arguments(subparser)
        subparsers[name] = subparser
    subparsers["study"] = _add_study(commands)
    return parser, subparsers


def _add_study(commands: Any) -> argparse.ArgumentParser:
    study = commands.add_parser(
        "study",
        help="compare methods on several tasks and seeds, at equal numbers of generated tokens",
        description=_STUDY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="t2g study FILE [--jobs N] [--report-only] [--workdir DIR]",
        allow_abbrev=False,
        add_help=False,
    )
    _add_what_all_take(
        study,
        metavar="FILE",
        config="a YAML file of configs/study/",
        workdir="where cells are kept (runs/NAME, NAME being the study's name)",
        page="this page",
    )
    study.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="processes at a time (one for each core, at most 8; 1 where there is an accelerator)",
    )
    study.add_argument(
        "--report-only", action="store_true", help="train nothing, only write the results"
    )
    return study


def _add_what_all_take(
    parser: argparse.ArgumentParser, *, metavar: str, config: str, workdir: str, page: str
) -> None:
    """The file that a command is about, its work folder and `--help`, each with its help."""
    parser.add_argument("config", nargs="?", type=_path, metavar=metavar, help=config)
    parser.add_argument("--workdir", type=_path, metavar="DIR", help=workdir)
    parser.add_argument("-h", "--help", action="store_true", help=page)


def _positive(word: str) -> int:
    if not (word.isascii() and word.isdigit() and int(word)):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 1, e.g. 2")
    return int(word)


def _describe(command: _Command) -> str:
    lines = [f"{command.summary[0].upper()}{command.summary[1:]}.", ""]
    for label, text in (("reads", command.reads), ("writes", command.writes)):
        lines.append(
            textwrap.fill(text, 98, initial_indent=f"  {label:7}", subsequent_indent=" " * 9)
        )
    return "\n".join(lines)


# --- Commands. What they need is imported when they run, so that `--help` is quick. -----------


def _study(
    subparser: argparse.ArgumentParser, known: argparse.Namespace, rest: Sequence[str]
) -> None:
    if known.help:
        _print_help(subparser, None)
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


def _run(config: Config, workdir: pathlib.Path, _: argparse.Namespace) -> None:
    from t2g_jax.phases import pipeline

    pipeline.run(config, workdir)


def _sft(config: Config, workdir: pathlib.Path, _: argparse.Namespace) -> None:
    from t2g_jax.phases import sft

    sft.run(config, workdir)


def _annotate(config: Config, workdir: pathlib.Path, _: argparse.Namespace) -> None:
    from t2g_jax.phases import annotate

    annotate.run(config, workdir)


def _train_rm(config: Config, workdir: pathlib.Path, _: argparse.Namespace) -> None:
    from t2g_jax.phases import reward_model

    reward_model.run(config, workdir)


def _train_policy(config: Config, workdir: pathlib.Path, known: argparse.Namespace) -> None:
    from t2g_jax.phases import policy

    if known.method is None:
        raise T2GError(f"train-policy needs --method: one of {', '.join(METHODS)}")
    policy.run(config, workdir, known.method)


def _evaluate(config: Config, workdir: pathlib.Path, _: argparse.Namespace) -> None:
    from t2g_jax.phases import evaluate

    evaluate.run(config, workdir)


def _generate(config: Config, workdir: pathlib.Path, known: argparse.Namespace) -> None:
    from t2g_jax.phases import generate

    given = {"prompts_file": known.prompts_file, "samples": known.samples, "as_json": known.json}
    options = {name: value for name, value in given.items() if value not in (None, False)}
    method = known.method or config.methods[0]
    generate.run(config, workdir, method, known.prompt, **options)


def _import(config: Config, workdir: pathlib.Path, _: argparse.Namespace) -> None:
    from t2g_jax.phases import export

    del workdir
    export.inspect_pretrained(config)


def _export(config: Config, workdir: pathlib.Path, known: argparse.Namespace) -> None:
    from t2g_jax.phases import export

    if known.to is None:
        raise T2GError("export needs --to: the folder to write")
    phase = (known.method or config.methods[0]).replace("reward-model", "reward_model")
    export.run(config, workdir, phase, known.to, dtype=known.dtype, adapters=known.adapters)


def _plan(config: Config, _: pathlib.Path, known: argparse.Namespace) -> None:
    from t2g_jax.plan import command

    if known.topology is None:
        raise T2GError("plan needs --topology: what to plan for, e.g. v5e-16 or h200-8")
    command.run(config, known.topology, only=known.only, json_file=known.json)


def _report(config: Config, workdir: pathlib.Path, _: argparse.Namespace) -> None:
    from t2g_jax.phases import reporting

    reporting.run(config, workdir)


def _policy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "t2g train-policy CONFIG|RUN --method METHOD [--workdir DIR] [--a.b VALUE ...]"
    parser.add_argument("--method", choices=METHODS, help="how the policy learns")


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    from t2g_jax.plan.topologies import NAMING

    parser.usage = "t2g plan CONFIG --topology NAME [--only PHASE] [--json FILE] [--a.b VALUE ...]"
    parser.description = f"{parser.description}\n\n{NAMING}"
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="v5e-16, v6e-8, v4-64, v5p-64 and other TPU slices; h200-8, h100-8, b200-8 and other "
        "GPUs",
    )
    parser.add_argument(
        "--only", metavar="PHASE", help="sft, annotate, reward_model, evaluate or a method (all)"
    )
    parser.add_argument("--json", type=_path, metavar="FILE", help="write the plan there, too")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "t2g export CONFIG|RUN --to FOLDER [--method METHOD] [--adapters] [--dtype TYPE] […]"
    )
    parser.add_argument("--to", type=_path, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--method",
        choices=("sft", "reward-model", *METHODS),
        help="whose parameters (those of the first of the config's methods)",
    )
    parser.add_argument(
        "--adapters", action="store_true", help="low-rank adapters alone, in peft's format"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of the tensors (that of the pretrained model; without one, float32)",
    )


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "t2g generate CONFIG|RUN [--method METHOD] [--prompt TEXT | --prompts-file FILE] "
        "[--samples N] [--json] [--workdir DIR] [--a.b …]"
    )
    parser.add_argument(
        "--method",
        choices=("sft", *METHODS),
        help="whose policy answers (the first of the config's methods)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="what to answer (a few test examples)")
    parser.add_argument(
        "--prompts-file",
        type=_path,
        metavar="FILE",
        help='what to answer, one prompt a line; or JSON lines with "prompt" in each',
    )
    parser.add_argument(
        "--samples", type=_positive, metavar="N", help="completions for each prompt (1)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object a completion: prompt, completion, tokens, their rewards, …",
    )


_COMMANDS = {
    "run": _Command(
        "all phases, from an untrained model to a report",
        "the configuration",
        "everything below; open report.html when it is done",
        _run,
    ),
    "sft": _Command(
        "teach an untrained model the task's format from demonstrations",
        "the configuration",
        "tokenizer/, and sft/: the policy that all methods start from",
        _sft,
    ),
    "annotate": _Command(
        "sample completions and have the judge critique them",
        "sft/",
        "annotate/dataset/: completions, critiques, and the spans they praise or blame; "
        "quarantine.jsonl beside it says what could not be used, and why",
        _annotate,
    ),
    "train-rm": _Command(
        "train the span-reward model on the critiques",
        "sft/ and annotate/dataset/",
        "reward_model/: the model, and how well it marks spans it has not seen",
        _train_rm,
    ),
    "train-policy": _Command(
        "train the policy by one method",
        "sft/; for text2grad reward_model/ too",
        "text2grad/, rltf_sd/ or grpo/: the policy, metrics.jsonl, and samples",
        _train_policy,
        _policy_arguments,
    ),
    "evaluate": _Command(
        "measure single-turn accuracy of every trained policy on the test examples",
        "the policies",
        "evaluation.json beside each: accuracy, uncertainty, the floor of what solves nothing",
        _evaluate,
    ),
    "report": _Command(
        "put everything in the work folder into one page",
        "metrics, samples and evaluations",
        "report.html: curves, tables and token heat maps; needs no network to open",
        _report,
        goes_on=False,
    ),
    "import": _Command(
        "fetch the pretrained model, and check that it can be used",
        "model.pretrained",
        "nothing: the weights stay where they are, and phases read them there",
        _import,
        goes_on=False,
    ),
    "export": _Command(
        "write a trained model as a Hugging Face folder",
        "a policy, or the reward model",
        "config, tokenizer, chat template, safetensors and a model card, as `transformers`, vLLM "
        "and others read them",
        _export,
        _export_arguments,
        goes_on=False,
    ),
    "plan": _Command(
        "say what a run needs on TPUs or GPUs that need not be here",
        "the configuration; of model.pretrained only config.json",
        "nothing but a table: memory, FLOPs, traffic and time of every step function",
        _plan,
        _plan_arguments,
        goes_on=False,
    ),
    "generate": _Command(
        "let a trained policy answer, and print what it says",
        "a policy",
        "nothing",
        _generate,
        _generate_arguments,
        goes_on=False,
    ),
}

"""The commands of `t2g`: what each says of itself, what it takes, and the function it calls.

What a command needs is imported when it runs, so that `--help` is quick.
"""

import argparse
import importlib
import pathlib
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from t2g_jax import plugins
from t2g_jax.config import METHODS, Config
from t2g_jax.errors import EXIT_USER_ERROR, T2GError
from t2g_jax.printing import one_line

EXAMPLE_CONFIG = "configs/quickstart.yaml"

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


class Command(NamedTuple):
    """One subcommand: what it says about itself, and the function that does the work."""

    summary: str
    reads: str
    writes: str
    action: Callable[[Config, pathlib.Path, argparse.Namespace], None]
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    goes_on: bool = True
    """Whether one that was stopped goes on where it was; else it begins anew."""


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


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    from t2g_jax.version import __version__

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
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.summary,
            description=_describe(command),
            epilog=_OVERRIDES.format(command=name, config=EXAMPLE_CONFIG),
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


def _path(word: str) -> pathlib.Path:
    """A path that a user gives; as of an empty variable of a shell it would be the folder here."""
    if not word:
        raise argparse.ArgumentTypeError("it is empty; name a file or folder")
    return pathlib.Path(word)


def _positive(word: str) -> int:
    if not (word.isascii() and word.isdigit() and int(word)):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 1, e.g. 2")
    return int(word)


def _describe(command: Command) -> str:
    lines = [f"{command.summary[0].upper()}{command.summary[1:]}.", ""]
    for label, text in (("reads", command.reads), ("writes", command.writes)):
        lines.append(
            textwrap.fill(text, 98, initial_indent=f"  {label:7}", subsequent_indent=" " * 9)
        )
    return "\n".join(lines)


# --- What they do ----------------------------------------------------------------------------


def _phase(name: str) -> Callable[[Config, pathlib.Path, argparse.Namespace], None]:
    """Runs a module of `phases`."""

    def action(config: Config, workdir: pathlib.Path, _: argparse.Namespace) -> None:
        importlib.import_module(f"t2g_jax.phases.{name}").run(config, workdir)

    return action


def _train_policy(config: Config, workdir: pathlib.Path, known: argparse.Namespace) -> None:
    from t2g_jax.phases import policy

    if known.method is None:
        raise T2GError(f"train-policy needs --method: one of {', '.join(config.known_methods)}")
    policy.run(config, workdir, known.method)


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


def _policy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "t2g train-policy CONFIG|RUN --method METHOD [--workdir DIR] [--a.b VALUE ...]"
    _add_method(parser, "how the policy learns")


def _add_method(parser: argparse.ArgumentParser, meaning: str, *others: str) -> None:
    """`--method`, and what it may be of ours and of installed packages; see `require_method`."""
    words = ", ".join((*others, *METHODS, *plugins.names(plugins.METHODS)))
    parser.set_defaults(other_methods=others)
    parser.add_argument("--method", metavar="METHOD", help=f"{meaning}: {words}")


def require_method(config: Config, known: argparse.Namespace) -> None:
    """Checks that a command line names a method of the config, or what else its command takes.

    Raises:
      T2GError: it does not.
    """
    method = getattr(known, "method", None)
    choices = (*getattr(known, "other_methods", ()), *config.known_methods)
    if method is not None and method not in choices:
        raise T2GError(
            f"--method: invalid choice: {method!r}; "
            f"{plugins.choice(plugins.METHODS, method, choices)}"
        )


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
    _add_method(parser, "whose (those of the first of the config's methods)", "sft", "reward-model")
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
    _add_method(parser, "whose policy answers (the first of the config's methods)", "sft")
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


COMMANDS = {
    "run": Command(
        "all phases, from an untrained model to a report",
        "the configuration",
        "everything below; open report.html when it is done",
        _phase("pipeline"),
    ),
    "sft": Command(
        "teach an untrained model the task's format from demonstrations",
        "the configuration",
        "tokenizer/, and sft/: the policy that all methods start from",
        _phase("sft"),
    ),
    "annotate": Command(
        "sample completions and have the judge critique them",
        "sft/",
        "annotate/dataset/: completions, critiques, and the spans they praise or blame; "
        "quarantine.jsonl beside it says what could not be used, and why",
        _phase("annotate"),
    ),
    "train-rm": Command(
        "train the span-reward model on the critiques",
        "sft/ and annotate/dataset/",
        "reward_model/: the model, and how well it marks spans it has not seen",
        _phase("reward_model"),
    ),
    "train-policy": Command(
        "train the policy by one method",
        "sft/; for text2grad reward_model/ too",
        "text2grad/, rltf_sd/ or grpo/: the policy, metrics.jsonl, and samples",
        _train_policy,
        _policy_arguments,
    ),
    "evaluate": Command(
        "measure single-turn accuracy of every trained policy on the test examples",
        "the policies",
        "evaluation.json beside each: accuracy, uncertainty, the floor of what solves nothing",
        _phase("evaluate"),
    ),
    "report": Command(
        "put everything in the work folder into one page",
        "metrics, samples and evaluations",
        "report.html: curves, tables and token heat maps; needs no network to open",
        _phase("reporting"),
        goes_on=False,
    ),
    "import": Command(
        "fetch the pretrained model, and check that it can be used",
        "model.pretrained",
        "nothing: the weights stay where they are, and phases read them there",
        _import,
        goes_on=False,
    ),
    "export": Command(
        "write a trained model as a Hugging Face folder",
        "a policy, or the reward model",
        "config, tokenizer, chat template, safetensors and a model card, as `transformers`, vLLM "
        "and others read them",
        _export,
        _export_arguments,
        goes_on=False,
    ),
    "plan": Command(
        "say what a run needs on TPUs or GPUs that need not be here",
        "the configuration; of model.pretrained only config.json",
        "nothing but a table: memory, FLOPs, traffic and time of every step function",
        _plan,
        _plan_arguments,
        goes_on=False,
    ),
    "generate": Command(
        "let a trained policy answer, and print what it says",
        "a policy",
        "nothing",
        _generate,
        _generate_arguments,
        goes_on=False,
    ),
}

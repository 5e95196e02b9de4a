"""The command line: budgetcl run · list · price · tune · report · score · blind · data."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import budgetcl
from budgetcl.errors import UserError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

_HELP = {
    "run": """run one experiment, or with -m several (hydra):
  budgetcl run stream=uploads method=er seed=0
  budgetcl run -m method=naive,kd_mse 'seed=range(0,5)'
  budgetcl run -m method=naive,kd_mse seed=0,1 hydra/launcher=joblib_2     two at once; also slurm
  budgetcl run stream=table stream.path=photos.csv
  torchrun --nproc-per-node 8 -m budgetcl run stream=imagenet2k_ci stream.path=...     one run on eight GPUs
  budgetcl run --config-dir my_conf sampler=mine method.name=mine
what is finished is not run again (rerun=true does): a sweep that was stopped goes on with the same command
""",
    "price": "budgetcl price stream=glyphs method=naive,kd_mse [overrides]",
    "tune": """choose a learning rate and a method's own knobs, on seeds and data that no reported number comes from:
  budgetcl tune method=naive,kd_mse stream=glyphs [trials=8] [seeds=100,101] [rates=0.01,0.1] [metric=...] [overrides]
every method has the same number of trials; what they cost is said; trials that are finished are not run again
""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 if some of several runs failed, 2 for bad input (one line says what mends it), 130 after
        Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(given)
    except UserError as error:
        _complain(str(error))
        return 2
    except BrokenPipeError:  # whoever read our output has gone (budgetcl list methods | head -1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        _complain(f"{error.strerror or error}: {error.filename or 'disk'}")
        return 2
    except KeyboardInterrupt:
        record = "; a record that was begun is readable and says that it is unfinished"
        print(f"budgetcl: stopped{record if given[:1] in (['run'], ['tune']) else ''}", file=sys.stderr)
        return 130


def command() -> NoReturn:
    """Be the command ``budgetcl``: run it and end the process.

    ``price`` is to answer at once, and holds nothing that had to be concluded: it does without collecting garbage and
    without taking torch down, which together take longer than a method's price.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a label that a terminal cannot show stops nothing
    brief = sys.argv[1:2] == ["price"]
    if brief:
        gc.disable()
    status = main()
    if brief:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def _complain(text: str) -> None:
    print(f"budgetcl: {' '.join(text.split())}", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    """Refuses bad arguments in one line, like everything else here."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _dispatch(given: list[str]) -> int:
    if given[:1] != ["run"] or {"-m", "--multirun"} & set(given):
        _alone_only(given)
    parser = _Parser(prog="budgetcl", description="Continual learning under an enforced compute budget.")
    parser.add_argument("--version", action="version", version=f"budgetcl {budgetcl.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    commands.add_parser("run", help="run an experiment (hydra overrides; -m for several)", add_help=False)
    commands.add_parser(
        "price", help="what methods would cost and how often they may update; trains nothing", add_help=False
    )
    commands.add_parser("tune", help="choose learning rates and knobs, every method in as many trials", add_help=False)
    listing = commands.add_parser("list", help="list methods, streams, samplers, ...")
    listing.add_argument("group", nargs="?", help="methods, streams, samplers, objectives, ...; without: the groups")
    listing.add_argument("--config-dir", help="a folder with your own configuration")
    report = commands.add_parser("report", help="make a page, tables and plots of records")
    report.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folders with records")
    report.add_argument("--out", type=Path, help="where to write (default: the first PATH)")
    score = commands.add_parser("score", help="all metrics of a prediction log from anywhere")
    blind = commands.add_parser("blind", help="what a label sequence gives away without images")
    if given and given[0] in ("score", "blind"):  # their arguments are read where they are written
        from budgetcl.report import blind as blind_command
        from budgetcl.report import score as score_command

        score_command.add_arguments(score)
        blind_command.add_arguments(blind)
    data = commands.add_parser("data", help="check your own pictures before a run")
    if given[:1] == ["data"]:
        _add_data_commands(data)
    if given and given[0] in _HELP:
        if {"-h", "--help"} & set(given[1:]):
            print(_HELP[given[0]])
            return 0
        return {"run": _run, "price": _price, "tune": _tune}[given[0]](given[1:])
    options = parser.parse_args(given)
    if options.command == "list":
        return _list(options.group, options.config_dir)
    if options.command == "report":
        from budgetcl.report.page import report as make_report

        make_report(options.paths, options.out)
        return 0
    if options.command == "score":
        return int(score_command.main(options))
    if options.command == "data":
        return int(options.main(options))
    return int(blind_command.main(options))


def _alone_only(given: Sequence[str]) -> None:
    """Refuse several processes to whatever is not one run."""
    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(
            f"WORLD_SIZE={processes} is set, as torchrun does: several processes make one run together, with budgetcl "
            f"run and without -m; 'budgetcl {' '.join(given)}' takes one process"
        )


def _add_data_commands(parser: argparse.ArgumentParser) -> None:
    """Declare what `budgetcl data` does; each command reads its arguments in its own module."""
    from budgetcl.data import check, pack

    commands = parser.add_subparsers(dest="data_command", metavar="command", required=True)
    for name, module, text in (
        ("check", check, "files, labels, times and leaks of a table or an image folder"),
        ("pack", pack, "shrink the pictures and write them into a few large files that are read fast"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(main=module.main)


# --- run --------------------------------------------------------------------------------------------------------


def _run(arguments: list[str]) -> int:
    from budgetcl.budget.ranks import leave
    from budgetcl.configuration import compose, searched
    from budgetcl.run import execute

    arguments = [part for argument in arguments for part in _separated(argument)]
    with _one_line_errors(arguments):
        if any(argument.startswith("-") and argument not in ("--config-dir", "-cd") for argument in arguments):
            return _hydra(arguments)
        execute(compose(arguments), searched(arguments), several=False)
        leave()
    return 0


def _separated(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith(("--config-dir=", "-cd=")) else [argument]


def _hydra(arguments: list[str]) -> int:
    """Make several runs (-m), or hand over to hydra for its own flags (--cfg job, --info, ...)."""
    from hydra._internal.utils import get_args_parser

    from budgetcl.configuration import conf_folder
    from budgetcl.sweep import sweep

    flags = get_args_parser()
    flags.error = _refuse_flag  # type: ignore[method-assign]
    options = vars(flags.parse_intermixed_args(arguments))
    overrides, folder = options["overrides"], options["config_dir"]
    if options["multirun"]:
        for flag in options.keys() - {"multirun", "overrides", "config_dir"}:
            if options[flag]:
                raise UserError(f"-m and --{flag.replace('_', '-')} given; -m goes with key=value settings alone")
        return sweep([*overrides, *(["--config-dir", folder] if folder else [])])

    import hydra

    # Without this hydra prints a shortened traceback and exits by itself; here every error becomes one line.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["budgetcl", *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="run")(_alone)()
    return 0


def _alone(cfg: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    from budgetcl.budget.ranks import leave
    from budgetcl.run import execute

    execute(cfg, list(HydraConfig.get().overrides.task), several=False)
    leave()


def _refuse_flag(message: str) -> NoReturn:
    raise UserError(f"{message}; settings are given as key=value, see budgetcl run --help")


class _one_line_errors:
    """Turn hydra's and omegaconf's complaints into one line that names what is nearest."""

    def __init__(self, overrides: Sequence[str]) -> None:
        self._overrides = overrides

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        from hydra.errors import HydraException, MissingConfigException, OverrideParseException
        from omegaconf.errors import OmegaConfBaseException

        if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
            given = str(error.missing_cfg_file)
            group, _, name = given.rpartition("/")
            more = " (pip install 'budgetcl[sweep]' adds joblib and submitit)" if group == "hydra/launcher" else ""
            raise UserError(f"{group}={name} given; {nearest(name, error.options)}{more}") from None
        if isinstance(error, OverrideParseException):
            raise UserError(
                f"'{error.override}' given; key=value is expected, special characters in quotes: \"key='a, b!'\""
            ) from None
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            raise UserError(_said(error, self._overrides)) from None
        if isinstance(error, ValueError) and "Config group override" in str(error):  # hydra's, for stream=3
            raise UserError(f"{error}: give the name of a choice, see budgetcl list") from None


def _said(error: BaseException, overrides: Sequence[str]) -> str:
    text = " ".join(str(error).split())
    key = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct.*?full_key: (\S+)", text)
    if key:
        from budgetcl.configuration import known_keys

        given = key.group(1) or key.group(3)
        known = known_keys(overrides)
        same = [name for name in known if name.rpartition(".")[2] == given.rpartition(".")[2]]
        hint = f"did you mean '{same[0]}'?" if same else nearest(given, known)
        return f"no such key: {given}; {hint if hint.startswith('did') else 'see budgetcl run --cfg job'}"
    missing = re.search(r"full_key: (\S+)", text) or re.search(r"Missing (?:mandatory value:|key) (\S+)", text)
    if missing and "issing" in text:
        return f"{missing.group(1)} has no value: give {missing.group(1)}=..."
    return text


# --- price, tune, list -------------------------------------------------------------------------------------------


def _price(overrides: list[str]) -> int:
    from budgetcl.configuration import composed_beside

    with _one_line_errors(overrides), composed_beside(overrides) as configurations:
        from budgetcl.dry_run import price  # imports torch, which takes longest

        price(configurations())
    return 0


def _tune(arguments: list[str]) -> int:
    from budgetcl.tune_command import tune

    arguments = [part for argument in arguments for part in _separated(argument)]
    with _one_line_errors(arguments):
        return tune(arguments)


def _list(group: str | None, config_dir: str | None) -> int:
    from budgetcl.configuration import list_group

    list_group(group, config_dir)
    return 0


if __name__ == "__main__":
    command()

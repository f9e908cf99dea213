"""The command line: parse, call, print, exit. Nothing but this and `display` prints."""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from onnx_amc.claims import OWN, RESULTS, STDOUT, claim, filled, read_from, writable
from onnx_amc.errors import INTERRUPTED, AmcError, OptionError
from onnx_amc.files import json_text, write_text
from onnx_amc.options import parser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx_amc.config import Budget, Settings
    from onnx_amc.display import Display

DONE, FAULT = 0, 1
THEIRS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENAMETOOLONG, errno.EEXIST}
)
"""Errors of files that are for the user to mend."""

LESS = (
    "export the model with smaller inputs or a dynamic batch, give fewer samples, or run it where there is more memory"
)


def main(argv: Sequence[str] | None = None, loaded: Callable[[], None] = lambda: None) -> int:
    """Run one command; return 0 done, 2 input or options, 3 budget out of reach, 1 a fault of ours, 130 interrupted.

    Args:
        argv: What was typed; None for what the process was given.
        loaded: Called once the packages that a command needs are imported, and an interruption can be heard.

    """
    _open_three()
    sys.stdout, sys.stderr = (stream or _nowhere() for stream in (sys.stdout, sys.stderr))  # None where it is closed
    if not isinstance(sys.stderr, Heedless):
        sys.stderr = cast("TextIO", Heedless(sys.stderr))
    args = parser().parse_args(argv)
    args.begun, args.written = False, list[str]()
    args.typed = shlex.join(["onnx-amc", *(sys.argv[1:] if argv is None else argv)])
    if args.command is None and not args.version:
        parser().print_help()
        return OptionError.exit_code
    try:
        _called(args, loaded)
    except BrokenPipeError:  # whoever reads what is printed has read enough; all files are written by then
        _deafen(sys.stdout)
    except AmcError as error:
        print(f"onnx-amc: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        further = "; no model was written. The same command with --resume goes on" if args.begun else ""
        further = f" after {', '.join(args.written)} was written" if args.written else further
        print(f"onnx-amc: interrupted{further}", file=sys.stderr)
        return INTERRUPTED
    except Exception:  # noqa: BLE001  the last resort: say that it is our fault
        traceback.print_exc()
        print("onnx-amc: this is a fault of ours; please report it with the lines above", file=sys.stderr)
        return FAULT
    return DONE


class Heedless:
    """A stream that no run depends on: where it cannot be written any more, what is told there is lost.

    Args:
        stream: Where it goes as long as that can be written.

    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or give up."""
        return self._tried(lambda: self._stream.write(text)) or len(text)

    def flush(self) -> None:
        """Flush, or give up."""
        self._tried(self._stream.flush)

    def _tried(self, do: Callable[[], int | None]) -> int | None:
        try:
            return do()
        except OSError:  # a reader that has ended, a disk that is full
            _deafen(self._stream)
            return None


def _deafen(stream: TextIO) -> None:
    """Let all that is still to be written to a stream go nowhere, what it holds back for the end of the process too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_three() -> None:
    """Let the first three descriptors be open, as libraries trust: a file that got one's number would be written into by them."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def compress(args: argparse.Namespace) -> None:
    """`onnx-amc compress`."""
    if Path(args.model).is_dir():
        raise OptionError("is a folder", where=f"MODEL {args.model}", fix="name a file in it")
    out = Path(args.out) if args.out else Path(args.model).with_suffix(".amc.onnx")
    writable(out, "-o")
    folder = Path(args.run_dir) if args.run_dir else out.with_suffix(".run")
    writable(folder / "plan.json", "--run-dir")
    budgets = _budgets(args)
    beside, wanted = str(Path(args.model).with_suffix(".npz")), _places(args, out, budgets)
    given = {"MODEL": args.model, "the data beside MODEL": beside, "--agent": args.agent, **read_from(args)}
    own = [folder / name for name in OWN]
    if args.json and os.path.realpath(args.json) == os.path.realpath(folder / "record.json"):
        own.remove(folder / "record.json")  # which says the same
    claim(given, wanted | {"--json": args.json, "--save-agent": args.save_agent}, args.model, own)
    if os.path.realpath(folder) in {os.path.realpath(p) for p in (*wanted.values(), args.json) if p}:
        raise OptionError("is a file that is to be written", where=f"--run-dir {folder}", fix="give another name")
    if args.report:
        from onnx_amc.report import page  # noqa: PLC0415

        page.require()
    from onnx_amc.rundir import forget, held  # noqa: PLC0415

    with held(folder, resume=args.resume):
        args.begun = True
        _compress(args, out, folder, budgets)
        forget(folder)


def _places(args: argparse.Namespace, out: Path, budgets: Sequence[Budget]) -> dict[str, Path]:
    """Where the models and the pages of all budgets go, by option."""
    from onnx_amc.delivery import int8_beside  # noqa: PLC0415  keeps --help light

    found: dict[str, Path] = {}
    for budget in budgets:
        of = f" of {budget.ratio:g}" if len(budgets) > 1 else ""
        mine = _numbered(out, budget.ratio) if of else out
        found[f"-o{of}"] = mine
        if args.int8:
            found[f"--int8{of}"] = int8_beside(mine)
        if args.report:
            found[f"--report{of}"] = _numbered(Path(args.report), budget.ratio) if of else Path(args.report)
    return found


def _numbered(path: Path, ratio: float) -> Path:
    """A file's name for one of several budgets."""
    return path.with_stem(f"{path.stem}-{ratio:g}")


def _compress(args: argparse.Namespace, out: Path, folder: Path, budgets: Sequence[Budget]) -> None:
    """Compress to all budgets and write what comes of it."""
    settings = _settings(args, budgets[0])
    from onnx_amc import pipeline  # noqa: PLC0415

    with _display(args.json, quiet=args.quiet) as display:
        if len(budgets) == 1:
            results = [pipeline.compress(args.model, args.data, settings, display, folder, resume=args.resume)]
        else:
            results = pipeline.pareto(args.model, args.data, settings, budgets, display, folder, resume=args.resume)
    _clear(folder)
    places = list[tuple[Path, Path]]()
    for budget, result in zip(budgets, results, strict=True):
        mine, place = out, folder
        if len(budgets) > 1:
            mine, place = _numbered(out, budget.ratio), folder / f"{budget.ratio:g}"
        pipeline.deposit(result, mine, place, args.typed, timed=settings if args.report else None)
        args.written.append(str(mine))
        places.append((mine, place))
    record = results[0].record
    if len(budgets) > 1:
        record = {"budgets": [r.record for r in results], "front": pipeline.front(results)}
        write_text(folder / "record.json", json_text(record))
    if args.json != STDOUT:
        _save(record, args.json)
    pages = _draw(folder, Path(args.report), display) if args.report else []
    for result, (mine, place) in zip(results, places, strict=True):  # last: whoever reads may stop reading
        display.table(result.record, mine, place)
    for page in pages:
        display.wrote(page["page"])
    if args.json == STDOUT:
        _save(record, args.json)


def _clear(folder: Path) -> None:
    """Remove the results of an earlier run from a run directory: beside those of this one they would pass for its own."""
    from onnx_amc.report.record import read_all  # noqa: PLC0415

    try:
        runs = read_all(folder)
    except OptionError:  # none, or not in one piece
        return
    for run in runs:
        for name in (*RESULTS, "report.html"):
            (run.folder / name).unlink(missing_ok=True)
        if run.folder != folder:
            with contextlib.suppress(OSError):  # something else lies in it
                run.folder.rmdir()


def _draw(folder: Path, out: Path | None, display: Display) -> list[dict[str, Any]]:
    """Write the pages of a run directory: into it, or to a file, which has the budget in its name where there are several.

    Returns:
        Of each page where it is and what budget it is of.

    """
    from onnx_amc.report import page, record  # noqa: PLC0415  Vega takes seconds to unpack

    runs, pages = record.read_all(folder), []
    with display:
        display.stage("report", None)
        for run in runs:
            to = run.folder / "report.html" if out is None else out
            if out is not None and len(runs) > 1:
                to = _numbered(out, run.ratio)
            page.write(run, to)
            pages.append({"page": str(to), "budget": run.record["budget"]})
    return pages


def report(args: argparse.Namespace) -> None:
    """`onnx-amc report`."""
    from onnx_amc.report import page  # noqa: PLC0415

    page.require()
    claim({}, {"-o": args.out, "--json": args.json}, own=[Path(args.run_dir, name) for name in OWN])
    display = _display(args.json)
    pages = _draw(Path(args.run_dir), Path(args.out) if args.out else None, display)
    for one in pages:
        display.wrote(one["page"])
    _save({"run_dir": args.run_dir, "pages": pages}, args.json)


def _budgets(args: argparse.Namespace) -> list[Budget]:
    """The budgets that were asked for; of --max-drop where it starts."""
    from onnx_amc.config import choose_budgets, within_drop  # noqa: PLC0415  keeps --help light

    given = {k: getattr(args, k) for k in ("flops", "params", "channels", "size", "latency")}
    return choose_budgets(**within_drop(given, "1", args.max_drop, args.reduce))


def _settings(args: argparse.Namespace, budget: Budget) -> Settings:
    from onnx_amc.config import Settings  # noqa: PLC0415

    same = (
        "max_drop", "granularity", "policy", "episodes", "seed", "min_keep", "approximate", "refit", "criterion", "metric",
        "preset", "reward", "agent", "save_agent", "tensorboard", "provider", "recover", "recover_epochs", "recover_minutes",
        "recover_labels", "recover_flip", "latency_command", "cache", "threads", "workers",
        "ahead", "int8", "ray", "memory", "pattern", "round_to",
    )  # fmt: skip
    return Settings(budget=budget, keep=tuple(args.keep), **{name: getattr(args, name) for name in same})


def inspect(args: argparse.Namespace) -> None:
    """`onnx-amc inspect`."""
    from onnx_amc import inspect as look  # noqa: PLC0415

    claim({"MODEL": args.model}, {"--json": args.json})
    found = look(args.model, min_keep=args.min_keep, round_to=args.round_to, approximate=args.approximate)
    _save(found, args.json)
    _display(args.json).inspection(found)


def apply(args: argparse.Namespace) -> None:
    """`onnx-amc apply`."""
    out = Path(args.out)
    claim({"MODEL": args.model, "PLAN": args.plan, **read_from(args)}, {"-o": out, "--json": args.json}, args.model)
    from onnx_amc import pipeline  # noqa: PLC0415
    from onnx_amc.delivery import figures, write_model  # noqa: PLC0415
    from onnx_amc.graph.light import has_external_data  # noqa: PLC0415

    with _display(args.json) as display:
        model, analysis = pipeline.replayed(args.model, args.plan, args.data, display)
    write_model(model, out, external=has_external_data(args.model))
    if args.json:
        counted = figures(model, sizes=analysis.model.sizes)
        _save({"model": args.model, "plan": args.plan, "out": str(out), **counted}, args.json)
    display.say(f"wrote {out}")


def evaluate(args: argparse.Namespace) -> None:
    """`onnx-amc evaluate`."""
    from onnx_amc import evaluate as score  # noqa: PLC0415
    from onnx_amc.run.feed import sentence  # noqa: PLC0415  keeps --help light
    from onnx_amc.run.metrics import shown  # noqa: PLC0415

    claim({"MODEL": args.model, "--against": args.against, **read_from(args)}, {"--json": args.json})
    found = score(
        args.model, args.data, metric=args.metric, against=args.against, provider=args.provider, preset=args.preset
    )
    _save(found, args.json)
    display = _display(args.json)
    for row in found["fed"]:
        display.note(f"the network is fed {sentence(row)}")
    for warning in found["warnings"]:
        display.warn(warning)
    display.say(f"{found['metric']} {shown(found['score'])} on {found['samples']} samples")


def bench(args: argparse.Namespace) -> None:
    """`onnx-amc bench`."""
    from onnx_amc.config import MOST  # noqa: PLC0415
    from onnx_amc.delivery import one_feed  # noqa: PLC0415
    from onnx_amc.graph.load import load  # noqa: PLC0415
    from onnx_amc.run.latency import disturbed, measure  # noqa: PLC0415
    from onnx_amc.run.providers import provider_of  # noqa: PLC0415

    claim({f"MODEL {path}": path for path in args.models}, {"--json": args.json})
    models = [load(path) for path in args.models]
    if not 0 <= args.threads <= MOST["threads"]:
        what = f"{args.threads} is no whole number from 0 to {MOST['threads']}"
        raise OptionError(what, where="--threads", fix="give one of these, 0 for all cores")
    if not 0 < args.seconds < math.inf:
        raise OptionError(f"{args.seconds} is no time", where="--seconds", fix="give more than 0")
    how = {"seconds": args.seconds, "threads": args.threads, "provider": provider_of(args.provider)}
    found = measure([m.original for m in models], one_feed(models[0]), **how)
    rows = [
        {"model": p, "latency_ms": f.milliseconds, "ratio": f.ratio} for p, f in zip(args.models, found, strict=True)
    ]
    _save({"models": rows}, args.json)
    display = _display(args.json)
    if doubt := disturbed(found):
        display.note(doubt)
    display.latencies(rows)


COMMANDS = {
    "compress": compress,
    "inspect": inspect,
    "apply": apply,
    "evaluate": evaluate,
    "bench": bench,
    "report": report,
}


def _called(args: argparse.Namespace, loaded: Callable[[], None]) -> None:
    """Carry out the command; too little memory is for the user to mend, and what the system says of a file."""
    try:
        if args.version:
            from onnx_amc import __version__  # noqa: PLC0415

            print(__version__)
        else:
            from onnx_amc import pipeline  # noqa: F401, PLC0415  keeps --help light

            loaded()
            filled(args)
            COMMANDS[args.command](args)
        sys.stdout.flush()
    except MemoryError as error:
        raise OptionError(f"the memory does not suffice: {error}", where=args.command, fix=LESS) from error
    except ImportError as error:
        if (error.name or "onnx_amc").startswith("onnx_amc"):
            raise
        fix = "install onnx-amc anew with all that it needs; if it is all there, give the process more memory"
        raise OptionError(f"a package cannot be loaded: {error}", where=args.command, fix=fix) from error
    except OSError as error:
        if error.errno not in THEIRS:
            raise
        if error.filename is None:  # what was printed; what is left of it has nowhere to go
            _deafen(sys.stdout)
        fix = "see to its permissions, to the length of its name, and to the room there"
        raise OptionError(str(error.strerror), where=str(error.filename or "stdout"), fix=fix) from error


def _display(json_to: str | None = None, *, quiet: bool = False) -> Display:
    """What shows a run; its tables go to stderr where JSON goes to stdout."""
    from onnx_amc.display import Display  # noqa: PLC0415  keeps --help light

    return Display(quiet=quiet, results=sys.stderr if json_to == STDOUT else sys.stdout)


def _save(found: dict[str, Any], to: str | None) -> None:
    """Write JSON where that is wanted: to a file, or to stdout."""
    if to == STDOUT:
        print(json_text(found), end="")
    elif to:
        write_text(Path(to), json_text(found))

"""The command line: parse, call, print, exit. The only file that prints."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_amc.errors import AmcError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_amc.config import Budget, Settings
    from onnx_amc.display import Display

APPROXIMATE = "cut channels under norms and reductions too, where cutting is not quite masking"
METRIC = "top1, top5, agreement, fidelity, mse, psnr, miou or module:function (what suits data and model)"
DONE, FAULT, INTERRUPTED = 0, 1, 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="onnx-amc",
        description="Compress a trained network given as an ONNX file: smaller, and really faster in onnxruntime.",
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    _compress(commands.add_parser("compress", help="cut a model down to a budget"))
    one = commands.add_parser("inspect", help="layers, groups, MACs, what is fixed and why, smallest reachable MACs")
    one.add_argument("model", metavar="MODEL")
    one.add_argument(
        "--min-keep", type=float, default=0.2, metavar="R", help="smallest fraction of a group that is kept (0.2)"
    )
    one.add_argument("--round-to", default="auto", metavar="auto|K", help="multiple of the kept channels (auto)")
    one.add_argument("--approximate", action="store_true", help=APPROXIMATE)
    one.add_argument("--json", metavar="FILE", help="write everything as JSON")
    one = commands.add_parser("apply", help="replay a plan")
    one.add_argument("model", metavar="MODEL")
    one.add_argument("plan", metavar="PLAN.json")
    one.add_argument("--data", metavar="DATA", help="the data of the run that wrote the plan")
    one.add_argument("-o", "--out", required=True, metavar="OUT")
    one = commands.add_parser("evaluate", help="score a model on data")
    one.add_argument("model", metavar="MODEL")
    one.add_argument("--data", required=True, metavar="DATA")
    one.add_argument("--metric", metavar="NAME", help=METRIC)
    one.add_argument("--against", metavar="ORIGINAL", help="the model that agreement and the like compare with")
    one.add_argument("--json", metavar="FILE", help="write the result as JSON")
    one = commands.add_parser("bench", help="latency side by side: in turn, medians and ratios to the first")
    one.add_argument("models", nargs="+", metavar="MODEL")
    one.add_argument("--seconds", type=float, default=6.0, help="time to spend (6)")
    one.add_argument("--threads", type=int, default=0, metavar="N", help="of each session (0: all cores)")
    one.add_argument("--json", metavar="FILE", help="write the result as JSON")
    one = commands.add_parser("report", help="draw the page of a run again")
    one.add_argument("run_dir", metavar="RUN_DIR")
    one.add_argument("-o", "--out", metavar="FILE.html", help="where it goes (RUN_DIR/report.html)")
    return top


def _compress(one: argparse.ArgumentParser) -> None:
    one.add_argument("model", metavar="MODEL")
    one.add_argument(
        "--data", metavar="DATA", help="FILE.npz, a folder of images, or module:function; MODEL.npz if it is there"
    )
    _budget_options(one)
    one.add_argument("-o", "--out", metavar="OUT", help="the compressed model (MODEL with .amc.onnx)")
    one.add_argument(
        "--policy",
        default="ddpg",
        help="ddpg (default), td3, sac, evolution, random, knapsack, uniform, shallow or deep",
    )
    one.add_argument(
        "--granularity",
        default="channel",
        metavar="channel|weight",
        help="cut whole channels (default), or set single weights to zero",
    )
    one.add_argument(
        "--pattern", metavar="N:M", help="of each M weights along the inputs N stay (2:4); single weights only"
    )
    one.add_argument("--episodes", type=int, default=100, metavar="N", help="plans that the search evaluates (100)")
    one.add_argument("--seed", type=int, default=0, metavar="S", help="of everything random (0)")
    one.add_argument(
        "--round-to", default="auto", metavar="auto|K", help="multiple of the kept channels (auto; 1 rounds nothing)"
    )
    one.add_argument(
        "--min-keep",
        type=float,
        metavar="R",
        help="smallest fraction of a group's channels (0.2) or of a layer's weights (0.03) that is kept",
    )
    one.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave these nodes, weights or operator types whole",
    )
    one.add_argument("--approximate", action="store_true", help=APPROXIMATE)
    one.add_argument(
        "--refit", action=argparse.BooleanOptionalAction, default=True, help="refit what is left by least squares"
    )
    one.add_argument(
        "--criterion",
        default="obs",
        metavar="NAME",
        help="which channels go first: obs (elimination over all readers), wanda, fpgm, magnitude or random",
    )
    _recovery_options(one)
    one.add_argument("--metric", metavar="NAME", help=METRIC)
    one.add_argument(
        "--reward",
        default="error",
        metavar="NAME",
        help="what the search makes of a score: error (default), flops, params or size (-error x log of it), or module:function",
    )
    agent = one.add_argument_group("the agent (ddpg, td3 and sac)")
    agent.add_argument("--agent", metavar="FILE", help="begin with an agent that was trained on any network")
    agent.add_argument("--save-agent", metavar="FILE.npz", help="keep the agent")
    agent.add_argument("--tensorboard", metavar="DIR", help="log its training")
    one.add_argument(
        "--provider", default="CPUExecutionProvider", metavar="NAME", help="execution provider of onnxruntime"
    )
    one.add_argument("--run-dir", metavar="DIR", help="where plan.json and record.json go (OUT with .run)")
    one.add_argument("--json", metavar="FILE", help="write the record as JSON")
    one.add_argument("--quiet", action="store_true", help="print nothing but errors")
    one.add_argument("--report", metavar="FILE.html", help="draw a page of what happened; it times the layers too")
    _parallel_options(one)
    one.add_argument("--resume", action="store_true", help="go on with the interrupted run in the run directory")


def _recovery_options(one: argparse.ArgumentParser) -> None:
    recover = one.add_argument_group("recovery: training towards the original's outputs")
    recover.add_argument(
        "--recover",
        action=argparse.BooleanOptionalAction,
        help="train what is delivered, without labels (where there are a few hundred samples)",
    )
    recover.add_argument("--recover-epochs", type=int, metavar="N", help="passes over the samples, at most")
    recover.add_argument("--recover-minutes", type=float, metavar="M", help="wall time of the training, at most")
    recover.add_argument("--recover-labels", action="store_true", help="let labels count too")
    recover.add_argument("--recover-flip", action="store_true", help="images may be mirrored left to right")


def _parallel_options(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="plans evaluated at a time (one per core); changes nothing that is found",
    )
    one.add_argument(
        "--ahead",
        type=int,
        default=4,
        metavar="N",
        help="evaluations under way while the next plan is chosen (4): more keep more workers busy",
    )


def _budget_options(one: argparse.ArgumentParser) -> None:
    budget = one.add_argument_group(
        "budget (exactly one): the fraction that is left, above 0 and at most 1; several with commas give a model each"
    )
    budget.add_argument("--flops", metavar="R[,R...]", help="of the multiply-accumulates")
    budget.add_argument("--params", metavar="R[,R...]", help="of the parameters (of single weights: not zero)")
    budget.add_argument("--size", metavar="R[,R...]", help="of the bytes of the file")
    budget.add_argument("--channels", metavar="R", help="of the channels of every group, in place of a budget")
    budget.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="in place of a budget: the smallest that loses no more of the score",
    )
    budget.add_argument(
        "--reduce",
        default="flops",
        metavar="KIND",
        help="what --max-drop makes small: flops (default), params, size or latency",
    )
    budget.add_argument("--latency", metavar="R[,R...]", help="of the latency, measured in onnxruntime, batch 1")
    budget.add_argument(
        "--latency-command", metavar="CMD", help="times a model elsewhere: it gets a path and prints milliseconds"
    )
    budget.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of a session whose latency is measured (0: all cores)"
    )
    budget.add_argument("--cache", metavar="DIR", help="where measured latencies are kept (the user's cache folder)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 done, 2 input or options, 3 budget out of reach, 1 a fault of ours, 130 interrupted."""
    args = parser().parse_args(argv)
    args.typed = shlex.join(["onnx-amc", *(sys.argv[1:] if argv is None else argv)])
    if args.version:
        from onnx_amc import __version__  # noqa: PLC0415

        print(__version__)
        return DONE
    if args.command is None:
        parser().print_help()
        return OptionError.exit_code
    try:
        return COMMANDS[args.command](args)
    except AmcError as error:
        print(f"onnx-amc: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("onnx-amc: interrupted; no model was written. The same command with --resume goes on", file=sys.stderr)
        return INTERRUPTED
    except Exception:  # noqa: BLE001  the last resort: say that it is our fault
        traceback.print_exc()
        print("onnx-amc: this is a fault of ours; please report it with the lines above", file=sys.stderr)
        return FAULT


def run() -> None:
    """Entry point of the console script."""
    sys.exit(main())


def compress(args: argparse.Namespace) -> int:
    """`onnx-amc compress`."""
    out = Path(args.out) if args.out else Path(args.model).with_suffix(".amc.onnx")
    folder = Path(args.run_dir) if args.run_dir else out.with_suffix(".run")
    _writable(out, "-o")
    _writable(folder / "plan.json", "--run-dir")
    if args.json:
        _writable(Path(args.json), "--json")
    if args.report:
        from onnx_amc.report import page  # noqa: PLC0415

        page.require()
        _writable(Path(args.report), "--report")
    budgets = _budgets(args)
    settings = _settings(args, budgets[0])
    from onnx_amc import pipeline  # noqa: PLC0415
    from onnx_amc.rundir import forget  # noqa: PLC0415

    with _display(quiet=args.quiet) as display:
        if len(budgets) == 1:
            results = [pipeline.compress(args.model, args.data, settings, display, folder, resume=args.resume)]
        else:
            results = pipeline.pareto(args.model, args.data, settings, budgets, display, folder, resume=args.resume)
    for budget, result in zip(budgets, results, strict=True):
        mine, place = out, folder
        if len(budgets) > 1:
            mine, place = out.with_stem(f"{out.stem}-{budget.ratio:g}"), folder / f"{budget.ratio:g}"
        pipeline.deposit(result, mine, place, args.typed, timed=settings.provider if args.report else None)
        if not args.quiet:
            display.table(result.record, mine, place)
    record = results[0].record
    if len(budgets) > 1:
        record = {"budgets": [r.record for r in results], "front": pipeline.front(results)}
        pipeline.save_record(record, folder / "record.json")
    if args.json:
        pipeline.save_record(record, Path(args.json))
    if args.report:
        _draw(folder, Path(args.report), display)
    forget(folder)
    return DONE


def _draw(folder: Path, out: Path | None, display: Display) -> None:
    """Write the pages of a run directory: into it, or to a file, which has the budget in its name where there are several."""
    from onnx_amc.report import page, record  # noqa: PLC0415  Vega takes seconds to unpack

    runs = record.read_all(folder)
    with display:
        display.stage("report", None)
        for run in runs:
            to = run.folder / "report.html" if out is None else out
            if out is not None and len(runs) > 1:
                to = out.with_stem(f"{out.stem}-{run.ratio:g}")
            page.write(run, to)
            display.wrote(to)


def report(args: argparse.Namespace) -> int:
    """`onnx-amc report`."""
    from onnx_amc.report import page  # noqa: PLC0415

    page.require()
    if args.out:
        _writable(Path(args.out), "-o")
    _draw(Path(args.run_dir), Path(args.out) if args.out else None, _display(quiet=False))
    return DONE


def _budgets(args: argparse.Namespace) -> list[Budget]:
    """The budgets that were asked for; of --max-drop where it starts."""
    from onnx_amc.config import choose_budgets  # noqa: PLC0415  keeps --help light

    given = {k: getattr(args, k) for k in ("flops", "params", "channels", "size", "latency")}
    if args.max_drop is not None:
        given = {args.reduce: "1"} if not any(given.values()) else given | {"max_drop": str(args.max_drop)}
    return choose_budgets(**given)


def _settings(args: argparse.Namespace, budget: Budget) -> Settings:
    from onnx_amc.config import Settings, parse_pattern, parse_round_to  # noqa: PLC0415

    same = (
        "max_drop", "granularity", "policy", "episodes", "seed", "min_keep", "approximate", "refit", "criterion", "metric",
        "reward", "agent", "save_agent", "tensorboard", "provider", "recover", "recover_epochs", "recover_minutes",
        "recover_labels", "recover_flip", "latency_command", "cache", "threads", "workers",
        "ahead",
    )  # fmt: skip
    return Settings(
        budget=budget,
        pattern=parse_pattern(args.pattern),
        round_to=parse_round_to(args.round_to),
        keep=tuple(args.keep),
        **{name: getattr(args, name) for name in same},
    )


def inspect(args: argparse.Namespace) -> int:
    """`onnx-amc inspect`."""
    from onnx_amc import inspect as look  # noqa: PLC0415
    from onnx_amc.config import parse_round_to  # noqa: PLC0415

    rounding = parse_round_to(args.round_to)
    found = look(args.model, min_keep=args.min_keep, round_to=rounding, approximate=args.approximate)
    if args.json:
        _save(found, Path(args.json))
    _display(quiet=False).inspection(found)
    return DONE


def apply(args: argparse.Namespace) -> int:
    """`onnx-amc apply`."""
    out = Path(args.out)
    _writable(out, "-o")
    from onnx_amc import pipeline  # noqa: PLC0415
    from onnx_amc.delivery import write_model  # noqa: PLC0415
    from onnx_amc.graph.light import has_external_data  # noqa: PLC0415

    with _display(quiet=False) as display:
        model = pipeline.apply(args.model, args.plan, args.data, display)
    write_model(model, out, external=has_external_data(args.model))
    print(f"wrote {out}")
    return DONE


def evaluate(args: argparse.Namespace) -> int:
    """`onnx-amc evaluate`."""
    from onnx_amc import evaluate as score  # noqa: PLC0415
    from onnx_amc.run.metrics import shown  # noqa: PLC0415  keeps --help light

    found = score(args.model, args.data, metric=args.metric, against=args.against)
    if args.json:
        _save(found, Path(args.json))
    print(f"{found['metric']} {shown(found['score'])} on {found['samples']} samples")
    return DONE


def bench(args: argparse.Namespace) -> int:
    """`onnx-amc bench`."""
    from onnx_amc.delivery import one_feed  # noqa: PLC0415
    from onnx_amc.graph.load import load  # noqa: PLC0415
    from onnx_amc.run.latency import measure  # noqa: PLC0415

    models = [load(path) for path in args.models]
    if args.threads < 0:
        raise OptionError(f"{args.threads} is below 0", where="--threads", fix="give 0 for all cores, or more")
    found = measure([m.original for m in models], one_feed(models[0]), seconds=args.seconds, threads=args.threads)
    rows = [
        {"model": p, "latency_ms": f.milliseconds, "ratio": f.ratio} for p, f in zip(args.models, found, strict=True)
    ]
    if args.json:
        _save({"models": rows}, Path(args.json))
    _display(quiet=False).latencies(rows)
    return DONE


COMMANDS = {
    "compress": compress,
    "inspect": inspect,
    "apply": apply,
    "evaluate": evaluate,
    "bench": bench,
    "report": report,
}


def _display(*, quiet: bool) -> Display:
    from onnx_amc.display import Display  # noqa: PLC0415  keeps --help light

    return Display(quiet=quiet)


def _writable(path: Path, option: str) -> None:
    """Refuse early what could not be written late."""
    parent = path.parent
    if path.is_dir():
        raise OptionError("is a folder", where=f"{option} {path}", fix="name a file in it")
    while not parent.exists() and option == "--run-dir":
        parent = parent.parent
    if not parent.is_dir():
        raise OptionError("its folder does not exist", where=f"{option} {path}", fix=f"create {parent} first")
    if not os.access(parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OptionError("cannot be written", where=f"{option} {path}", fix="choose a folder you may write to")


def _save(found: dict[str, Any], path: Path) -> None:
    _writable(path, "--json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run()

"""The options of the command line."""

from __future__ import annotations

import argparse

APPROXIMATE = "cut channels under norms and reductions too, where cutting is not quite masking"
PRESET = "how images are normalised and brought to size: imagenet, torchvision, cifar10, tf or yolo"
METRIC = "top1, top5, agreement, fidelity, mse, psnr, miou or module:function (what suits data and model)"


PROVIDER = (
    "execution provider of onnxruntime: cpu (default), cuda, tensorrt, openvino, coreml, dml, qnn ... or its full name"
)


JSON = "write what was found as JSON, to a file or to stdout (-)"


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
    one.add_argument("model", metavar="MODEL", help="a trained network, .onnx")
    one.add_argument(
        "--min-keep", type=float, default=0.2, metavar="R", help="smallest fraction of a group that is kept (0.2)"
    )
    one.add_argument(
        "--round-to", default="auto", metavar="auto|K", help="keep channel counts at multiples of K (auto)"
    )
    one.add_argument("--approximate", action="store_true", help=APPROXIMATE)
    one.add_argument("--json", metavar="FILE", help=JSON)
    one = commands.add_parser("apply", help="replay a plan")
    one.add_argument("model", metavar="MODEL", help="a trained network, .onnx")
    one.add_argument("plan", metavar="PLAN.json", help="as a run leaves it in its directory")
    one.add_argument("--data", metavar="DATA", help="the data of the run that wrote the plan")
    one.add_argument("-o", "--out", required=True, metavar="OUT", help="the compressed model")
    one.add_argument("--json", metavar="FILE", help=JSON)
    one = commands.add_parser("evaluate", help="score a model on data")
    one.add_argument("model", metavar="MODEL", help="a trained network, .onnx")
    one.add_argument("--data", required=True, metavar="DATA", help="as for compress")
    one.add_argument("--preset", metavar="NAME", help=PRESET)
    one.add_argument("--metric", metavar="NAME", help=METRIC)
    one.add_argument("--against", metavar="ORIGINAL", help="the original, to score how alike the two are")
    one.add_argument("--provider", default="cpu", metavar="NAME", help=PROVIDER)
    one.add_argument("--json", metavar="FILE", help=JSON)
    one = commands.add_parser("bench", help="latency side by side: in turn, medians and ratios to the first")
    one.add_argument("models", nargs="+", metavar="MODEL", help="networks that take the same inputs")
    one.add_argument("--seconds", type=float, default=6.0, metavar="S", help="time to spend (6)")
    one.add_argument("--threads", type=int, default=0, metavar="N", help="of each session (0: all cores)")
    one.add_argument("--provider", default="cpu", metavar="NAME", help=PROVIDER)
    one.add_argument("--json", metavar="FILE", help=JSON)
    one = commands.add_parser("report", help="draw the page of a run again")
    one.add_argument("run_dir", metavar="RUN_DIR", help="of a finished run, OUT.run by default")
    one.add_argument("-o", "--out", metavar="FILE.html", help="where it goes (RUN_DIR/report.html)")
    one.add_argument("--json", metavar="FILE", help=JSON)
    return top


def _compress(one: argparse.ArgumentParser) -> None:
    one.add_argument("model", metavar="MODEL", help="a trained network, .onnx")
    one.add_argument(
        "--data",
        metavar="DATA",
        help="FILE.npz, .npy, .csv or .parquet, a folder of images, a saved data set, or module:function (MODEL.npz)",
    )
    one.add_argument("--preset", metavar="NAME", help=PRESET)
    _budget_options(one)
    one.add_argument("-o", "--out", metavar="OUT", help="the compressed model (MODEL with .amc.onnx)")
    one.add_argument(
        "--int8", action="store_true", help="quantise the compressed model too, in onnxruntime (OUT with .int8.onnx)"
    )
    one.add_argument(
        "--policy",
        default="ddpg",
        metavar="NAME",
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
    one.add_argument("--seed", type=int, default=0, metavar="S", help="random seed (0)")
    one.add_argument(
        "--round-to",
        default="auto",
        metavar="auto|K",
        help="keep channel counts at multiples of K (auto; 1 rounds nothing), or avx2, avx512, cuda, tensorrt, tensorrt-int8",
    )
    one.add_argument(
        "--min-keep",
        type=float,
        metavar="R",
        help="smallest fraction of a group's channels (0.2) or of a layer's weights (0.03) that is kept",
    )
    one.add_argument(
        "--keep",
        action="extend",
        nargs="+",
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
        help="what the search makes of a score: error (default); flops, params, size or latency (-error x log of it); "
        "or module:function",
    )
    agent = one.add_argument_group("the agent (ddpg, td3 and sac)")
    agent.add_argument("--agent", metavar="FILE", help="begin with an agent that was trained on any network")
    agent.add_argument("--save-agent", metavar="FILE.npz", help="keep the agent")
    agent.add_argument("--tensorboard", metavar="DIR", help="log its training")
    one.add_argument("--provider", default="cpu", metavar="NAME", help=PROVIDER)
    one.add_argument("--run-dir", metavar="DIR", help="where plan.json and record.json go (OUT with .run)")
    one.add_argument("--json", metavar="FILE", help=JSON)
    one.add_argument("--quiet", action="store_true", help="print nothing but errors")
    one.add_argument("--report", metavar="FILE.html", help="draw a page of what happened; it times the layers too")
    _parallel_options(one)
    one.add_argument("--resume", action="store_true", help="go on with the interrupted run in the run directory")


def _recovery_options(one: argparse.ArgumentParser) -> None:
    recover = one.add_argument_group("recovery: training towards the original's outputs")
    recover.add_argument(
        "--recover",
        action=argparse.BooleanOptionalAction,
        help="train what is delivered, without labels (by default from 500 real samples on)",
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
        "--ray",
        metavar="ADDRESS",
        help="evaluate plans on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; changes nothing that is found",
    )
    one.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="memory limit (what there is): moments beyond a quarter go to disk, activations are held of fewer samples",
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
    budget.add_argument("--channels", metavar="R[,R...]", help="of the channels of every group, in place of a budget")
    budget.add_argument("--latency", metavar="R[,R...]", help="of the latency, measured in onnxruntime, batch 1")
    budget.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="in place of a budget: the smallest model that loses at most POINTS points of the score",
    )
    how = one.add_argument_group("what --max-drop makes small, and how latency is measured")
    how.add_argument(
        "--reduce",
        default="flops",
        metavar="KIND",
        help="what --max-drop makes small: flops (default), params, size or latency",
    )
    how.add_argument(
        "--latency-command", metavar="CMD", help="times a model elsewhere: it gets a path and prints milliseconds"
    )
    how.add_argument("--threads", type=int, default=0, metavar="N", help="threads to time with (0: all cores)")
    how.add_argument("--cache", metavar="DIR", help="where measured latencies are kept (the user's cache folder)")

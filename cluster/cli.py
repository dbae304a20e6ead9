"""`quartet`: the command line. Every verb is a plain function; heavy imports wait for the verb.

Exit codes: 0 done, or stopped by SIGTERM in order; 1 the run stopped or failed; 2 bad input,
nothing was written; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cluster import eval_options
from cluster.data_options import add_options as add_data_options
from cluster.method_names import COMPARED, METHOD_NAMES
from cluster.offline import go_offline
from cluster.planner import options as planner_options
from cluster.preemption import Preempted
from cluster.submit_options import DESCRIPTION as SUBMIT
from cluster.submit_options import EPILOG as SUBMIT_EPILOG
from cluster.submit_options import add_submit_options
from trainers.data.errors import UserError

OVERRIDES = """
any setting, as it stands in config.yaml: --rollout.num_prompts 64 --rounds 3 --seed 1
exit codes: 0 done; 1 the run stopped or failed; 2 bad input, nothing was written; 130 interrupted
"""
RESUME = "go on with the run in this folder after its latest checkpoint (docs/resume.md)"
COMPARE = """
arms:
  --arms [ppo,dpo]                  known ones: every method, and random (DPO by chance)
  --arms.ppo.method.kl_coef 0.1     a setting of one arm; any setting of `quartet train` will do
  --arms.mild.method '{name: dpo, beta: 0.5}'     an arm of your own, besides the others
"""
TRAIN = """
methods (all online: the policy answers, the judge scores, the policy learns from that):
  ppo    policy, critic, reference, reward model: 4 copies
  grpo   policy, reference, reward model: 3 copies; the other answers are the baseline
         (GRPO, or RLOO with --method.estimator rloo)
  dpo    policy, reference: 2 copies; pairs of better and worse answers
  rpo    as dpo, pairs contrasted across prompts; selm: dpo with a term for exploration
  simpo  policy: 1 copy; pairs without a reference
  nsft   policy: 1 copy; better answers, and turns that correct the worse ones
         (corrections need a judge that writes critiques)
  sft    policy: 1 copy; better answers only, the control; with --method.target data the answers
         in the data's column `chosen`
  rejection        policy: 1 copy; the best answer to each prompt
  reward_weighted  policy: 1 copy; all answers, weighted by their scores
  steerlm          policy: 1 copy; all answers, their scores told in the prompt; ask the tuned model
                   as in training: "describe the image . answer four"
on pairs that are made (settings `negatives`):
  povid  policy, reference: 2 copies; a right answer against a wrong version and against noise
  sapo   policy, its moving average: 2 copies; a right answer against one with a piece redone
examples of each: examples/recipes
"""


DEBUG = "all in this process, for breakpoint() and pdb; slower"
REWARD = """
quartet reward train pairs.jsonl --model VLM --output MODEL    settings: --epochs 1 --request TEXT
quartet reward score answers.jsonl --judge MODEL --output scores.jsonl
quartet reward bench bench.jsonl --judge MODEL                 ACC and ACC+ (MM-RLHF-RewardBench)
columns: id, prompt, image, chosen, rejected, chosen_reason, rejected_reason, is_tie;
score reads response, completion, chosen and rejected
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; no heavy import."""
    parser = argparse.ArgumentParser(
        prog="quartet",
        description="Online RLHF for vision-language models: PPO (4 copies), DPO (2), nSFT (1).",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        return verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    compare = verb(
        "compare", "all methods on the built-in task, with a report", COMPARE + OVERRIDES
    )
    compare.add_argument("--config", help="YAML with any of the settings")
    compare.add_argument("--quick", action="store_true", help="smaller, under 4 minutes")
    compare.add_argument(
        "--rebuild-base", action="store_true", help="train the built-in models anew"
    )
    compare.add_argument("--only-base", action="store_true", help="stop after the built-in models")
    compare.add_argument("--resume", metavar="RUN", help=RESUME)

    train = verb(
        "train", "one method, on your model and data or on the built-in task", TRAIN + OVERRIDES
    )
    train.add_argument("method", nargs="?", choices=METHOD_NAMES)
    train.add_argument("--resume", metavar="RUN", help=RESUME)
    train.add_argument("--config", help="YAML with any of the settings")
    train.add_argument("--model", help="Hugging Face VLM folder (default: the built-in base)")
    train.add_argument(
        "--data", help="JSONL, JSON or parquet in a known format (default: drawn world)"
    )
    train.add_argument(
        "--judge",
        help="critique model's folder, module:function, or random; others by --judge.name claims "
        "and so on (docs/judges.md)",
    )

    train.add_argument("--debug", action="store_true", help=DEBUG)

    replay = verb("replay", "train from a run's recorded rollouts, without generating", OVERRIDES)
    replay.add_argument("run", help="folder of a run (or of one arm of a comparison)")
    replay.add_argument("--method", required=True, choices=METHOD_NAMES)
    replay.add_argument("--judge", help="judge the recorded responses anew with this judge")

    replay.add_argument("--debug", action="store_true", help=DEBUG)

    synthesize = verb(
        "synthesize",
        "a preference file: drawn images, the policy's answers, the judge's choice",
        OVERRIDES,
    )
    synthesize.add_argument("out", help="parquet to write, in TRL's columns, images inside")
    synthesize.add_argument("--config", help="YAML with any of the settings")
    synthesize.add_argument("--model", help="VLM folder (default: the built-in base)")
    synthesize.add_argument("--data", help="prompts and images (default: drawn world)")
    synthesize.add_argument("--judge", help="critique model's folder or module:function")

    evaluate = verb(
        "eval", "a model on the drawn world or on a benchmark's files", eval_options.EPILOG
    )
    eval_options.add_options(evaluate)

    reward = verb("reward", "train, use and measure a critique reward model", REWARD)
    reward.add_argument("what", choices=("train", "score", "bench"))
    reward.add_argument("file", help="JSON lines; train and bench: MM-RLHF's columns")
    reward.add_argument("--model", help="train: VLM folder to start from")
    reward.add_argument("--output", help="train: new folder; score: JSON lines to write")
    reward.add_argument("--config", help="train: YAML with any of the settings")
    reward.add_argument(
        "--judge", help="score, bench: as for train, or '{name: ..., ...}'; docs/judges.md"
    )
    reward.add_argument("--max-model-len", type=_count, default=384)
    reward.add_argument("--json", action="store_true", help="bench: print JSON only")

    plan = verb(
        "plan",
        "what a method needs on which GPUs, before anything is rented",
        planner_options.EPILOG,
    )
    planner_options.add_options(plan, METHOD_NAMES)

    bench = verb("bench", "what each method's training step really holds, next to the plan")
    bench.add_argument("what", choices=("memory",))
    bench.add_argument(
        "--models",
        nargs="+",
        default=["drawn"],
        help="drawn, drawn-wide, presets of quartet plan (random weights), or model folders",
    )
    bench.add_argument("--methods", nargs="+", default=list(COMPARED))
    bench.add_argument("--regimes", nargs="+", help="full, lora, offload (default: all)")
    bench.add_argument(
        "--batch", type=_count, default=16, help="rollouts: rows of PPO, twice the pairs (16)"
    )
    bench.add_argument("--sequence", type=_count, default=48, help="tokens of a response (48)")
    bench.add_argument("--bf16", action="store_true", help="bfloat16 (default: float32)")
    bench.add_argument("--output", help="write the numbers as JSON here")
    bench.add_argument(
        "--baseline", help="JSON of an earlier run; a peak that is 5 %% off ends with exit code 1"
    )

    data = verb("data", "look into a data file (inspect), or write it in another form (convert)")
    add_data_options(data, _count)

    report = verb("report", "write report.html of a run again")
    report.add_argument("run", help="run folder")

    table = verb("table", "several comparisons as one Markdown table, over seeds")
    table.add_argument("runs", nargs="+", help="folders of `quartet compare`, of any seeds")
    table.add_argument("--orderings", help="YAML: what is claimed of two arms, to be decided")
    table.add_argument("--output", help="Markdown file to write (default: standard output)")

    add_submit_options(verb("submit", SUBMIT, SUBMIT_EPILOG))

    verb("doctor", "check this machine and environment")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Returns the exit code; no failure that is expected shows a traceback."""
    go_offline()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        own, settings = split_settings(build_parser(), words)
        return VERBS[own.verb](own, settings)
    except UserError as error:
        print(f"quartet: {error}", file=sys.stderr)
        return 2
    except Preempted as stop:
        print(f"quartet: {stop}", file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("quartet: interrupted; what was finished is in the run folder", file=sys.stderr)
        return 130
    except RuntimeError as error:
        from cluster.failures import RunFailedError, RunStoppedError

        if not isinstance(error, RunFailedError | RunStoppedError):
            raise
        print(f"quartet: {error}", file=sys.stderr)
        return 1


def split_settings(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The verb's own arguments, and the settings among the words (`--group.key value`).

    Done before parsing, because argparse takes the value of an unknown option for a positional.
    """
    if not words or words[0] not in CONFIGURABLE:
        return parser.parse_args(words), []
    own, settings = [words[0]], []
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if not word.startswith("--") or name in CONFIGURABLE[words[0]]:
            own.append(word)
            continue
        settings.append(word)
        if not equals and rest:
            settings.append(rest.pop(0))
    return parser.parse_args(own), settings


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _settings(defaults: dict[str, Any], config: str | None, extra: list[str]) -> dict[str, Any]:
    from cluster.config_text import apply_overrides, merge, read_yaml

    return apply_overrides(merge(defaults, read_yaml(config) if config else {}), extra)


def _compare(arguments: argparse.Namespace, extra: list[str]) -> int:
    from cluster.arms import DEFAULT_ARMS
    from cluster.config import QUICK, CompareConfig
    from cluster.config_text import validate

    if arguments.resume is not None:
        from cluster.resume import resume_compare

        _only_resume(arguments, ("config", "quick", "rebuild_base", "only_base"))
        return resume_compare(Path(arguments.resume).resolve(), _settings({}, None, extra))
    defaults = {"arms": DEFAULT_ARMS, **(QUICK if arguments.quick else {})}
    values = _settings(defaults, arguments.config, extra)
    config = validate(CompareConfig, values, arguments.config or "compare")
    from cluster.compare import compare

    return compare(config, rebuild_base=arguments.rebuild_base, only_base=arguments.only_base)


def _train(arguments: argparse.Namespace, extra: list[str]) -> int:
    from cluster.config import RunConfig
    from cluster.config_text import set_key, validate

    if arguments.resume is not None:
        from cluster.resume import resume_train

        _only_resume(arguments, ("method", "config", "model", "data", "judge"))
        return resume_train(Path(arguments.resume).resolve(), _settings({}, None, extra))
    if arguments.method is None:
        raise UserError(f"train: give a method, one of {', '.join(METHOD_NAMES)}, or --resume RUN")
    values = _settings({}, arguments.config, extra)
    method = values.get("method") or {}
    if not isinstance(method, dict) or method.get("name", arguments.method) != arguments.method:
        raise UserError(
            f"{arguments.config or 'method'}: method.name does not fit train {arguments.method}"
        )
    set_key(values, "method.name", arguments.method)
    for key, value in (
        ("model", arguments.model),
        ("judge", arguments.judge),
        ("data.path", arguments.data),
    ):
        if value is not None:
            set_key(values, key, value)
    config = validate(RunConfig, values, arguments.config or "train")
    from cluster.run import train

    return train(config, debug=arguments.debug)


def _only_resume(arguments: argparse.Namespace, others: Sequence[str]) -> None:
    """Refuse what a resumed run has already."""
    for name in others:
        if getattr(arguments, name):
            word = name if name == "method" else f"--{name.replace('_', '-')}"
            raise UserError(f"{word}: a resumed run keeps its settings; leave it out")


def _synthesize(arguments: argparse.Namespace, extra: list[str]) -> int:
    from cluster.config import RunConfig
    from cluster.config_text import set_key, validate

    values = _settings({"method": {"name": "dpo"}}, arguments.config, extra)
    for key, value in (
        ("model", arguments.model),
        ("judge", arguments.judge),
        ("data.path", arguments.data),
    ):
        if value is not None:
            set_key(values, key, value)
    config = validate(RunConfig, values, arguments.config or "synthesize")
    from cluster.synthesize import synthesize

    return synthesize(config, Path(arguments.out))


def _replay(arguments: argparse.Namespace, extra: list[str]) -> int:
    from cluster.replay import replay

    values = _settings({}, None, extra)
    run = Path(arguments.run)
    return replay(run, arguments.method, arguments.judge, values, debug=arguments.debug)


def _eval(arguments: argparse.Namespace, extra: list[str]) -> int:
    from cluster.config import RunConfig
    from cluster.config_text import set_key, validate

    request = eval_options.request(arguments)
    values = _settings({}, None, extra)
    set_key(values, "method.name", "sft")  # of no consequence: nothing is trained
    if request.model is not None:
        set_key(values, "model", request.model)
    config = validate(RunConfig, values, "eval")
    if request.benchmark == "rewardbench":
        from cluster.reward_benchmark import evaluate_judge

        return evaluate_judge(request, config)
    if request.benchmark or request.best_of or request.calibrate:
        from cluster.benchmark import evaluate

        return evaluate(request, config)
    from cluster.run import evaluate_model

    return evaluate_model(config, request.scenes, as_json=request.as_json)


def _plan(arguments: argparse.Namespace, extra: list[str]) -> int:
    if arguments.placement:
        from cluster.placement_show import run as show_placement

        return show_placement(arguments, extra)
    if extra or arguments.config:
        raise UserError(f"plan: {extra[0] if extra else '--config'} needs --placement")
    if arguments.model is None:
        raise UserError("plan: --model is missing: a preset's name, or a folder with a config.json")
    from cluster.planner.show import run

    return run(arguments)


def _bench(arguments: argparse.Namespace, _: list[str]) -> int:
    from cluster.bench_table import run

    return run(arguments)


def _reward(arguments: argparse.Namespace, extra: list[str]) -> int:
    needed = {"train": ("model", "output"), "score": ("judge", "output"), "bench": ("judge",)}
    for name in needed[arguments.what]:
        if getattr(arguments, name) is None:
            raise UserError(f"reward {arguments.what}: --{name} is missing")
    if arguments.what != "train" and (extra or arguments.config):
        given = extra[0] if extra else "--config"
        raise UserError(f"reward {arguments.what}: {given} is a setting of reward train")
    file = Path(arguments.file)
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    from cluster import reward

    if arguments.what == "score":
        target = Path(arguments.output)
        return reward.score(file, arguments.judge, target, arguments.max_model_len)
    if arguments.what == "bench":
        return reward.bench(file, arguments.judge, arguments.max_model_len, as_json=arguments.json)
    from cluster.config_text import validate
    from cluster.reward_config import RewardTrainConfig

    values = _settings({}, arguments.config, extra)
    config = validate(RewardTrainConfig, values, arguments.config or "reward train")
    return reward.train(file, arguments.model, Path(arguments.output), config)


def _data(arguments: argparse.Namespace, _: list[str]) -> int:
    from cluster.data_verbs import run

    return run(arguments)


def _report(arguments: argparse.Namespace, _: list[str]) -> int:
    from cluster.run import write_run_report

    print(write_run_report(Path(arguments.run)))
    return 0


def _table(arguments: argparse.Namespace, _: list[str]) -> int:
    from cluster.seeds import table

    output = arguments.output and Path(arguments.output)
    return table([Path(run) for run in arguments.runs], arguments.orderings, output)


def _submit(arguments: argparse.Namespace, _: list[str]) -> int:
    from cluster.submit import run

    return run(arguments)


def _doctor(*_: object) -> int:
    from cluster.doctor import run

    return run()


VERBS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "compare": _compare,
    "train": _train,
    "replay": _replay,
    "synthesize": _synthesize,
    "eval": _eval,
    "plan": _plan,
    "bench": _bench,
    "reward": _reward,
    "data": _data,
    "report": _report,
    "table": _table,
    "submit": _submit,
    "doctor": _doctor,
}
HELP = ("--help",)
CONFIGURABLE = {
    "compare": (*HELP, "--config", "--quick", "--rebuild-base", "--only-base", "--resume"),
    "train": (*HELP, "--config", "--model", "--data", "--judge", "--resume", "--debug"),
    "replay": (*HELP, "--method", "--judge", "--debug"),
    "reward": (
        *HELP,
        "--model",
        "--output",
        "--config",
        "--judge",
        "--max-model-len",
        "--json",
    ),
    "eval": (*HELP, *eval_options.OWN),
    "plan": (*HELP, *planner_options.OWN),
    "synthesize": (*HELP, "--config", "--model", "--data", "--judge"),
}
"""Verbs that take settings, with the options that are their own."""


if __name__ == "__main__":
    sys.exit(main())

"""`quartet`: the command line. Every verb is a plain function; heavy imports wait for the verb."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.offline import go_offline
from trainers.data.errors import UserError

METHOD_NAMES = ("ppo", "dpo", "nsft", "sft")
OVERRIDES = "then any setting as --group.key value, e.g. --rollout.num_prompts 64"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quartet",
        description="Online RLHF for vision-language models: PPO (4 copies), DPO (2), nSFT (1).",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    compare = verbs.add_parser(
        "compare", help="all methods on the built-in task, with a report", epilog=OVERRIDES
    )
    compare.add_argument("--config", help="YAML with any of the settings")
    compare.add_argument("--quick", action="store_true", help="smaller, under 4 minutes")
    compare.add_argument("--rebuild-base", action="store_true", help="train the built-in models anew")
    compare.add_argument("--only-base", action="store_true", help="stop after the built-in models")

    train = verbs.add_parser("train", help="one method, on your model and data or the built-in task",
                             epilog=OVERRIDES)
    train.add_argument("method", choices=METHOD_NAMES)
    train.add_argument("--config", help="YAML with any of the settings")
    train.add_argument("--model", help="Hugging Face VLM folder (default: the built-in base)")
    train.add_argument("--data", help="JSONL or parquet in TRL's columns (default: drawn world)")
    train.add_argument("--judge", help="critique model folder, module:function, or random")

    replay = verbs.add_parser(
        "replay", help="train from a run's recorded rollouts, without generating", epilog=OVERRIDES
    )
    replay.add_argument("run", help="folder of a run (or of one arm of a comparison)")
    replay.add_argument("--method", required=True, choices=METHOD_NAMES)
    replay.add_argument("--judge", help="judge the recorded responses anew with this judge")

    evaluate = verbs.add_parser("eval", help="CHAIR and POPE of a model on held-out drawn scenes")
    evaluate.add_argument("--model", help="VLM folder (default: the built-in base)")
    evaluate.add_argument("--scenes", type=int, default=500)
    evaluate.add_argument("--json", action="store_true", help="print JSON only")

    report = verbs.add_parser("report", help="write report.html of a run again")
    report.add_argument("run", help="run folder")

    verbs.add_parser("doctor", help="check this machine and environment")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted."""
    go_offline()
    parser = build_parser()
    arguments, extra = parser.parse_known_args(argv)
    try:
        if extra and arguments.verb not in ("compare", "train", "replay"):
            raise UserError(f"unknown option {extra[0]!r}; see quartet {arguments.verb} --help")
        return _run(arguments, extra)
    except UserError as error:
        print(f"quartet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("quartet: interrupted; what was finished is in the run folder", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace, extra: list[str]) -> int:
    match arguments.verb:
        case "doctor":
            from cluster.doctor import run

            return run()
        case "report":
            from cluster.run import write_run_report

            print(write_run_report(Path(arguments.run)))
            return 0
        case "eval":
            from cluster.run import evaluate_model

            return evaluate_model(arguments.model, arguments.scenes, as_json=arguments.json)
        case "compare":
            return _compare(arguments, extra)
        case "replay":
            from cluster.run import replay

            values = _settings({}, None, extra)
            return replay(Path(arguments.run), arguments.method, arguments.judge, values)
        case _:
            return _train(arguments, extra)


def _settings(defaults: dict[str, Any], config: str | None, extra: list[str]) -> dict[str, Any]:
    from cluster.config import apply_overrides, read_yaml

    values = {**defaults, **(read_yaml(config) if config else {})}
    return apply_overrides(values, extra)


def _compare(arguments: argparse.Namespace, extra: list[str]) -> int:
    from cluster.config import QUICK, CompareConfig, validate

    values = _settings(QUICK if arguments.quick else {}, arguments.config, extra)
    config = validate(CompareConfig, values, arguments.config or "compare")
    from cluster.compare import compare

    return compare(
        config, rebuild_base=arguments.rebuild_base, only_base=arguments.only_base
    )


def _train(arguments: argparse.Namespace, extra: list[str]) -> int:
    from cluster.config import RunConfig, validate

    values = _settings({}, arguments.config, extra)
    method = values.setdefault("method", {})
    if not isinstance(method, dict) or method.setdefault("name", arguments.method) != arguments.method:
        raise UserError(
            f"{arguments.config or 'method'}: method.name does not fit train {arguments.method}"
        )
    for key, value in (("model", arguments.model), ("judge", arguments.judge)):
        if value is not None:
            values[key] = value
    if arguments.data is not None:
        values.setdefault("data", {})["path"] = arguments.data
    config = validate(RunConfig, values, arguments.config or "train")
    from cluster.run import train

    return train(config)


if __name__ == "__main__":
    sys.exit(main())

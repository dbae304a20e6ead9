"""`quartet synthesize`: a preference data set from nothing but prompts, a policy and a judge.

PDS-DPO (arXiv 2412.17417): images are drawn, a model answers, a reward model's best answer is
chosen and its worst rejected. Here the images are the drawn world's, or those of `--data`.
"""

from __future__ import annotations

import random
from pathlib import Path

from cluster import judges
from cluster.config import RunConfig
from cluster.driver import PromptSource, write_records
from cluster.online import OnlineRollouts
from cluster.run import check_inputs, make_session, new_run, prepare, rollout_spec
from cluster.sources import DrawnPrompts, FilePrompts, read_data
from trainers.config import DPOConfig
from trainers.data.errors import UserError
from trainers.data.export import export_parquet
from trainers.data.images import ImageStore
from trainers.data.processing import Processing
from trainers.pairs import mine_pairs


def synthesize(config: RunConfig, out: Path) -> int:
    """Write `out`, one row per prompt whose answers differ by `method.pairs.margin`: parquet in
    TRL's columns, images inside, as `--data` reads it. Returns the exit code.
    """
    check_inputs(config)
    if out.suffix != ".parquet":
        raise UserError(f"{out}: the data set is written as parquet; name it {out.stem}.parquet")
    if not isinstance(config.method, DPOConfig) or config.negatives.rejected:
        raise UserError("synthesize: pairs are the judge's best and worst; leave out `negatives`")
    with new_run(config, config.name or "synthesize") as (console, folder):
        store = ImageStore(folder / "images")
        data = read_data(config.data, store, console) if config.data.path else None
        with make_session(config, console) as session:
            once = config.model_copy(update={"rounds": 1})  # nothing is asked for beyond it
            run = prepare(session, once, folder, store)
            number, seed = config.rollout.num_prompts, config.seed
            prompts: PromptSource = DrawnPrompts(store, number, seed)
            if data is not None:
                data = data.fitting(Processing(run.arm.model_dir, store), config)
                prompts = FilePrompts(
                    data.index,
                    number,
                    seed,
                    dropped=run.arm.result.dropped,
                    max_dropped=config.data.max_dropped_share,
                )
            with console.stage("start engines"):
                session.load_rollout(rollout_spec(run, data))
                assert run.judge is not None
                judges.load_judge(session, run.judge, store, config)
            with console.stage("answer and judge"):
                samples, judged = OnlineRollouts(session, run.arm, prompts).collect(1)
        settings = {**config.method.pairs.model_dump(), "max_pairs_per_prompt": 1}
        mined = mine_pairs(judged, rng=random.Random(seed), **settings)
        if not mined.pairs:
            raise UserError(
                "synthesize: no two answers to a prompt differ by method.pairs.margin="
                f"{config.method.pairs.margin:g}; lower it, or raise rollout.temperature"
            )
        records = folder / "pairs.msgpack"
        write_records(records, [*samples.values(), *mined.pairs])
        (written,) = export_parquet(records, out, store)
        console.line(
            f"{written}: {len(mined.pairs)} pairs of {len(samples)} prompts, mean margin "
            f"{mined.stats['pairs/margin_mean']:.2f}"
        )
        for reason, count in run.arm.result.dropped.items():
            console.line(f"dropped {count}: {reason}")
    return 0

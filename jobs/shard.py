"""Labelled pictures -> a data set: Parquet shards of pictures that were all decoded once, and a manifest.

    python -m jobs.shard --source ../shared/data/fruits-360-sample.zip --dataset work/dataset

The same command again finishes what was interrupted, changes nothing where all is done, and adds shards where the
source grew. Every file that did not become a row is in rejected.parquet, with its cause.
"""

import time
from typing import TYPE_CHECKING, Any

from fruitcnn.shard_config import ShardConfig
from jobs.cli import progress, ray_session, run, summary

if TYPE_CHECKING:
    from fruitcnn.manifest import Manifest


def main(config: ShardConfig) -> None:
    """Shard, then say what there is now."""
    from fruitcnn.shards import plan_dataset, write_plan

    plan = plan_dataset(config)
    done = "nothing new in the source"
    manifest = plan.base
    if plan.records or manifest is None:
        with ray_session():
            clock = time.perf_counter()
            manifest = write_plan(plan, progress)
            seconds = time.perf_counter() - clock
        done = f"{len(plan.records):,} files, {len(plan.records) / seconds:,.0f}/s"
    where = {"data set": config.dataset, "source": manifest.source}
    summary("data set", describe(manifest) | {"this run": done}, where)


def describe(manifest: "Manifest") -> dict[str, Any]:
    """Name -> value of the closing table."""
    splits = manifest.splits.items()
    causes = [f"{cause} {count:,}" for cause, count in manifest.num_rejected_by_cause.items()]
    return {
        "version": manifest.version,
        "classes": len(manifest.classes),
        **{f"{name} rows": split.num_rows for name, split in splits},
        "shards": ", ".join(f"{name} {len(split.shards)}" for name, split in splits),
        "bytes": sum(shard.num_bytes for shard in manifest.shards()),
        "rejected": ", ".join(causes) or "none",
    }


if __name__ == "__main__":
    run(ShardConfig, main, __doc__)

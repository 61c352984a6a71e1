"""Labelled pictures -> a data set: Parquet shards of pictures that were all decoded once, and a manifest.

    python -m jobs.shard --source ../shared/data/fruits-360-sample.zip --dataset work/dataset

The same command again finishes what was interrupted, changes nothing where all is done, and adds shards where the
source grew. Every file that did not become a row is in rejected.parquet, with its cause.
"""

import datetime
import time
from typing import Any

from fruitcnn.shards import Manifest, ShardConfig, write_dataset
from jobs.cli import progress, ray_session, run, summary


def main(config: ShardConfig) -> None:
    """Shard, then say what there is now."""
    started = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    with ray_session():
        clock = time.perf_counter()
        manifest = write_dataset(config, progress)
        seconds = time.perf_counter() - clock
    rows = describe(manifest)
    num_listed = manifest.listings[-1].num_rows
    is_new = manifest.created_at >= started
    rows["this run"] = f"{num_listed:,} files, {num_listed / seconds:,.0f}/s" if is_new else "nothing new in the source"
    summary("data set", rows, {"data set": config.dataset, "source": manifest.source})


def describe(manifest: Manifest) -> dict[str, Any]:
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

"""The plan of a list of names, written as jobs.classify writes it before it classifies; and what that took.

python -m bench.sides.plan_only MODEL LISTING PREDICTIONS
"""

import json
import resource
import sys
from pathlib import Path

from fruitcnn.classify import ClassifyConfig, prepare


def main(model: str, listing: str, predictions: str) -> None:
    """Plan, and tell names, parts, the peak memory of this process and the size of the plan, bytes."""
    plan = prepare(ClassifyConfig(model=model, images=listing, predictions=predictions)).plan
    said = {"num_names": plan.num_inputs, "num_parts": plan.num_parts}
    said["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    said["plan_bytes"] = sum(path.stat().st_size for path in Path(predictions).rglob("*") if path.is_file())
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])

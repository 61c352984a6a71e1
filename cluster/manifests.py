"""The manifests that are made from cluster/kuberay/raycluster.yaml: `python -m cluster.manifests` writes them again.

A test fails when they do not match it. For a job of your own: python -m jobs.submit JOB --as rayjob -- ARGS
"""

from pathlib import Path

from fruitcnn.kuberay import as_text, cronjob, raycronjob, rayjob

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "cluster" / "kuberay"
BUCKET = "s3://YOUR-BUCKET"
NIGHTLY = "0 2 * * *"

TRAIN = ["--dataset", f"{BUCKET}/dataset", "--run", f"{BUCKET}/runs/1", "--num-workers", "4",
         "--global-batch-size", "256", "--cpus-per-worker", "4"]  # fmt: skip
CLASSIFY = ["--model", f"{BUCKET}/model", "--images", f"{BUCKET}/incoming/", "--predictions",
            f"{BUCKET}/predictions/1", "--max-rejected", "1%"]  # fmt: skip
RETRAIN = ["--source", f"{BUCKET}/labelled", "--dataset", f"{BUCKET}/dataset", "--registry", f"{BUCKET}/registry"]


def manifests() -> dict[str, str]:
    """File name -> its text."""
    made = "# Made from raycluster.yaml by `python -m cluster.manifests`: change it there.\n"
    retrain = rayjob(ROOT, "fruitcnn-retrain", "retrain", RETRAIN)
    return {
        "rayjob-train.yaml": made + as_text(rayjob(ROOT, "fruitcnn-train", "train", TRAIN)),
        "rayjob-classify.yaml": made + as_text(rayjob(ROOT, "fruitcnn-classify", "classify", CLASSIFY)),
        "retrain-cronjob.yaml": made + as_text(*cronjob(retrain, NIGHTLY)),
        "retrain-raycronjob.yaml": made
        + "# Needs KubeRay's feature gate RayCronJob (alpha). retrain-cronjob.yaml does the same everywhere.\n"
        + as_text(raycronjob(retrain, NIGHTLY)),
    }


if __name__ == "__main__":
    for file, text in manifests().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
        print(FOLDER / file)

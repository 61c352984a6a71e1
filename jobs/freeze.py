"""A training run -> a frozen model in every format, each proven to answer as Keras does.

    python -m jobs.freeze --run work/run --model work/model
    python -m jobs.freeze --check work/model

The first freezes the best checkpoint; the same again changes nothing. The second proves an existing model, in a folder
or on S3: the hash of every file, and the golden answers of every format; exit code 1 if one does not hold.
"""

from fruitcnn.freeze_config import FreezeConfig
from jobs.cli import progress, run, summary


def main(config: FreezeConfig) -> None:
    """Freeze or check, then show what was found."""
    if config.check:
        _check(config.check)
        return
    from fruitcnn.freezing import freeze
    from fruitcnn.runtimes import QUANTISED

    description = freeze(config, progress)
    rows = {"architecture": description.architecture, "classes": len(description.labels)}
    rows |= {f"{name} accuracy": f"{score['accuracy']:.2%}" for name, score in description.metrics.items()}
    rows |= {
        each.format: f"same top-1 on {each.same_top1:.2%} of {each.num_images:,} images, "
        f"probabilities within {each.max_difference:.1e}, scores within {each.score_difference:.1e}"
        + (f", accuracy {each.accuracy:.2%}" if each.format in QUANTISED else "")
        for each in description.agreement
    }
    limits = description.limits
    rows["unsure"] = f"unlike above {limits.max_unlike:.3g}, margin below {limits.min_margin:.3g}"
    rows["temperature"] = f"{limits.temperature:.2f}"
    rows["bytes"] = sum(file.num_bytes for file in description.files.values())
    summary("frozen model, compared with Keras", rows, {"frozen model": config.model, "run": config.run})


def _check(model_uri: str) -> None:
    from fruitcnn.bundle import FrozenModelError
    from fruitcnn.frozen import check

    with progress("check", None, "formats") as update:
        proofs = []
        for proof in check(model_uri):
            proofs.append(proof)
            update(len(proofs), proof.format)
    rows = {
        proof.format: proof.problem
        or f"golden answers within {proof.max_difference:.1e}, scores within {proof.score_difference:.1e}"
        for proof in proofs
    }
    summary("every hash is right; golden answers", rows, {"frozen model": model_uri})
    if wrong := [proof for proof in proofs if proof.problem]:
        raise FrozenModelError("; ".join(f"{proof.format} ({proof.file}): {proof.problem}" for proof in wrong))


if __name__ == "__main__":
    run(FreezeConfig, main, __doc__)

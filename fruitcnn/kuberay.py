"""The cluster of cluster/kuberay/raycluster.yaml -> RayJobs that bring such a cluster. Pure; for jobs.submit."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

RAYCLUSTER = Path("cluster/kuberay/raycluster.yaml")
BACKOFF_LIMIT = 2
"""Attempts after the first. KubeRay may start one while the last still runs; the jobs' own claims allow for that."""

_DAY_SECONDS = 24 * 3600
KUBECTL_IMAGE = "registry.example/kubectl:1.32"


def rayjob(root: Path, name: str, job: str, arguments: Sequence[str], image: str | None = None) -> dict[str, Any]:
    """A RayJob that starts the cluster, runs `python -m jobs.<job> <arguments>` on it, and takes it away again.

    `image` replaces that of the head and the workers without GPU. The code is the image's own.
    """
    cluster = yaml.safe_load((root / RAYCLUSTER).read_text("utf-8"))
    spec = cluster["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups if image else []:
        if group.get("groupName") != "gpu":
            group["template"]["spec"]["containers"][0]["image"] = image
    spec["workerGroupSpecs"] = [group for group in spec["workerGroupSpecs"] if _is_needed(group, arguments)]
    head = spec["headGroupSpec"]["template"]["spec"]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": cluster["metadata"]["namespace"]},
        "spec": {
            "entrypoint": shlex.join(["python", "-m", f"jobs.{job}", *arguments]),
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "activeDeadlineSeconds": _DAY_SECONDS,
            "backoffLimit": BACKOFF_LIMIT,
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": _submitter(head),
            "rayClusterSpec": spec,
        },
    }


def _is_needed(group: dict[str, Any], arguments: Sequence[str]) -> bool:
    return group["groupName"] != "gpu" or "--use-gpu" in arguments


def _submitter(head: dict[str, Any]) -> dict[str, Any]:
    container = head["containers"][0]
    small = {"cpu": "500m", "memory": "512Mi"}
    return {
        "metadata": {"labels": {"app.kubernetes.io/part-of": "fruitcnn"}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": head["securityContext"],
            "containers": [
                {
                    "name": "submitter",
                    "image": container["image"],
                    "securityContext": container["securityContext"],
                    "resources": {"requests": small, "limits": small},
                }
            ],
        },
    }


def cronjob(job: dict[str, Any], schedule: str) -> list[dict[str, Any]]:
    """ConfigMap and CronJob that create `job` anew by `schedule` (cron, UTC). Works with every KubeRay."""
    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    made = job | {"metadata": {"generateName": f"{name}-", "namespace": namespace}}
    small = {"cpu": "100m", "memory": "128Mi"}
    container = {
        "name": "create",
        "image": KUBECTL_IMAGE,
        "command": ["kubectl", "create", "-f", "/manifest/rayjob.yaml"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "resources": {"requests": small, "limits": small},
        "volumeMounts": [{"name": "manifest", "mountPath": "/manifest", "readOnly": True}],
    }
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": "fruitcnn-scheduler",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "manifest", "configMap": {"name": f"{name}-rayjob"}}],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{name}-rayjob", "namespace": namespace},
            "data": {"rayjob.yaml": as_text(made)},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "schedule": schedule,
                "timeZone": "Etc/UTC",
                "concurrencyPolicy": "Forbid",
                "successfulJobsHistoryLimit": 3,
                "failedJobsHistoryLimit": 3,
                "jobTemplate": {"spec": {"backoffLimit": 3, "template": {"spec": pod}}},
            },
        },
    ]


def raycronjob(job: dict[str, Any], schedule: str) -> dict[str, Any]:
    """The same as one RayCronJob: alpha in KubeRay, off by default, without concurrency policy and history."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": dict(job["metadata"]),
        "spec": {"schedule": schedule, "timeZone": "Etc/UTC", "jobTemplate": job["spec"]},
    }


def as_text(*documents: dict[str, Any]) -> str:
    """YAML, one document after the other, keys in the order given, nothing by reference."""
    return "---\n".join(yaml.dump(each, Dumper=_Plain, sort_keys=False, width=120) for each in documents)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class's signature
        """Say everything in full: anchors are for people who write by hand."""
        return True

    def represent_str(self, data: str) -> Any:
        """Text of several lines as a block, so that a manifest inside a ConfigMap can be read."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Plain.add_representer(str, _Plain.represent_str)

"""Every manifest under cluster/: valid by its schema, of this project's versions, its commands read by the jobs."""

import json
import shlex
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import manifests
from jobs import entry

ROOT = Path(__file__).resolve().parents[1]
KUBERAY = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
CRDS = ROOT.parent / "shared" / "kuberay-crds"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
LOCKED = {each["name"]: each.get("version") for each in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
KUBERNETES = "1.32"


def _documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every document of every file, also those inside a ConfigMap."""
    for file in KUBERAY:
        for document in yaml.safe_load_all(file.read_text()):
            yield f"{file.name}:{document['kind']}", document
            if document["kind"] == "ConfigMap" and "rayjob.yaml" in document["data"]:
                yield f"{file.name}:embedded", yaml.safe_load(document["data"]["rayjob.yaml"])


DOCUMENTS = dict(_documents())
RAY = {name: document for name, document in DOCUMENTS.items() if document["apiVersion"].startswith("ray.io/")}
PLAIN = {name: document for name, document in DOCUMENTS.items() if name not in RAY}


def _strict(schema: Any) -> Any:
    """The CRD's schema, refusing fields that it does not know: the API server would drop them without a word."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        strict.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields", False)))
    return strict


@pytest.fixture(scope="session")
def crds() -> dict[str, Any]:
    """Kind -> strict JSON schema of version v1."""
    if not CRDS.is_dir():
        pytest.skip("no ../shared/kuberay-crds: it holds the schemas that this test needs")
    found = {}
    for file in CRDS.glob("*.yaml"):
        document = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        version = next(each for each in document["spec"]["versions"] if each["name"] == "v1")
        schema = _strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        found[document["spec"]["names"]["kind"]] = schema
    return found


def _problems(schema: Any, document: dict[str, Any]) -> list[str]:
    import jsonschema

    found = jsonschema.Draft7Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


@pytest.mark.parametrize("name", RAY)
def test_ray_resources_fit_the_schemas_of_kuberay(name: str, crds: dict[str, Any]):
    assert not _problems(crds[RAY[name]["kind"]], RAY[name])


def test_the_schemas_notice_a_field_that_does_not_exist(crds: dict[str, Any]):
    document = yaml.safe_load((ROOT / "cluster/kuberay/raycluster.yaml").read_text())
    document["spec"]["headGroupSpec"]["template"]["spec"]["tolerationz"] = []
    assert "tolerationz" in str(_problems(crds["RayCluster"], document))


@pytest.mark.parametrize("name", PLAIN)
def test_other_resources_fit_the_schemas_of_kubernetes(name: str):
    import kubernetes_validate

    kubernetes_validate.validate(PLAIN[name], KUBERNETES, strict=True)


def _pods(document: Any) -> Iterator[dict[str, Any]]:
    """Every pod spec in a document."""
    if isinstance(document, dict):
        if "containers" in document:
            yield document
        for value in document.values():
            yield from _pods(value)
    elif isinstance(document, list):
        for each in document:
            yield from _pods(each)


def test_every_pod_template_is_one_to_kubernetes_and_locked_down():
    import kubernetes_validate

    pods = [(name, pod) for name, document in DOCUMENTS.items() for pod in _pods(document)]
    assert len(pods) > 8
    for name, pod in pods:
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        for container in pod["containers"]:
            assert container["resources"]["requests"], name
            assert container["resources"]["limits"], name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name


@pytest.mark.parametrize("name", RAY)
def test_versions_images_and_token_are_those_of_this_project(name: str):
    spec = RAY[name]["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("jobTemplate", {}).get("rayClusterSpec") or spec
    assert cluster["rayVersion"] == LOCKED["ray"]
    assert cluster["authOptions"]["mode"] == "token"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith(f":{VERSION}-{'gpu' if gpu else 'cpu'}")
        assert bool(group["template"]["spec"].get("tolerations")) == gpu
        assert {"mountPath": "/dev/shm", "name": "shared-memory"} in container["volumeMounts"]


def _commands() -> dict[str, str]:
    found = {}
    for name, document in RAY.items():
        spec = document["spec"].get("jobTemplate", document["spec"])
        if "entrypoint" in spec:
            found[name] = spec["entrypoint"]
    return found


@pytest.mark.parametrize("name", _commands())
def test_every_entrypoint_is_read_by_the_jobs_own_config(name: str):
    python, flag, module, *arguments = shlex.split(_commands()[name])
    assert (python, flag) == ("python", "-m")
    job = module.removeprefix("jobs.")
    if job not in entry.names():
        pytest.skip(f"there is no {module} yet")
    config, sent = entry.read_arguments(entry.load(job), arguments, {})
    assert sent == arguments
    assert config.model_fields_set


def test_the_made_files_are_those_that_are_here():
    for name, text in manifests.manifests().items():
        assert (manifests.FOLDER / name).read_text() == text, f"{name}: run python -m cluster.manifests"


def test_a_rayjob_with_gpus_brings_gpu_nodes_and_one_without_does_not():
    from fruitcnn.kuberay import rayjob

    def groups(arguments: list[str]) -> list[str]:
        cluster = rayjob(ROOT, "x", "train", arguments)["spec"]["rayClusterSpec"]
        return [each["groupName"] for each in cluster["workerGroupSpecs"]]

    assert groups([]) == ["cpu"]
    assert groups(["--use-gpu"]) == ["cpu", "gpu"]


def test_network_policy_selects_every_ray_pod():
    policy = DOCUMENTS["network.yaml:NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    cluster = RAY["raycluster.yaml:RayCluster"]["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert policy.items() <= group["template"]["metadata"]["labels"].items()


def test_no_manifest_holds_a_secret():
    for name, document in DOCUMENTS.items():
        assert document["kind"] != "Secret", name
        assert "SECRET_ACCESS_KEY" not in yaml.dump(document), name


def test_ray_up_fits_rays_own_schema():
    import jsonschema
    import ray.autoscaler

    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text()
    config = _ray_up()
    jsonschema.validate(config, json.loads(schema))
    assert config["docker"]["image"].endswith(f":{VERSION}-cpu")


def _ray_up() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / "ray-up.yaml").read_text())


def test_ray_up_starts_nodes_with_token_and_without_keys():
    config = _ray_up()
    groups = config["available_node_types"]
    assert {"head", "cpu", "gpu"} == set(groups)
    for name, group in groups.items():
        assert group["node_config"]["IamInstanceProfile"], name
        assert group["max_workers"] >= group["min_workers"], name
    assert groups["head"]["resources"]["CPU"] == 0
    assert groups["cpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    for command in (*config["head_start_ray_commands"], *config["worker_start_ray_commands"]):
        if "ray start" in command:
            assert "RAY_AUTH_MODE=token" in command


def test_hadolint_finds_nothing_to_say_about_the_dockerfile():
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    found = subprocess.run([hadolint, "cluster/Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_dockerfile_builds_from_the_lock_and_does_not_run_as_root():
    lines = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
    code = "\n".join(line for line in lines if not line.startswith("#"))
    assert "uv sync --frozen --no-dev" in code
    stages = [line.split()[-1] for line in lines if line.startswith("FROM")]
    assert {"cpu", "gpu"} <= set(stages)
    assert code.rstrip().splitlines()[-1].startswith("USER") or "USER 1000" in code
    assert ":latest" not in code

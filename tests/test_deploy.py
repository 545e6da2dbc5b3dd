"""What deploy/ says: valid for Kubernetes, alike where two files say the same, real commands."""

import configparser
import os
import pathlib
import re
import subprocess

import pytest
import test_docs
import yaml

from tf_autoctx.training import cluster

validation = pytest.importorskip("kubernetes_validate")

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KINDS = {
    "predict.yaml": ["Job"],
    "serving.yaml": ["Deployment", "Service", "HorizontalPodAutoscaler"],
    "storage.yaml": ["PersistentVolumeClaim"] * 2,
    "train.yaml": ["Service", "NetworkPolicy", "Job"],
}


def objects(name):
    """{kind: object} of a manifest."""
    loaded = yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text(encoding="utf-8"))
    return {each["kind"]: each for each in loaded}


def pod(manifest):
    """The pod of a Job or Deployment, and its container."""
    spec = manifest["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path, version):
    loaded = [*yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    assert [each["kind"] for each in loaded] == KINDS[path.name]
    for each in loaded:
        validation.validate(each, version, strict=True)


@pytest.mark.parametrize("name", ["train.yaml", "predict.yaml", "serving.yaml"])
def test_pods_may_do_what_they_need_and_no_more(name):
    """What Kubernetes calls the restricted standard."""
    spec, container = pod(next(x for k, x in objects(name).items() if k in ("Job", "Deployment")))
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    _, _, tag = container["image"].rpartition(":")
    assert tag in ("cpu", "gpu") or re.fullmatch(r"\d+\.\d+\.\d+", tag)


def test_only_workers_of_a_training_reach_one_another():
    found = objects("train.yaml")
    workers = {"podSelector": {"matchLabels": found["Service"]["spec"]["selector"]}}
    allowed = {"policyTypes": ["Ingress"], "ingress": [{"from": [workers]}]}
    assert found["NetworkPolicy"]["spec"] == workers | allowed


def test_what_no_schema_knows_is_seen():
    job = objects("train.yaml")["Job"]
    job["spec"]["completionmode"] = "Indexed"
    with pytest.raises(validation.ValidationError, match="completionmode"):
        validation.validate(job, "1.37", strict=True)


def test_the_workers_of_a_training_find_one_another(monkeypatch):
    """The Job, its pods' subdomain and the service have one name, and the pods have hosts of it."""
    found = objects("train.yaml")
    job, service = found["Job"], found["Service"]
    spec, worker = pod(job)
    name, count = service["metadata"]["name"], job["spec"]["completions"]
    assert job["metadata"]["name"] == spec["subdomain"] == name
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None" and job["spec"]["parallelism"] == count
    ports = [service["spec"]["ports"][0]["port"], worker["ports"][0]["containerPort"]]
    assert ports == [cluster.PORT] * 2
    variables = {each["name"]: each["value"] for each in worker["env"]}
    monkeypatch.setenv("TF_CONFIG", "")
    for key, value in (variables | {"JOB_COMPLETION_INDEX": str(count - 1)}).items():
        monkeypatch.setenv(key, value)
    made = yaml.safe_load(cluster.tf_config())
    assert made["cluster"]["worker"] == [f"{name}-{k}.{name}:2222" for k in range(count)]


@pytest.mark.parametrize("name", ["train.yaml", "predict.yaml"])
def test_commands_of_jobs_exist(name):
    job = objects(name)["Job"]
    _, container = pod(job)
    index = "$(JOB_COMPLETION_INDEX)"  # which Kubernetes fills in
    words = [word.replace(index, "0") for word in container["command"] + container["args"]]
    test_docs.check_command_line(words)
    if name == "predict.yaml":
        assert f"--num_parts={job['spec']['completions']}" in words
        assert f"--part_id={index}" in container["args"]


@pytest.mark.parametrize("name", ["train.yaml", "predict.yaml", "serving.yaml"])
def test_folders_are_mounted_from_claims_that_are_made(name):
    text = (DEPLOY / "kubernetes" / "storage.yaml").read_text(encoding="utf-8")
    claims = [each["metadata"]["name"] for each in yaml.safe_load_all(text)]
    spec, container = pod(next(x for k, x in objects(name).items() if k in ("Job", "Deployment")))
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounted = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
    told = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in mounted.values()
        if "configMap" not in volume
    ]
    assert told and set(told) <= set(claims)
    paths = re.findall(r"=(/\w+)/", " ".join(container["args"]))
    assert paths and set(paths) <= set(mounted)


def test_kubernetes_and_docker_serve_alike():
    found = objects("serving.yaml")
    _, container = pod(found["Deployment"])
    compose = yaml.safe_load((ROOT / "serving" / "docker-compose.yml").read_text(encoding="utf-8"))
    assert container["args"] == compose["services"]["serving"]["command"]
    models = (ROOT / "serving" / "models.config").read_text(encoding="utf-8")
    probed = container["readinessProbe"]["httpGet"]
    assert f'name: "{probed["path"].removeprefix("/v1/models/")}"' in models
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    served = {each["targetPort"]: each["port"] for each in found["Service"]["spec"]["ports"]}
    assert ports == served == {"grpc": 8500, "rest": 8501} and probed["port"] in ports
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    scaled = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert scaled["name"] == found["Deployment"]["metadata"]["name"]
    assert "replicas" not in found["Deployment"]["spec"]  # the autoscaler has the say
    assert "cpu" in container["resources"]["requests"]  # of which it takes a share


def test_the_image_is_built_of_extras_that_there_are():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    named = re.findall(r"EXTRAS=([\w,]+)", text)
    assert named == ["dicom,growth,gpu", "dicom,growth"]
    assert {extra for each in named for extra in each.split(",")} <= set(
        parser["options.extras_require"]
    )
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    for name in ("tf_autoctx", "setup.py", "setup.cfg", "README.md", "LICENSE"):
        assert f"\n!{name}\n" in sent and (ROOT / name).exists()


def part(tasks, number, **environment):
    """What becomes of a command in task `number` of an array."""
    array = {"COUNT": len(tasks), "MIN": min(tasks), "MAX": max(tasks), "ID": number}
    told = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
    script = str(DEPLOY / "slurm" / "parts.sbatch")
    command = ["bash", script, "echo", "autoctx-predict", "--model=a b"]
    variables = {k: v for k, v in os.environ.items() if k != "NUM_PARTS"} | told | environment
    return subprocess.run(command, capture_output=True, text=True, env=variables)


def test_a_task_of_an_array_is_told_its_part():
    told = "autoctx-predict --model=a b --num_parts={} --part_id=3\n"
    assert part(range(8), 3).stdout == told.format(8)
    assert part([3, 5], 3, NUM_PARTS="8").stdout == told.format(8)


@pytest.mark.parametrize("tasks", [[3, 5], [0, 3], range(1, 9)])
def test_some_parts_of_an_unknown_number_are_refused(tasks):
    ended = part(tasks, 3)
    assert ended.returncode == 1 and not ended.stdout
    assert (
        f"error: the array has {len(tasks)} tasks from {min(tasks)} to {max(tasks)}" in ended.stderr
    )
    assert "NUM_PARTS=8 sbatch --array=3,5" in ended.stderr


@pytest.mark.parametrize("path", sorted((DEPLOY / "slurm").iterdir()), ids=lambda path: path.name)
def test_commands_that_scripts_name_exist(path):
    text = re.sub(r"^# *", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [*test_docs.command_lines(re.sub(r"sbatch .*\.sbatch \\\n *", "", text))]
    assert len(lines) == text.count("\nsbatch ")
    for words in lines:
        test_docs.check_command_line(words)

"""Tests the files for the engines: what they were when they were looked over, and what the engines take."""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import HarnessError
from harness.launch.asked import Asked
from harness.launch.command import contained_words, train_words
from harness.launch.write import _starts, launched, texts, write
from harness.recipe.load import load_recipe, to_yaml
from tests.support.compose_schema import Compose
from tests.support.engine_schemas import expanded, kubernetes_object
from tests.support.launching import DIGEST, IMAGE, ODD, asked, given, run_script

GOLDEN = Path(__file__).parent / "golden" / "launch"
RECIPE = "name: mine\n# with a comment\nprompt: 'a: $HOME'\n"
OWN: dict[str, Any] = {"recipe": "/shared/my recipes/mine.yaml", "recipe_text": RECIPE}
LIMITS: dict[str, Any] = {"cpus": 32, "memory_gib": 200}
CASES: dict[str, Asked] = {
    "slurm": asked("slurm", environment={"HARNESS_CACHE": "/shared/cache"}, plan="2 x 8 x h100, exact"),
    "slurm_pyxis": asked(
        "slurm", image=IMAGE, time="1-00:00:00", partition="gpu", account="lab", **LIMITS, **OWN
    ),
    "kubernetes": asked("kubernetes", namespace="robots", secret="harness-keys", **LIMITS, **OWN),
    "compose": asked("compose", image="harness:cuda", gpus=1, **OWN),
    "compose_two_machines": asked("compose", image="harness:cuda", gpus=0, coordinator="ws1.lab", **LIMITS),
    "ray": asked("ray", **LIMITS, **OWN),
}
# Under a name of their own, so that no tool takes them for its own.
FILES = {f"{case}.{name}.txt": text for case, each in CASES.items() for name, text in texts(each).items()}
ODD_OPTIONS = [f"--set=data.prompt={ODD}", "--set=x=$(HOME)$$(HOME)$HOME", "--allow=host memory"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_was_looked_over(name: str) -> None:
    """HARNESS_GOLDEN=1 writes them anew, to be looked over in the difference."""
    path = GOLDEN / name
    if os.environ.get("HARNESS_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(FILES[name])
    assert FILES[name] == path.read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(FILES)


def objects(each: Asked) -> list[Any]:
    return [
        kubernetes_object(part)
        for name, text in texts(each).items()
        if name.endswith(".yaml")
        for part in yaml.safe_load_all(text)
    ]


def test_kubernetes_objects_have_no_field_that_its_sources_do_not_have() -> None:
    for each in (CASES["kubernetes"], asked("kubernetes"), asked("kubernetes", gpus=0, hosts=1)):
        kinds = [type(part).__name__ for part in objects(each)]
        maps = ["ConfigMap"] if each.recipe_text else []
        assert kinds == [*maps, "TrainingRuntime", "TrainJob", *maps, "JobSet", *maps, "Service", "Job"]


def test_every_pod_finds_its_coordinator_and_its_number() -> None:
    """By the names that the controllers give: JobSet's doc comment of enableDNSHostnames, and Kubernetes'
    page "Indexed Job", where the host is called NAME-INDEX below the pod's subdomain.
    """
    trainer, job_set, service, job = (
        next(part for part in objects(asked("kubernetes")) if type(part).__name__ == kind)
        for kind in ("TrainingRuntime", "JobSet", "Service", "Job")
    )
    name = "pi05-libero-001"
    container = job_set.spec.replicatedJobs[0].template.spec.template.spec.containers[0]
    variables = {each.name: each.value for each in container.env}
    assert variables["JAX_COORDINATOR_ADDRESS"] == f"{name}-host-0-0.{name}:61440"
    assert variables["JAX_NUM_PROCESSES"] == "2"
    pod = job.spec.template.spec
    variables = {each.name: each.value for each in pod.containers[0].env}
    assert variables["JAX_COORDINATOR_ADDRESS"] == f"{name}-0.{pod.subdomain}:61440"
    assert service.metadata.name == pod.subdomain
    assert service.spec.selector == {"batch.kubernetes.io/job-name": job.metadata.name}
    # Kubeflow Trainer sets the three variables itself, in the container of this name.
    replicated = trainer.spec.template.spec.replicatedJobs[0]
    assert replicated.name == replicated.template.spec.template.spec.containers[0].name == "node"
    assert replicated.template.metadata.labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}


@pytest.mark.parametrize("case", ["compose", "compose_two_machines"])
def test_a_compose_file_has_no_key_that_the_specification_does_not_have(case: str) -> None:
    made = Compose.model_validate(yaml.safe_load(FILES[f"{case}.compose.yaml.txt"]))
    assert list(made.services) == ["host-0", "host-1"]
    for number, service in enumerate(made.services.values()):
        assert service.environment["JAX_PROCESS_ID"] == str(number)
        assert service.environment["JAX_NUM_PROCESSES"] == "2"


def test_on_one_machine_each_service_has_its_own_gpus() -> None:
    services = yaml.safe_load(texts(asked("compose", gpus=2))["compose.yaml"])["services"]
    devices = [
        service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for service in services.values()
    ]
    assert devices == [["0", "1"], ["2", "3"]]


@pytest.mark.parametrize(
    ("coordinator", "address"),
    [
        ("ws1.lab", "ws1.lab:61440"),
        ("ws1:70", "ws1:70"),
        ("[fd00::1]", "[fd00::1]:61440"),
        ("[::1]:9", "[::1]:9"),
    ],
)
def test_the_coordinator_of_two_machines_has_a_port(coordinator: str, address: str) -> None:
    made = yaml.safe_load(texts(asked("compose", coordinator=coordinator))["compose.yaml"])
    assert {each["environment"]["JAX_COORDINATOR_ADDRESS"] for each in made["services"].values()} == {address}
    assert {each["network_mode"] for each in made["services"].values()} == {"host"}


def test_a_variable_that_was_given_counts_more_than_one_that_is_passed_on() -> None:
    given = {"NCCL_SOCKET_IFNAME": "eth0", "JAX_PROCESS_ID": "7"}
    text = texts(asked("compose", environment=given))["compose.yaml"]
    variables = yaml.safe_load(text)["services"]["host-1"]["environment"]
    assert variables["NCCL_SOCKET_IFNAME"] == "eth0"
    assert variables["HF_TOKEN"] is None
    assert variables["JAX_PROCESS_ID"] == "1"


def test_what_starts_a_compose_file_makes_its_directories_on_one_machine(tmp_path: Path) -> None:
    own = {name: str(tmp_path / name) for name in ("runs", "datasets", "cache")}
    each = asked("compose", out=str(tmp_path / "a b"), recipe_text="x: 1", **own)
    file = f"'{tmp_path}/a b/compose.yaml'"
    assert launched(each, write(each)).start == [
        f"mkdir -p {tmp_path}/runs {tmp_path}/datasets {tmp_path}/cache",
        f"docker compose -f {file} up",
    ]
    apart = asked("compose", out=str(tmp_path / "apart"), coordinator="ws1")
    assert [start.split(" ", 4)[-1] for start in launched(apart, write(apart)).start] == [
        "up host-0",
        "up host-1",
    ]


@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="docker compose is not installed",
)
@pytest.mark.parametrize("odd", [False, True])
def test_docker_compose_reads_back_what_was_meant(odd: bool, tmp_path: Path) -> None:
    more = OWN | (
        {"options": ODD_OPTIONS, "environment": {"ODD": ODD}, "runs": f"/shared/{ODD}"} if odd else {}
    )
    each = asked("compose", image="harness:cuda", **more)
    (tmp_path / "compose.yaml").write_text(texts(each)["compose.yaml"])
    done = subprocess.run(
        ["docker", "compose", "-f", str(tmp_path / "compose.yaml"), "config", "--format=json"],
        capture_output=True,
        text=True,
        check=True,
    )
    service = json.loads(done.stdout)["services"]["host-1"]
    # What is printed may be read again, so its dollar signs are doubled.
    words = [word.replace("$$", "$") for word in service["entrypoint"]]
    assert words == contained_words(each, f"/runs/{each.name}")
    if odd:
        assert service["environment"]["ODD"].replace("$$", "$") == ODD
        assert service["volumes"][0]["source"].replace("$$", "$") == f"/shared/{ODD}"


def test_kubernetes_hands_on_odd_options_as_they_are() -> None:
    each = asked("kubernetes", options=ODD_OPTIONS, environment={"ODD": ODD})
    for part in objects(each):
        if type(part).__name__ == "Job":
            container = part.spec.template.spec.containers[0]
            known = {"HOME": "/tmp"}
            assert [expanded(word, known) for word in container.command] == contained_words(
                each, f"/shared/runs/{each.name}"
            )
            assert expanded({one.name: one.value for one in container.env}["ODD"], known) == ODD


def test_a_container_makes_the_runs_directory_and_becomes_the_command(tmp_path: Path) -> None:
    each = asked("kubernetes", options=ODD_OPTIONS)
    words = contained_words(each, str(tmp_path / f"runs {ODD[:9]}" / "one"))
    # The program of the image is not here.
    words[words.index("/opt/harness/docker/entrypoint")] = shutil.which("printf") or "printf"
    words[words.index("train")] = "%s\\0"
    places = {"HARNESS_RUNS": str(tmp_path / "a b"), "HARNESS_CACHE": str(tmp_path / "c")}
    done = subprocess.run(words, env=places, capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words[words.index("%s\\0") + 1 :]
    assert (tmp_path / f"runs {ODD[:9]}" / "one").is_dir()


@pytest.mark.parametrize("case", ["slurm", "slurm_pyxis"])
def test_bash_takes_the_batch_script(case: str, tmp_path: Path) -> None:
    (tmp_path / "job").write_text(FILES[f"{case}.job.sbatch.txt"])
    subprocess.run(["bash", "-n", str(tmp_path / "job")], check=True)


def test_the_batch_script_hands_on_odd_options_as_they_are(tmp_path: Path) -> None:
    runs, out = f"{tmp_path}/{ODD}", f"{tmp_path}/out {ODD.replace(chr(92), '')}"
    Path(out).mkdir()
    each = asked(
        "slurm",
        options=ODD_OPTIONS,
        runs=runs,
        out=out,
        name=f"n {ODD.replace(chr(92), '')}",
        program=["p q", ODD],
    )
    done = run_script(texts(each)["job.sbatch"], tmp_path)
    assert done.returncode == 0, done.stderr
    (words,) = given(tmp_path, "srun")
    assert words[words.index("p q") :] == train_words(each, each.run, contained=False)
    assert Path(each.run).is_dir()


def test_pyxis_is_given_the_image_by_its_digest_as_enroot_takes_it() -> None:
    script = texts(asked("slurm", image=f"registry.example:5000/lab/harness:cuda@{DIGEST}"))["job.sbatch"]
    assert f"--container-image=registry.example:5000#lab/harness:{DIGEST}" in script
    script = texts(asked("slurm", image=f"lab/harness@{DIGEST}"))["job.sbatch"]
    assert f"--container-image=lab/harness:{DIGEST}" in script
    script = texts(asked("slurm", image="/shared/images/harness 1.sqsh"))["job.sbatch"]
    assert "'--container-image=/shared/images/harness 1.sqsh'" in script


def test_the_ray_script_is_python_and_holds_what_was_meant() -> None:
    each = asked("ray", options=ODD_OPTIONS, environment={"ODD": ODD}, runs=f"/shared/{ODD}")
    source = texts(each)["ray_job.py"]
    compile(source, "ray_job.py", "exec")
    found = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert found["COMMAND"] == train_words(each, each.run, contained=False)
    assert found["RUN"] == each.run
    assert found["ENVIRONMENT"] == {"ODD": ODD}
    assert found["SCALING"]["resources_per_worker"] == {"CPU": 1, "GPU": 8}


@pytest.mark.parametrize("join", [shlex.join, subprocess.list2cmdline])
@pytest.mark.parametrize("name", ["plain", "my launches (2); it's", "é-1.2+3"])
def test_what_starts_the_ray_script_reaches_the_shell_of_old_and_new_ray(
    name: str, join: Callable[[list[str]], str]
) -> None:
    each = asked("ray", out=f"/shared/{name}")
    texts(each)
    [start] = _starts(each, Path(each.out) / "ray_job.py")
    typed = shlex.split(start)
    assert typed[:5] == ["ray", "job", "submit", "--", "python"]
    line = "printf %s " + join(typed[5:])
    assert subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout == typed[5]
    assert typed[5] == f"{each.out}/ray_job.py"


@pytest.mark.parametrize("name", ["$HOME", "it's", "a b$c", "(1)", 'a b"c', "a;b"])
def test_a_name_that_rays_shell_takes_for_another_is_refused(name: str) -> None:
    with pytest.raises(HarnessError) as caught:
        texts(asked("ray", out=f"/shared/{name}"))
    assert caught.value.code == "launch-path"


def test_no_name_of_a_run_is_taken_for_the_scripts_encoding() -> None:
    """Python looks for `coding: NAME` in the first two lines of a file."""
    compile(texts(asked("ray", name="video-encoding"))["ray_job.py"].encode(), "ray_job.py", "exec")


def test_a_recipe_of_ones_own_goes_along_whole() -> None:
    recipe = to_yaml(load_recipe("smoke"))
    more = {"recipe": "/home/me/mine.yaml", "recipe_text": recipe}
    config = yaml.safe_load_all(texts(asked("kubernetes", **more))["jobset.yaml"])
    assert next(iter(config))["data"]["recipe.yaml"] == recipe
    compose = texts(asked("compose", **more))
    assert compose["recipe.yaml"] == recipe
    assert yaml.safe_load(compose["compose.yaml"])["configs"] == {"recipe": {"file": "./recipe.yaml"}}
    tree = ast.parse(texts(asked("ray", **more))["ray_job.py"])
    assert any(isinstance(node, ast.Constant) and node.value == recipe for node in ast.walk(tree))

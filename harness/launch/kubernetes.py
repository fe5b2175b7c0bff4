"""What Kubernetes takes: a TrainJob for Kubeflow Trainer, a JobSet, and a plain Indexed Job with its service.

Any one of them is enough; they are for what a cluster has installed. All processes are pods of one Indexed
Job, so each has its number, and a headless service gives pod 0 a name before it is ready.

- trainjob.yaml: Kubeflow Trainer 2.2, trainer.kubeflow.org/v1alpha1 (pkg/apis/trainer/v1alpha1,
  pkg/runtime/framework/plugins/jax/jax.go, charts/…/runtimes/jax-distributed.yaml). It brings a runtime of
  its own with the policy of `jax-distributed`. A TrainJob may not patch the time in which a pod ends, so with
  that one a pod that is stopped had 30 s for its save. Trainer sets coordinator, count and number.
- jobset.yaml: jobset.x-k8s.io/v1alpha2 (api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset).
- job.yaml: batch/v1 (kubernetes.io, "Job", "Indexed Job").
"""

from __future__ import annotations

import re
from typing import Any

from harness.launch.asked import PORT, Asked
from harness.launch.command import RECIPE, contained_words, head
from harness.launch.yaml_text import documents
from harness.run.cluster import COORDINATOR, COUNT
from harness.run.directory import RECIPE as KEY

TRAIN_JOB_FILE, JOB_SET_FILE, JOB_FILE = "trainjob.yaml", "jobset.yaml", "job.yaml"
# The labels that their controllers give to every pod of theirs, with the name.
_JOB_SET, _JOB = "jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-name"
# Where the claim is mounted. Runs, datasets and cache are directories of it.
_SHARED = "/shared"
_DIRECTORIES = {
    "HARNESS_RUNS": f"{_SHARED}/runs",
    "HARNESS_DATASETS": f"{_SHARED}/datasets",
    "HARNESS_CACHE": f"{_SHARED}/cache",
    "HF_HOME": f"{_SHARED}/cache/huggingface",
    "JAX_COMPILATION_CACHE_DIR": f"{_SHARED}/cache/jax",
}
# The name of Trainer's replicated job and of its container is a contract: jax.go looks for it.
_NODE = "node"


def train_job(asked: Asked) -> str:
    """trainjob.yaml: a TrainingRuntime and the TrainJob that names it."""
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {**_named(asked), "labels": {"trainer.kubeflow.org/framework": "jax"}},
        "spec": {
            "mlPolicy": {"numNodes": asked.hosts, "jax": {}},
            "template": {
                "spec": {
                    "failurePolicy": _restarts(asked),
                    "replicatedJobs": [
                        {
                            "name": _NODE,
                            "template": {
                                "metadata": {
                                    "labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
                                },
                                "spec": {"backoffLimit": 0, "template": {"spec": _pod(asked, {}, _JOB_SET)}},
                            },
                        }
                    ],
                }
            },
        },
    }
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _named(asked),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": asked.dns,
            },
            "trainer": {"numNodes": asked.hosts},
        },
    }
    return documents(
        [*_head(asked, TRAIN_JOB_FILE), "Needs Kubeflow Trainer 2.2 or newer."], *_config(asked), runtime, job
    )


def job_set(asked: Asked) -> str:
    """jobset.yaml: one JobSet. All its pods are made anew when one fails."""
    host = "host"
    coordinator = f"{asked.dns}-{host}-0-0.{asked.dns}:{PORT}"
    made = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _named(asked),
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": asked.dns},
            "failurePolicy": _restarts(asked),
            "replicatedJobs": [
                {
                    "name": host,
                    "replicas": 1,
                    "template": {
                        "spec": {
                            **_indexed(asked),
                            "backoffLimit": 0,
                            "template": {"spec": _pod(asked, _variables(asked, coordinator), _JOB_SET)},
                        }
                    },
                }
            ],
        },
    }
    return documents([*_head(asked, JOB_SET_FILE), "Needs JobSet 0.8 or newer."], *_config(asked), made)


def indexed_job(asked: Asked) -> str:
    """job.yaml: a headless service and an Indexed Job. A pod that fails is made anew, and then its peers."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _named(asked),
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {_JOB: asked.dns}},
    }
    pod = {
        "subdomain": asked.dns,
        **_pod(asked, _variables(asked, f"{asked.dns}-0.{asked.dns}:{PORT}"), _JOB),
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _named(asked),
        "spec": {
            **_indexed(asked),
            # Each pod that ends badly counts, and one failure ends all.
            "backoffLimit": asked.restarts * asked.hosts,
            "template": {"spec": pod},
        },
    }
    return documents(_head(asked, JOB_FILE), *_config(asked), service, job)


def _head(asked: Asked, file: str) -> list[str]:
    return head(
        asked,
        f"kubectl apply -f {file}     starts it; deleted and applied again, it goes on from the last save",
    )


def _named(asked: Asked) -> dict[str, Any]:
    return {"name": asked.dns} | ({"namespace": asked.namespace} if asked.namespace else {})


def _restarts(asked: Asked) -> dict[str, Any]:
    # No pod of the new start may meet one of the old: two processes 0 would write in one run.
    return {"maxRestarts": asked.restarts, "restartStrategy": "BlockingRecreate"}


def _indexed(asked: Asked) -> dict[str, Any]:
    return {"completionMode": "Indexed", "completions": asked.hosts, "parallelism": asked.hosts}


def _variables(asked: Asked, coordinator: str) -> dict[str, str]:
    """What each process is told. Its own number it reads from JOB_COMPLETION_INDEX."""
    return {COORDINATOR: coordinator, COUNT: str(asked.hosts)}


def _config(asked: Asked) -> list[dict[str, Any]]:
    """The recipe's file as a ConfigMap. Nothing for a shipped recipe, which the image has."""
    if asked.recipe_text is None:
        return []
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {**_named(asked), "name": f"{asked.dns}-recipe"},
            "immutable": True,
            "data": {KEY: asked.recipe_text},
        }
    ]


def _literal(text: str) -> str:
    """`text` for a field in which Kubernetes puts the value of a variable in the place of $(NAME)."""
    return re.sub(r"\$(?=[$(])", "$$", text)


def _resources(asked: Asked) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if asked.gpus:
        limits["nvidia.com/gpu"] = asked.gpus
    if asked.cpus is not None:
        limits["cpu"] = asked.cpus
    if asked.memory_gib is not None:
        limits["memory"] = f"{asked.memory_gib}Gi"
    return {"limits": limits} if limits else {}


def _pod(asked: Asked, variables: dict[str, str], label: str) -> dict[str, Any]:
    """The pod of one host, as compose.yaml confines a container: read-only, without capabilities.

    `label` is what all pods of the run have, with the run's name. No two of them come to one machine.
    """
    uid, gid = asked.user
    volumes, mounts = _volumes(asked)
    container: dict[str, Any] = {
        "name": _NODE,
        "image": asked.image,
        "command": [_literal(each) for each in contained_words(asked, f"{_SHARED}/runs/{asked.name}")],
        "env": [
            {"name": name, "value": _literal(value)}
            for name, value in (_DIRECTORIES | asked.environment | variables).items()
        ],
        "resources": _resources(asked),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if asked.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": asked.secret}}]
    if variables:
        container["ports"] = [{"containerPort": PORT}]
    others = {"labelSelector": {"matchLabels": {label: asked.dns}}, "topologyKey": "kubernetes.io/hostname"}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": asked.grace_s,
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [others]}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": uid,
            "runAsGroup": gid,
            "fsGroup": gid,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }


def _volumes(asked: Asked) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(the pod's volumes, where its container has them)."""
    mounts: list[dict[str, Any]] = [
        {"name": "shared", "mountPath": _SHARED},
        {"name": "memory", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": asked.claim}},
        # The loader's processes hand batches over in it.
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if asked.recipe_text is not None:
        mounts.append({"name": "recipe", "mountPath": RECIPE, "subPath": KEY, "readOnly": True})
        volumes.append({"name": "recipe", "configMap": {"name": f"{asked.dns}-recipe"}})
    return volumes, mounts

"""The fields of the engines' files that the harness writes, as their own sources say them.

Each model refuses a field that it does not have, so a name that the engine does not know is found. Only what
is written is here.

- Kubernetes 1.32, batch/v1 and core/v1: api/batch/v1/types.go, api/core/v1/types.go of kubernetes/api.
- JobSet: api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset.
- Kubeflow Trainer 2.2: pkg/apis/trainer/v1alpha1/trainjob_types.go and trainingruntime_types.go, and
  pkg/runtime/framework/plugins/jax/jax.go, which looks for the label and the name of the container.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

# RFC 1035, as the API servers check names of services, JobSets and TrainJobs.
Label = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Digest = Annotated[str, StringConstraints(pattern=r"^\S+@sha256:[0-9a-f]{64}$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[1-9]\d*Gi$")]


class Known(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Known):
    name: Label
    namespace: str | None = None
    labels: dict[str, str] = {}


class Labels(Known):
    labels: dict[str, str]


class Variable(Known):
    name: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")]
    value: str


class SecretName(Known):
    name: str


class FromSecret(Known):
    secretRef: SecretName


class Mount(Known):
    name: Label
    mountPath: str
    subPath: str | None = None
    readOnly: bool = False


class Limits(Known):
    gpus: int | None = Field(default=None, alias="nvidia.com/gpu")
    cpu: int | None = None
    memory: Quantity | None = None


class Resources(Known):
    limits: Limits | None = None


class Capabilities(Known):
    drop: list[Literal["ALL"]]


class ContainerSecurity(Known):
    allowPrivilegeEscalation: bool
    readOnlyRootFilesystem: bool
    capabilities: Capabilities


class Port(Known):
    containerPort: int


class Container(Known):
    name: Label
    image: Digest
    command: list[str]
    env: list[Variable]
    envFrom: list[FromSecret] = []
    resources: Resources
    volumeMounts: list[Mount]
    securityContext: ContainerSecurity
    ports: list[Port] = []


class Claim(Known):
    claimName: str


class EmptyDir(Known):
    medium: Literal["Memory"] | None = None
    sizeLimit: Quantity | None = None


class ConfigMapName(Known):
    name: str


class Volume(Known):
    name: Label
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None
    configMap: ConfigMapName | None = None


class Selector(Known):
    matchLabels: dict[str, str]


class Term(Known):
    labelSelector: Selector
    topologyKey: str


class AntiAffinity(Known):
    requiredDuringSchedulingIgnoredDuringExecution: list[Term]


class Affinity(Known):
    podAntiAffinity: AntiAffinity


class Seccomp(Known):
    type: Literal["RuntimeDefault"]


class PodSecurity(Known):
    runAsNonRoot: bool
    runAsUser: int
    runAsGroup: int
    fsGroup: int
    fsGroupChangePolicy: Literal["OnRootMismatch", "Always"]
    seccompProfile: Seccomp


class Pod(Known):
    subdomain: Label | None = None
    # A Job takes no other policy of pods that are made anew.
    restartPolicy: Literal["Never"]
    terminationGracePeriodSeconds: int
    affinity: Affinity
    securityContext: PodSecurity
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    volumes: list[Volume]


class PodTemplate(Known):
    spec: Pod


class JobSpec(Known):
    completionMode: Literal["Indexed"] | None = None
    completions: int | None = None
    parallelism: int | None = None
    backoffLimit: int
    template: PodTemplate


class JobTemplate(Known):
    metadata: Labels | None = None
    spec: JobSpec


class ReplicatedJob(Known):
    name: Label
    replicas: int = 1
    template: JobTemplate


class FailurePolicy(Known):
    maxRestarts: int
    restartStrategy: Literal["Recreate", "BlockingRecreate", "InPlaceRestart"]


class Network(Known):
    enableDNSHostnames: bool
    publishNotReadyAddresses: bool
    subdomain: Label


class JobSetSpec(Known):
    network: Network | None = None
    failurePolicy: FailurePolicy
    replicatedJobs: list[ReplicatedJob]


class JobSet(Known):
    apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: Metadata
    spec: JobSetSpec


class Job(Known):
    apiVersion: Literal["batch/v1"]
    kind: Literal["Job"]
    metadata: Metadata
    spec: JobSpec


class ServiceSpec(Known):
    clusterIP: Literal["None"]
    publishNotReadyAddresses: bool
    selector: dict[str, str]


class Service(Known):
    apiVersion: Literal["v1"]
    kind: Literal["Service"]
    metadata: Metadata
    spec: ServiceSpec


class ConfigMap(Known):
    apiVersion: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Metadata
    immutable: bool
    data: dict[Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$")], str]


class Empty(Known):
    pass


class MlPolicy(Known):
    numNodes: int
    jax: Empty


class JobSetTemplate(Known):
    spec: JobSetSpec


class RuntimeSpec(Known):
    mlPolicy: MlPolicy
    template: JobSetTemplate


class TrainingRuntime(Known):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainingRuntime"]
    metadata: Metadata
    spec: RuntimeSpec


class RuntimeRef(Known):
    apiGroup: Literal["trainer.kubeflow.org"]
    kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"]
    name: Label


class Trainer(Known):
    numNodes: int


class TrainJobSpec(Known):
    runtimeRef: RuntimeRef
    trainer: Trainer


class TrainJob(Known):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata
    spec: TrainJobSpec


_OBJECT: TypeAdapter[Any] = TypeAdapter(
    Annotated[JobSet | Job | Service | ConfigMap | TrainingRuntime | TrainJob, Field(discriminator="kind")]
)


def kubernetes_object(data: Any) -> Any:
    """The object that `data` is. Raises: pydantic.ValidationError."""
    return _OBJECT.validate_python(data)


def expanded(text: str, variables: dict[str, str]) -> str:
    """A field of a container's command as Kubernetes passes it on.

    Source: kubernetes/kubernetes third_party/forked/golang/expansion/expand.go: $(NAME) is replaced where
    NAME is known, $$ is one dollar sign, any other dollar sign stays.
    """
    made, at = "", 0
    while at < len(text):
        rest = text[at:]
        end = rest.find(")")
        if rest.startswith("$$"):
            made, at = made + "$", at + 2
        elif rest.startswith("$(") and end > 0:
            name = rest[2:end]
            made, at = made + variables.get(name, f"$({name})"), at + end + 1
        else:
            made, at = made + rest[0], at + 1
    return made

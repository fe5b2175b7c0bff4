# The pinned environment. Targets: cpu (planning, data, the smoke run), cuda (training; cuda13 the same with CUDA 13, for drivers
# from 580 on and for Arm), test (pytest, with a compiler), openpi (upstream's own trainer in upstream's own environment, under the
# harness), simulator and simulator-cpu (LIBERO's simulator in an environment of its own, beside what serves the policy: with a GPU,
# and without).
# Layers go from what changes least to what changes most: a change of the source reinstalls no dependency.

# Pinned by digest, so that the system below the lock cannot drift. Ubuntu 24.04 with Python 3.12; Debian 12 or 13 also serves.
ARG BASE_IMAGE=nvidia/cuda:12.9.1-base-ubuntu24.04@sha256:5d2e53778e2180e01676aa8bac1aada242e95230ec97e21ecfb33de4e27cd1df
# Written by ci/lock. A lock that is not the one named here stops the build, and the labels cannot tell another story.
ARG CPU_LOCK_SHA256=ac0937d3deadc42c83de606a3e032800556148db9f7d7b72264c83ba5f0c073e
# As above, for the image that trains.
ARG CUDA_LOCK_SHA256=089f01f5ad24d660d589afb697abb220ee6288963f17ae8955357912dea1fa56
# As above, for the same with CUDA 13.
ARG CUDA13_LOCK_SHA256=f3e100749e9ee2a853fad9f95ab2079caa6b3832219f769f2449c0bd4680ee71
# As above, for the image that tests.
ARG TEST_LOCK_SHA256=5830c131992b6418a7ae343b0badd9476f821f1a660f83d682e76a0dde009d67
# As above, for openpi's client, which tests talk with.
ARG CLIENT_LOCK_SHA256=de939f56844409644745b3f290c1ff7c86a1d5bb44f2e0ad213ee59613014e0f
# As above, for the simulator beside the harness.
ARG SIMULATOR_LOCK_SHA256=50d39de690b53111b82753b5dd6899f3e8ab7f293ec418a4ddd7a0b8b0098acb
# As above, for LIBERO and robosuite in it, which are installed without their requirements.
ARG LIBERO_LOCK_SHA256=63d4372b76110fdf6045767bdd32142e7d51fe1f1409f886ec6e7ea5630af744
# As above, for the stage that describes the images.
ARG DESCRIBE_LOCK_SHA256=459d77bef2363c8d7951eb321650e29502fdd681e6163508265796961944bab5

# openpi as the harness knows it: harness/openpi/table.py names the same commit.
ARG OPENPI_COMMIT=15a9616a00943ada6c20a0f158e3adb39df2ccac


# How system packages come in, and which (docker/lock/apt-*.txt). A stage, so that only a change of these installs again.
FROM scratch AS apt
# The scripts leave no time in what they install (docker/apt/tidy).
COPY docker/apt docker/lock/apt-*.txt /


# What every image runs on: the system's Python and the certificates that downloads are checked with, no compiler.
FROM ${BASE_IMAGE} AS python
# 1: a system package that is not as locked stops the build. Otherwise it is named, and installed.
ARG APT_STRICT
# A moment, 20260801T000000Z: the archive as it was then, where apt and the distribution have that.
ARG APT_SNAPSHOT
# Lists, caches and logs are removed in the layer that made them: later they would only hide, not shrink.
RUN --mount=type=bind,from=apt,target=/apt \
    sh /apt/install ca-certificates python3


# Where dependencies are installed: compiler and headers for the ones without a wheel. Nothing but the venv leaves this stage.
FROM python AS builder
# As above: 1, a system package that is not as locked stops the build. Otherwise it is named, and installed.
ARG APT_STRICT
# As above: a moment, 20260801T000000Z: the archive as it was then, where apt and the distribution have that.
ARG APT_SNAPSHOT
# python3-dev has the C headers whose absence stops openpi's own installation (evdev).
RUN --mount=type=bind,from=apt,target=/apt \
    sh /apt/install build-essential python3-dev python3-venv
# A venv, because Debian and Ubuntu forbid pip in their own Python. Its path is the same in all images: scripts in it name it.
RUN python3 -m venv /opt/venv
# pip's notice about newer versions of itself is noise in a pinned image.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1


# The sets of dependencies, each a stage of its own so that an image builds only its own.
FROM builder AS dependencies-cpu
# The lock alone: only a change of the lock installs again.
COPY docker/lock/cpu.txt /lock.txt
# Declared here, since a global ARG is not visible inside a stage.
ARG CPU_LOCK_SHA256
# The cache mount keeps downloads between builds and out of the image.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=apt,target=/apt \
    echo "${CPU_LOCK_SHA256}  /lock.txt" | sha256sum --check --quiet \
 && /opt/venv/bin/pip install --quiet --no-compile --require-hashes --requirement /lock.txt \
 && /opt/venv/bin/python /apt/bytecode /opt/venv/lib


# jax[cuda12] brings CUDA itself as wheels; the base image only has to name the driver it needs.
FROM builder AS dependencies-cuda
# The lock alone: only a change of the lock installs again.
COPY docker/lock/cuda.txt /lock.txt
# Declared here, since a global ARG is not visible inside a stage.
ARG CUDA_LOCK_SHA256
# The cache mount keeps downloads between builds and out of the image.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=apt,target=/apt \
    echo "${CUDA_LOCK_SHA256}  /lock.txt" | sha256sum --check --quiet \
 && /opt/venv/bin/pip install --quiet --no-compile --require-hashes --requirement /lock.txt \
 && /opt/venv/bin/python /apt/bytecode /opt/venv/lib


# The same packages with CUDA 13 in the place of 12: for cards that 12 does not know. The base image is the same; it has no CUDA.
FROM builder AS dependencies-cuda13
# The lock alone: only a change of the lock installs again.
COPY docker/lock/cuda13.txt /lock.txt
# Declared here, since a global ARG is not visible inside a stage.
ARG CUDA13_LOCK_SHA256
# The cache mount keeps downloads between builds and out of the image.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=apt,target=/apt \
    echo "${CUDA13_LOCK_SHA256}  /lock.txt" | sha256sum --check --quiet \
 && /opt/venv/bin/pip install --quiet --no-compile --require-hashes --requirement /lock.txt \
 && /opt/venv/bin/python /apt/bytecode /opt/venv/lib


# What the cpu image has, plus pytest, ruff and mypy.
FROM builder AS dependencies-test
# The lock alone: only a change of the lock installs again.
COPY docker/lock/test.txt /lock.txt
# openpi's client, without its requirements: it asks for numpy<2 and runs on ours.
COPY docker/lock/client.txt /client.txt
# Declared here, since a global ARG is not visible inside a stage.
ARG TEST_LOCK_SHA256
# As above.
ARG CLIENT_LOCK_SHA256
# The cache mount keeps downloads between builds and out of the image.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=apt,target=/apt \
    echo "${TEST_LOCK_SHA256}  /lock.txt" | sha256sum --check --quiet \
 && echo "${CLIENT_LOCK_SHA256}  /client.txt" | sha256sum --check --quiet \
 && /opt/venv/bin/pip install --quiet --no-compile --require-hashes --requirement /lock.txt \
 && /opt/venv/bin/pip install --quiet --no-compile --require-hashes --no-deps --requirement /client.txt \
 && /opt/venv/bin/python /apt/bytecode /opt/venv/lib


# LIBERO's simulator, in an environment of its own: no JAX, and other versions than the harness has.
FROM builder AS dependencies-simulator
# The locks, and what installs them: only a change of these installs again. ci/local does it with the same program.
COPY docker/simulator/install docker/lock/simulator.txt docker/lock/libero.txt /simulator/
# Declared here, since a global ARG is not visible inside a stage.
ARG SIMULATOR_LOCK_SHA256
# As above.
ARG LIBERO_LOCK_SHA256
# The cache mount keeps downloads between builds and out of the image.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=apt,target=/apt \
    echo "${SIMULATOR_LOCK_SHA256}  /simulator/simulator.txt" | sha256sum --check --quiet \
 && echo "${LIBERO_LOCK_SHA256}  /simulator/libero.txt" | sha256sum --check --quiet \
 && python3 -m venv /opt/simulator \
 && sh /simulator/install /opt/simulator /simulator \
 && /opt/simulator/bin/python /apt/bytecode /opt/simulator/lib

# What describes an image: the library for bills of materials, in no image. Its lock is its own.
FROM builder AS describing
# The lock alone: only a change of the lock installs again.
COPY docker/lock/describe.txt /lock.txt
# Declared here, since a global ARG is not visible inside a stage.
ARG DESCRIBE_LOCK_SHA256
# The cache mount keeps downloads between builds.
RUN --mount=type=cache,target=/root/.cache/pip \
    echo "${DESCRIBE_LOCK_SHA256}  /lock.txt" | sha256sum --check --quiet \
 && /opt/venv/bin/pip install --quiet --require-hashes --requirement /lock.txt
# The checkout is mounted to be read.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1


# Who runs in the images. Two names in /etc/passwd: "harness", what `docker run` uses, and "caller", what compose uses.
FROM python AS users
# The uid and gid of "harness" can be chosen: --build-arg HARNESS_UID=… (never 0: that user is for people who run the image bare).
ARG HARNESS_UID=1000
# As above, its group.
ARG HARNESS_GID=1000
# The files of a bind mount must belong to the person who ran the command, whom a container without capabilities cannot
# become after its start. So the image names them: "caller" is the owner of the checkout (docker/owner says how that is known).
# -o, because Ubuntu's image has its own user 1000.
RUN --mount=type=bind,target=/checkout \
    test "${HARNESS_UID}" -gt 0 \
 && groupadd -o -g "${HARNESS_GID}" harness \
 && useradd -o -u "${HARNESS_UID}" -g harness -d /tmp -M -s /usr/sbin/nologin harness \
 && sh /checkout/docker/owner /checkout/.git/index >/tmp/owner && read -r uid gid </tmp/owner \
 && groupadd -o -g "${gid}" caller \
 && useradd -o -u "${uid}" -g caller -d /tmp -M -s /usr/sbin/nologin caller


# What the three images share besides the dependencies.
FROM python AS runtime
# Paths: the three mounts, and HOME on the tmpfs, the only other place that can be written in a read-only container.
# USER: libraries ask for a name, and a uid chosen at run time need not have one.
# No telemetry from a training container.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    USER=harness \
    PYTHONUNBUFFERED=1 \
    HARNESS_RUNS=/runs \
    HARNESS_DATASETS=/datasets \
    HARNESS_CACHE=/cache \
    HF_HOME=/cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1
# `runs/…` and `datasets/…` mean the same in a command typed on the host and inside.
WORKDIR /
# No arguments train; an option belongs to train; anything else is a verb.
ENTRYPOINT ["/opt/harness/docker/entrypoint"]


# The large layer, first and shared. Only the venv comes over; the compiler stays behind.
FROM runtime AS cpu-base
# What the lock has.
COPY --from=dependencies-cpu /opt/venv /opt/venv
# Small, and remade only when a uid changes.
COPY --from=users /etc/passwd /etc/group /etc/


# Plans, reads data, computes statistics and trains the smoke recipe, on any machine.
FROM cpu-base AS cpu-tree
# The start of a container, the XLA environment it reads, and how it knows an image that is older than the checkout.
COPY docker/entrypoint docker/revision docker/xla.env /opt/harness/docker/
# Recorded below: which system this was built on, and which lock.
ARG BASE_IMAGE
# As above.
ARG CPU_LOCK_SHA256
# For the label, and for whether the commit has changes on top of it: `git describe --dirty`, which ci/images passes. Only the client
# has git, so a plain `docker compose run` leaves it unknown; what the source is stands in /opt/harness/revision in any case.
ARG HARNESS_REVISION=unknown
# Read by the run's manifest. The compilation cache saves a restarted run its compile time.
# The CUDA plugin and ptxas are here for compiling only: without the nvidia-* libraries the plugin must not be started.
ENV HARNESS_IMAGE="harness:cpu on ${BASE_IMAGE}" \
    HARNESS_LOCK_SHA256=${CPU_LOCK_SHA256} \
    HARNESS_COMMIT=${HARNESS_REVISION} \
    JAX_COMPILATION_CACHE_DIR=/cache/jax \
    JAX_PLATFORMS=cpu
# The package, from the checkout, with the build backend of the lock and nothing downloaded, and a list of the variables above. The
# mount is a copy: nothing is written into the checkout. The mount points belong to "harness" for a `docker run` without compose.
# chmod, because a clone made under umask 077 would be readable by root alone.
RUN --mount=type=bind,target=/checkout,rw \
    sh /checkout/docker/package /checkout
# For `docker inspect`, long after the build.
LABEL org.opencontainers.image.title="harness cpu" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${HARNESS_REVISION}" \
      harness.lock.sha256="${CPU_LOCK_SHA256}"
# Never root by default; compose asks for "caller" instead.
USER harness


# What the image holds, read by root from outside of it: its list, its digest and its bill of materials.
FROM describing AS cpu-described
# Recorded in the bill of materials.
ARG BASE_IMAGE
# The tree is only mounted: nothing of this stage is in it.
RUN --mount=type=bind,from=cpu-tree,target=/tree --mount=type=bind,target=/checkout \
    cd /checkout && python -m harness.image.describe /tree /described --name cpu --base "${BASE_IMAGE}" --lock docker/lock/cpu.txt


# The image itself: the tree above, and what describes it.
FROM cpu-tree AS cpu
# The list cannot be part of what it lists; the bill of materials is.
COPY --from=cpu-described /described/ /opt/harness/image/


# The large layer, first and shared. Only the venv comes over; the compiler stays behind.
FROM runtime AS cuda-base
# What the lock has.
COPY --from=dependencies-cuda /opt/venv /opt/venv
# Small, and remade only when a uid changes.
COPY --from=users /etc/passwd /etc/group /etc/


# Trains on NVIDIA GPUs.
FROM cuda-base AS cuda-tree
# The start of a container, the XLA environment it reads, and how it knows an image that is older than the checkout.
COPY docker/entrypoint docker/revision docker/xla.env /opt/harness/docker/
# Recorded below: which system this was built on, and which lock.
ARG BASE_IMAGE
# As above.
ARG CUDA_LOCK_SHA256
# For the label, and for whether the commit has changes on top of it: `git describe --dirty`, which ci/images passes. Only the client
# has git, so a plain `docker compose run` leaves it unknown; what the source is stands in /opt/harness/revision in any case.
ARG HARNESS_REVISION=unknown
# Read by the run's manifest. The compilation cache saves a restarted run its compile time. The NVIDIA toolkit gives the container what these two ask for: computing and NVML, no display.
ENV HARNESS_IMAGE="harness:cuda on ${BASE_IMAGE}" \
    HARNESS_LOCK_SHA256=${CUDA_LOCK_SHA256} \
    HARNESS_COMMIT=${HARNESS_REVISION} \
    JAX_COMPILATION_CACHE_DIR=/cache/jax \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The package, as in the cpu image.
RUN --mount=type=bind,target=/checkout,rw \
    sh /checkout/docker/package /checkout
# For `docker inspect`, long after the build.
LABEL org.opencontainers.image.title="harness cuda" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${HARNESS_REVISION}" \
      harness.lock.sha256="${CUDA_LOCK_SHA256}"
# Never root by default; compose asks for "caller" instead.
USER harness


# What the image holds, read by root from outside of it: its list, its digest and its bill of materials.
FROM describing AS cuda-described
# Recorded in the bill of materials.
ARG BASE_IMAGE
# The tree is only mounted: nothing of this stage is in it.
RUN --mount=type=bind,from=cuda-tree,target=/tree --mount=type=bind,target=/checkout \
    cd /checkout && python -m harness.image.describe /tree /described --name cuda --base "${BASE_IMAGE}" --lock docker/lock/cuda.txt


# The image itself: the tree above, and what describes it.
FROM cuda-tree AS cuda
# The list cannot be part of what it lists; the bill of materials is.
COPY --from=cuda-described /described/ /opt/harness/image/


# The large layer, first. Only the venv comes over; the compiler stays behind.
FROM runtime AS cuda13-base
# What the lock has.
COPY --from=dependencies-cuda13 /opt/venv /opt/venv
# Small, and remade only when a uid changes.
COPY --from=users /etc/passwd /etc/group /etc/


# Trains on NVIDIA GPUs as the cuda image does, with CUDA 13.
FROM cuda13-base AS cuda13-tree
# As in the cuda image.
COPY docker/entrypoint docker/revision docker/xla.env /opt/harness/docker/
# Recorded below: which system this was built on, and which lock.
ARG BASE_IMAGE
# As above.
ARG CUDA13_LOCK_SHA256
# For the label, as in the cpu image.
ARG HARNESS_REVISION=unknown
# As in the cuda image.
ENV HARNESS_IMAGE="harness:cuda13 on ${BASE_IMAGE}" \
    HARNESS_LOCK_SHA256=${CUDA13_LOCK_SHA256} \
    HARNESS_COMMIT=${HARNESS_REVISION} \
    JAX_COMPILATION_CACHE_DIR=/cache/jax \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The package, as in the cpu image.
RUN --mount=type=bind,target=/checkout,rw \
    sh /checkout/docker/package /checkout
# For `docker inspect`, long after the build.
LABEL org.opencontainers.image.title="harness cuda13" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${HARNESS_REVISION}" \
      harness.lock.sha256="${CUDA13_LOCK_SHA256}"
# Never root by default; compose asks for "caller" instead.
USER harness


# What the image holds, read by root from outside of it: its list, its digest and its bill of materials.
FROM describing AS cuda13-described
# Recorded in the bill of materials.
ARG BASE_IMAGE
# The tree is only mounted: nothing of this stage is in it.
RUN --mount=type=bind,from=cuda13-tree,target=/tree --mount=type=bind,target=/checkout \
    cd /checkout && python -m harness.image.describe /tree /described --name cuda13 --base "${BASE_IMAGE}" --lock docker/lock/cuda13.txt


# The image itself: the tree above, and what describes it.
FROM cuda13-tree AS cuda13
# The list cannot be part of what it lists; the bill of materials is.
COPY --from=cuda13-described /described/ /opt/harness/image/


# Evaluates on NVIDIA GPUs: the policy computes there, the simulator beside it on the CPU's cores.
FROM cuda-base AS simulator-tree
# As above: 1, a system package that is not as locked stops the build. Otherwise it is named, and installed.
ARG APT_STRICT
# As above: a moment, 20260801T000000Z: the archive as it was then, where apt and the distribution have that.
ARG APT_SNAPSHOT
# Mesa's EGL renders without a display and without a GPU; NVIDIA's joins it where the toolkit gives it. PyOpenGL loads libOpenGL.
RUN --mount=type=bind,from=apt,target=/apt \
    sh /apt/install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0
# The second environment, before what a change of the source makes anew.
COPY --from=dependencies-simulator /opt/simulator /opt/simulator
# What numba compiles for robosuite: 9 s of work that every container would otherwise do again (docker/entrypoint places it where
# numba wants to be able to write). Here, since robosuite opens a display of EGL when it is imported.
RUN --mount=type=bind,source=docker/simulator,target=/simulator \
    /opt/simulator/bin/python -B /simulator/warm /opt/simulator/share/numba && rm -rf /tmp/.config
# The start of a container, the XLA environment it reads, and how it knows an image that is older than the checkout.
COPY docker/entrypoint docker/revision docker/xla.env /opt/harness/docker/
# Recorded below: which system this was built on, and which lock.
ARG BASE_IMAGE
# As above.
ARG CUDA_LOCK_SHA256
# As above, of the simulator.
ARG SIMULATOR_LOCK_SHA256
# As above, of LIBERO and robosuite.
ARG LIBERO_LOCK_SHA256
# For the label, as in the cpu image.
ARG HARNESS_REVISION=unknown
# HARNESS_SIMULATOR is where `harness evaluate` looks. The NVIDIA toolkit gives the container what the last two ask for: computing, NVML, and EGL.
ENV HARNESS_IMAGE="harness:simulator on ${BASE_IMAGE}" \
    HARNESS_LOCK_SHA256=${CUDA_LOCK_SHA256} \
    HARNESS_COMMIT=${HARNESS_REVISION} \
    HARNESS_SIMULATOR=/opt/simulator \
    NUMBA_CACHE_DIR=/tmp/numba \
    JAX_COMPILATION_CACHE_DIR=/cache/jax \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
# The package, as in the cpu image.
RUN --mount=type=bind,target=/checkout,rw \
    sh /checkout/docker/package /checkout
# For `docker inspect`, long after the build.
LABEL org.opencontainers.image.title="harness simulator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${HARNESS_REVISION}" \
      harness.lock.sha256="${CUDA_LOCK_SHA256}" \
      harness.simulator.lock.sha256="${SIMULATOR_LOCK_SHA256} ${LIBERO_LOCK_SHA256}"
# Never root by default; compose asks for "caller" instead.
USER harness


# What the image holds, read by root from outside of it: its list, its digest and its bill of materials.
FROM describing AS simulator-described
# Recorded in the bill of materials.
ARG BASE_IMAGE
# The tree is only mounted: nothing of this stage is in it.
RUN --mount=type=bind,from=simulator-tree,target=/tree --mount=type=bind,target=/checkout \
    cd /checkout && python -m harness.image.describe /tree /described --name simulator --base "${BASE_IMAGE}" --lock docker/lock/cuda.txt \
      --beside opt/simulator=docker/lock/simulator.txt --beside opt/simulator=docker/lock/libero.txt


# The image itself: the tree above, and what describes it.
FROM simulator-tree AS simulator
# The list cannot be part of what it lists; the bill of materials is.
COPY --from=simulator-described /described/ /opt/harness/image/


# The same without a GPU.
FROM cpu-base AS simulator-cpu-tree
# As above: 1, a system package that is not as locked stops the build. Otherwise it is named, and installed.
ARG APT_STRICT
# As above: a moment, 20260801T000000Z: the archive as it was then, where apt and the distribution have that.
ARG APT_SNAPSHOT
# Mesa's EGL renders without a display and without a GPU; NVIDIA's joins it where the toolkit gives it. PyOpenGL loads libOpenGL.
RUN --mount=type=bind,from=apt,target=/apt \
    sh /apt/install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0
# The second environment, before what a change of the source makes anew.
COPY --from=dependencies-simulator /opt/simulator /opt/simulator
# What numba compiles for robosuite: 9 s of work that every container would otherwise do again (docker/entrypoint places it where
# numba wants to be able to write). Here, since robosuite opens a display of EGL when it is imported.
RUN --mount=type=bind,source=docker/simulator,target=/simulator \
    /opt/simulator/bin/python -B /simulator/warm /opt/simulator/share/numba && rm -rf /tmp/.config
# The start of a container, the XLA environment it reads, and how it knows an image that is older than the checkout.
COPY docker/entrypoint docker/revision docker/xla.env /opt/harness/docker/
# Recorded below: which system this was built on, and which lock.
ARG BASE_IMAGE
# As above.
ARG CPU_LOCK_SHA256
# As above, of the simulator.
ARG SIMULATOR_LOCK_SHA256
# As above, of LIBERO and robosuite.
ARG LIBERO_LOCK_SHA256
# For the label, as in the cpu image.
ARG HARNESS_REVISION=unknown
# HARNESS_SIMULATOR is where `harness evaluate` looks.
ENV HARNESS_IMAGE="harness:simulator-cpu on ${BASE_IMAGE}" \
    HARNESS_LOCK_SHA256=${CPU_LOCK_SHA256} \
    HARNESS_COMMIT=${HARNESS_REVISION} \
    HARNESS_SIMULATOR=/opt/simulator \
    NUMBA_CACHE_DIR=/tmp/numba \
    JAX_COMPILATION_CACHE_DIR=/cache/jax \
    JAX_PLATFORMS=cpu
# The package, as in the cpu image.
RUN --mount=type=bind,target=/checkout,rw \
    sh /checkout/docker/package /checkout
# For `docker inspect`, long after the build.
LABEL org.opencontainers.image.title="harness simulator-cpu" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${HARNESS_REVISION}" \
      harness.lock.sha256="${CPU_LOCK_SHA256}" \
      harness.simulator.lock.sha256="${SIMULATOR_LOCK_SHA256} ${LIBERO_LOCK_SHA256}"
# Never root by default; compose asks for "caller" instead.
USER harness


# What the image holds, read by root from outside of it: its list, its digest and its bill of materials.
FROM describing AS simulator-cpu-described
# Recorded in the bill of materials.
ARG BASE_IMAGE
# The tree is only mounted: nothing of this stage is in it.
RUN --mount=type=bind,from=simulator-cpu-tree,target=/tree --mount=type=bind,target=/checkout \
    cd /checkout && python -m harness.image.describe /tree /described --name simulator-cpu --base "${BASE_IMAGE}" --lock docker/lock/cpu.txt \
      --beside opt/simulator=docker/lock/simulator.txt --beside opt/simulator=docker/lock/libero.txt


# The image itself: the tree above, and what describes it.
FROM simulator-cpu-tree AS simulator-cpu
# The list cannot be part of what it lists; the bill of materials is.
COPY --from=simulator-cpu-described /described/ /opt/harness/image/


# What installs openpi, and its source where ci/openpi-source has placed it (the pattern matches nothing otherwise).
FROM python AS openpi-source
# One directory, that a change of the harness does not change: it is what the stage below depends on.
COPY docker/openpi .openpi-sourc[e] /source/


# Upstream's trainer and its own lock, frozen, 8 GB. In one layer, so that neither compiler nor downloads stay behind.
FROM runtime AS openpi-environment
# Declared here, since a global ARG is not visible inside a stage.
ARG OPENPI_COMMIT
# As above: 1, a system package that is not as locked stops the build. Otherwise it is named, and installed.
ARG APT_STRICT
# As above: a moment, 20260801T000000Z: the archive as it was then, where apt and the distribution have that.
ARG APT_SNAPSHOT
# The wheels of upstream's lock bring CUDA themselves.
RUN --mount=type=bind,from=openpi-source,source=/source,target=/source --mount=type=bind,from=apt,target=/apt \
    sh /source/install "${OPENPI_COMMIT}"


# Trains with upstream's own code. The harness in /opt/venv plans, watches and reports; it never touches the GPU.
FROM openpi-environment AS openpi-tree
# As in the cpu image.
COPY --from=dependencies-cpu /opt/venv /opt/venv
# Small, and remade only when a uid changes.
COPY --from=users /etc/passwd /etc/group /etc/
# The start of a container, the XLA environment it reads, and how it knows an image that is older than the checkout.
COPY docker/entrypoint docker/revision docker/xla.env /opt/harness/docker/
# Recorded below: which system this was built on, and which lock.
ARG BASE_IMAGE
# As above.
ARG CPU_LOCK_SHA256
# For the label, as in the cpu image.
ARG HARNESS_REVISION=unknown
# HARNESS_OPENPI is where --backend openpi looks. JAX_PLATFORMS is for the harness itself; it sets the trainer's own.
ENV HARNESS_IMAGE="harness:openpi on ${BASE_IMAGE}" \
    HARNESS_LOCK_SHA256=${CPU_LOCK_SHA256} \
    HARNESS_COMMIT=${HARNESS_REVISION} \
    HARNESS_OPENPI=/opt/openpi \
    JAX_PLATFORMS=cpu \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# The package, as in the cpu image.
RUN --mount=type=bind,target=/checkout,rw \
    sh /checkout/docker/package /checkout
# For `docker inspect`, long after the build.
LABEL org.opencontainers.image.title="harness openpi" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${HARNESS_REVISION}" \
      harness.lock.sha256="${CPU_LOCK_SHA256}"
# Never root by default; compose asks for "caller" instead.
USER harness


# What the image holds, read by root from outside of it: its list, its digest and its bill of materials.
FROM describing AS openpi-described
# Recorded in the bill of materials.
ARG BASE_IMAGE
# The tree is only mounted: nothing of this stage is in it.
RUN --mount=type=bind,from=openpi-tree,target=/tree --mount=type=bind,target=/checkout \
    cd /checkout && python -m harness.image.describe /tree /described --name openpi --base "${BASE_IMAGE}" --lock docker/lock/cpu.txt


# The image itself: the tree above, and what describes it.
FROM openpi-tree AS openpi
# The list cannot be part of what it lists; the bill of materials is.
COPY --from=openpi-described /described/ /opt/harness/image/


# Runs the tests of the checkout that it was built from.
FROM runtime AS test-tree
# As above: 1, a system package that is not as locked stops the build. Otherwise it is named, and installed.
ARG APT_STRICT
# As above: a moment, 20260801T000000Z: the archive as it was then, where apt and the distribution have that.
ARG APT_SNAPSHOT
# In this image alone: a compiler, since tests build a stand-in for libnvidia-ml and drive it through the real bindings; and Slurm.
RUN --mount=type=bind,from=apt,target=/apt \
    sh /apt/install gcc libc6-dev munge slurm-wlm
# The large layer first.
COPY --from=dependencies-test /opt/venv /opt/venv
# Small, and remade only when a uid changes.
COPY --from=users /etc/passwd /etc/group /etc/
# The whole checkout: tests also read the Dockerfile, compose.yaml, the locks and the README.
COPY . /opt/harness
# Tests name files from the root of the checkout.
WORKDIR /opt/harness
# Recorded below: which system this was built on, and which lock.
ARG BASE_IMAGE
# As above.
ARG TEST_LOCK_SHA256
# For the label, and for whether the commit has changes on top of it: `git describe --dirty`, which ci/images passes. Only the client
# has git, so a plain `docker compose run` leaves it unknown; what the source is stands in /opt/harness/revision in any case.
ARG HARNESS_REVISION=unknown
# The root filesystem is read-only: what tools would cache beside the source goes to the tmpfs or nowhere.
ENV HARNESS_IMAGE="harness:test on ${BASE_IMAGE}" \
    HARNESS_LOCK_SHA256=${TEST_LOCK_SHA256} \
    HARNESS_COMMIT=${HARNESS_REVISION} \
    HARNESS_RUNS=/tmp/runs \
    HARNESS_CACHE=/tmp/cache \
    HF_HOME=/tmp/cache/huggingface \
    JAX_PLATFORMS=cpu \
    PYTHONDONTWRITEBYTECODE=1 \
    HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis \
    MYPY_CACHE_DIR=/tmp/mypy \
    RUFF_CACHE_DIR=/tmp/ruff
# The package is installed as well, for its command and its metadata.
RUN --mount=type=bind,target=/checkout,rw \
    sh /checkout/docker/package /checkout
# For `docker inspect`, long after the build.
LABEL org.opencontainers.image.title="harness test" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${HARNESS_REVISION}" \
      harness.lock.sha256="${TEST_LOCK_SHA256}"
# Never root by default; compose asks for "caller" instead.
USER harness


# What the image holds, read by root from outside of it: its list, its digest and its bill of materials.
FROM describing AS test-described
# Recorded in the bill of materials.
ARG BASE_IMAGE
# The tree is only mounted: nothing of this stage is in it.
RUN --mount=type=bind,from=test-tree,target=/tree --mount=type=bind,target=/checkout \
    cd /checkout && python -m harness.image.describe /tree /described --name test --base "${BASE_IMAGE}" --lock docker/lock/test.txt


# The image itself: the tree above, and what describes it.
FROM test-tree AS test
# The list cannot be part of what it lists; the bill of materials is.
COPY --from=test-described /described/ /opt/harness/image/
# Arguments are pytest's: a file, -k, -x.
ENTRYPOINT ["python", "-m", "pytest", "-p", "no:cacheprovider"]
# Without any: all tests, shared among workers as tests/workers.args says (ci/local does the same).
CMD ["@tests/workers.args"]

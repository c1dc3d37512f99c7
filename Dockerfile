# The image of the operator and of a job's pods: one image, as they must agree. Its three stages keep layers apart that change at
# different times: dependencies (gigabytes, from requirements.lock), then our package (megabytes).
#
#   docker build -t REGISTRY/orchestrator .                                        CPU
#   docker build -t REGISTRY/orchestrator --build-arg TORCH=gpu .                  PyTorch's CUDA build
#
# Two more things to pass: PYTHON_IMAGE with the digest that you trust (python:3.11-slim-bookworm@sha256:...), and, with --secret
# id=pip,src=pip.conf, how pip reaches your package index. Needs BuildKit, which is Docker's default, or Buildah.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --------------------------------------------------------------------------------------------------------- dependencies
FROM ${PYTHON_IMAGE} AS dependencies
ARG TORCH=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/orchestrator
# What pyproject.toml asks for and what that needs, at the versions of requirements.lock; the package itself is still empty.
COPY pyproject.toml requirements.lock README.md LICENSE ./
RUN mkdir orchestrator && touch orchestrator/__init__.py
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/orchestrator/bin/pip install --constraint requirements.lock setuptools \
    && /opt/orchestrator/bin/pip install --constraint requirements.lock --no-build-isolation '.[kubernetes]' \
    && /opt/orchestrator/bin/pip uninstall --yes orchestrator \
    && /opt/orchestrator/bin/pip check
# Which build of torch comes depends on the index. A wrong one is a mistake to know now: the CUDA build is gigabytes larger, and
# the CPU build leaves GPUs idle.
RUN /opt/orchestrator/bin/python -c "import sys, torch; \
    got = 'gpu' if torch.version.cuda else 'cpu'; \
    sys.exit(0 if got == '${TORCH}' else f'TORCH=${TORCH}, but the index gave the {got} build of torch {torch.__version__}: ' \
    'for cpu pass a pip.conf that names the index of CPU wheels (see pytorch.org), for gpu one that names the plain index')"
# Modules are compiled here, once: the root file system is read-only later, and importing torch takes three times as long without.
RUN /opt/orchestrator/bin/python -m compileall -q -j 0 -x 'testing/_internal/py312_' /opt/orchestrator/lib

# -------------------------------------------------------------------------------------------------------------- package
FROM dependencies AS package
COPY orchestrator ./orchestrator
RUN /opt/orchestrator/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# ---------------------------------------------------------------------------------------------------------------- final
FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="orchestrator" \
      org.opencontainers.image.description="Keeps long PyTorch training jobs going: operator, head, agent and workers" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 1000 orchestrator \
    && useradd --uid 1000 --gid 1000 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin orchestrator
COPY --from=dependencies /opt/orchestrator /opt/orchestrator
RUN --mount=type=bind,from=package,source=/wheels,target=/wheels \
    /opt/orchestrator/bin/pip install --no-deps --no-index --no-cache-dir --disable-pip-version-check --compile /wheels/*.whl
# NVIDIA_DRIVER_CAPABILITIES: what the GPU runtime lays into the container; without a GPU nobody reads it.
ENV PATH=/opt/orchestrator/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /tmp
USER 1000:1000
# No entry point: each container of the manifests says its command, and a user's image on top of this one keeps it that way.
CMD ["orchestrator", "--help"]

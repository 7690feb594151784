# syntax=docker/dockerfile:1
# METok for GPU hosts, on vLLM's official CUDA image of the pinned version. See docs/install.md.
#
#   docker build -t metok-vllm .
#   docker run --gpus all --ipc=host -p 8000:8000 metok-vllm MODEL
#
# A digest pins the base to the byte: --build-arg VLLM_IMAGE_DIGEST=sha256:...
ARG VLLM_IMAGE_TAG=v0.32.0
ARG VLLM_IMAGE_DIGEST=
FROM vllm/vllm-openai:${VLLM_IMAGE_TAG}${VLLM_IMAGE_DIGEST:+@$VLLM_IMAGE_DIGEST}

LABEL org.opencontainers.image.title="metok-vllm" \
      org.opencontainers.image.description="vLLM's OpenAI server with METok: event-based token compression for long videos" \
      org.opencontainers.image.licenses="Apache-2.0"

# The image is what the `cuda` extra asks for. Its own packages override every requirement, so
# that torch, vLLM and all that was built against them stay; only what is missing is added.
RUN --mount=type=bind,target=/tmp/metok-vllm,rw \
    python3 -c "from importlib.metadata import version; v = version('vllm'); assert v.startswith('0.32.'), v" \
    && uv pip list --system --format freeze > /tmp/before.txt \
    && uv pip install --system --no-cache --override /tmp/before.txt /tmp/metok-vllm \
    && uv pip list --system --format freeze > /tmp/after.txt \
    && if grep --invert-match --line-regexp --fixed-strings --file /tmp/after.txt /tmp/before.txt; then \
        echo 'These packages of the base image were changed' >&2; exit 1; fi \
    && rm /tmp/before.txt /tmp/after.txt \
    && install -d -o 2000 -g 0 -m 0775 /home/vllm/.cache /home/vllm/.cache/huggingface

# The user `vllm` of the base image; group 0 lets OpenShift choose another user id.
ENV HOME=/home/vllm \
    HF_HOME=/home/vllm/.cache/huggingface
USER 2000:0
WORKDIR /home/vllm

EXPOSE 8000
# Loading a large model takes minutes: until start-period ends a failed probe does not count.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["metok", "serve"]

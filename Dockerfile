# syntax=docker/dockerfile:1
# Built and run: docker compose up --build. Python 3.12 of Debian 13, slim: psycopg's and numpy's wheels need glibc, so no
# Alpine. Pinned by digest: security fixes come with a newer one, taken at each release (docs/releasing.md). It is the one that public
# repositories of autumn 2026 agree on for this tag, on amd64 and arm64; no registry could be asked where this was written. One thread of
# OpenBLAS: it starts one for each CPU of the host at the import of numpy, which counts against the limit on processes, and none is of use here.
ARG PYTHON=python:3.12-slim-trixie@sha256:f77ac9e44ae96ef2c90b8053ea08c31f8be030f824196b0ae4db6d462c84e51f

FROM ${PYTHON} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/build && python -m venv /opt/esp-ingest
# The pins change seldom and the code often: these layers stay in the cache.
COPY requirements-build.lock requirements-run.lock ./
RUN /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements-build.lock \
 && /opt/esp-ingest/bin/pip install --require-hashes --only-binary :all: -r requirements-run.lock
COPY pyproject.toml README.md LICENSE ./
COPY config/esp_ingest.toml config/rules.toml config/
COPY sql sql
COPY esp_ingest esp_ingest
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
 && /opt/esp-ingest/bin/pip install --no-deps --no-index /tmp/wheel/*.whl \
 && /opt/esp-ingest/bin/python -m compileall -q /opt/esp-ingest/lib \
 && /opt/esp-ingest/bin/pip uninstall --yes --quiet pip

FROM ${PYTHON}
LABEL org.opencontainers.image.title="esp-ingest" \
      org.opencontainers.image.description="MQTT to TimescaleDB for electric submersible pumps" \
      org.opencontainers.image.licenses="Apache-2.0"
# A fixed number, so that Kubernetes can check runAsNonRoot and a volume can be given to it.
RUN groupadd --system --gid 10001 esp-ingest \
 && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/esp-ingest esp-ingest \
 && install -d -o esp-ingest -g esp-ingest -m 0750 /var/lib/esp-ingest
COPY --from=build /opt/esp-ingest /opt/esp-ingest
# In a container the port has to be reachable from outside of it; everywhere else it is loopback.
ENV PATH=/opt/esp-ingest/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OPENBLAS_NUM_THREADS=1 \
    STATE_DIRECTORY=/var/lib/esp-ingest \
    ESP_INGEST_HTTP__HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/esp-ingest
# The spool: it has to outlive the container.
VOLUME /var/lib/esp-ingest
EXPOSE 8080
# A container that drains gets longer than service.drain_seconds: docker stop --time 30.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/live', timeout=2)"]
ENTRYPOINT ["esp-ingest"]
CMD ["run"]

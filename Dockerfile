# Motet on a CPU: the embedded engine, installed as the Makefile does it. NOT BUILT by this project's tests.
#   docker build --tag motet .
#   docker run --publish 8000:8000 --volume ./models:/models:ro motet   # /models/models.yaml names the models
FROM python:3.11-slim

# OpenMP of torch's CPU build, and the compiler of the kernel for 4-bit weights (docs/quantisation.md)
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home motet
WORKDIR /motet
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY motet motet
# torch first and alone, as in the Makefile; `--build-arg PIP_EXTRA_INDEX_URL=…` with PyTorch's index of CPU builds leaves
# CUDA's libraries out, which are gigabytes
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir --constraint constraints.txt torch \
    && pip install --no-cache-dir --constraint constraints.txt .

USER motet
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=5m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready')"]
# SIGTERM drains: give `docker stop --time` as long as the longest answer takes
ENTRYPOINT ["motet"]
CMD ["serve", "/models/models.yaml", "--host", "0.0.0.0"]

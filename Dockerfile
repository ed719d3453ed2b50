# captioner serve, without PyTorch: docs/serving.md
FROM python:3.13-slim
RUN useradd --create-home --uid 10001 captioner
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY captioner captioner
COPY datasets datasets
RUN pip install --no-cache-dir --constraint constraints.txt '.[serve,hub]' && rm -rf /src/*
USER captioner
WORKDIR /home/captioner
EXPOSE 8000
HEALTHCHECK CMD python -c "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"
ENTRYPOINT ["captioner", "serve", "--host", "0.0.0.0"]

# bidpo from the archive of `make dist`, without a compiler. `docker build -t bidpo .`, then with a folder of models
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$HOME/.cache/bidpo/models:/models:ro" bidpo
# serves the first model of the folder. Other commands: docker run --rm bidpo bidpo --help
FROM debian:bookworm-slim AS install
COPY scripts/install.sh dist/SHA256SUMS dist/bidpo-*-x86_64-linux.tar.gz /dist/
RUN sh /dist/install.sh --prefix /usr/local /dist/bidpo-*-x86_64-linux.tar.gz

FROM debian:bookworm-slim
# Certificates for `bidpo models fetch`; libgcc_s is in every Debian.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 bidpo
COPY --from=install /usr/local /usr/local
USER bidpo
WORKDIR /home/bidpo
ENV BIDPO_MODELS=/models
EXPOSE 8080
CMD ["sh", "-c", "exec bidpo serve --host 0.0.0.0 --model \"${BIDPO_MODEL:-$(ls /models/*.gguf | head -n 1)}\""]

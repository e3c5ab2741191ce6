# syntax=docker/dockerfile:1
#
# Outrigger and nothing else: no shell, no package manager, no root.
#
#     docker build --tag outrigger:0.1.0 .
#     docker run --rm --read-only --cap-drop ALL --security-opt no-new-privileges outrigger:0.1.0 --help
#
# Podman and Buildah build it, too; with `--format docker`, or the health check is left out.
#
# With sinks that the default build leaves out (`kafka`, `eventbridge`):
#
#     docker build --build-arg FEATURES="kafka eventbridge" --tag outrigger-kafka:0.1.0 .

FROM docker.io/library/rust:1.95-trixie AS build
WORKDIR /outrigger

# Cargo features beside the default ones. The final image has OpenSSL but no zlib, so that is linked in.
ARG FEATURES=
ENV LIBZ_SYS_STATIC=1

# Dependencies first, in a layer that stays until Cargo.toml or Cargo.lock change: they are built for an empty program.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && : >src/lib.rs \
    && cargo build --release --locked --bin outrigger --features "$FEATURES"

# The clock decides what cargo builds again, and a file from the repository may be older than the empty program.
ARG COMMIT=
ENV OUTRIGGER_COMMIT=$COMMIT
COPY src src
COPY migrations migrations
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked --bin outrigger --features "$FEATURES" \
    && target/release/outrigger --version

# The binary needs glibc, libgcc and certificate authorities, and this has them and little more. Not `static` with musl:
# its allocator and resolver differ from what the tests and benchmarks run on. Debian 13 like the stage above, since a
# binary runs on the glibc it was linked with, or a later one.
FROM gcr.io/distroless/cc-debian13:nonroot
LABEL org.opencontainers.image.title="Outrigger" \
    org.opencontainers.image.description="Transactional-outbox relay: rows of PostgreSQL become CloudEvents on RabbitMQ" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /outrigger/target/release/outrigger /usr/local/bin/outrigger
# By number, so that Kubernetes can tell that it is not root. The image's own `nonroot`.
USER 65532:65532
# Probes, metrics and the status page.
EXPOSE 9647
# For engines without probes of their own. It reads the same settings as the relay.
HEALTHCHECK --interval=10s --timeout=5s CMD ["/usr/local/bin/outrigger", "health"]
# The exec form: the relay is process 1 and gets the signals itself.
ENTRYPOINT ["/usr/local/bin/outrigger"]

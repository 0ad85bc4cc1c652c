# Static binaries on empty images. Targets: meshkv (the product), tests (the black-box suite), stress (the load
# generator). RUST_IMAGE: any image with cargo, gcc and glibc's static libraries.
ARG RUST_IMAGE=rust:1-slim-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /build
# Stripped below, so nothing to strip is made.
ENV RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET=x86_64-unknown-linux-gnu CARGO_PROFILE_RELEASE_DEBUG=false
# Dependencies first: this layer stays as long as they do.
COPY Cargo.toml Cargo.lock ./
COPY stress/Cargo.toml stress/
# Tests and benchmarks are declared in the manifests, but their files are not here yet.
RUN for manifest in Cargo.toml stress/Cargo.toml; do \
        awk '/^\[/ { keep = !/^\[\[(test|bench)\]\]/ } keep' "$manifest" > whole && mv whole "$manifest"; \
    done \
    && mkdir -p src stress/src \
    && echo 'fn main() {}' | tee src/main.rs stress/src/main.rs > /dev/null \
    && touch src/lib.rs stress/src/lib.rs \
    && cargo build --release --locked --bin meshkv --target "$CARGO_TARGET"
COPY . .
ARG MESHKV_COMMIT=unknown
RUN touch src/main.rs src/lib.rs build.rs \
    && MESHKV_COMMIT="$MESHKV_COMMIT" cargo build --release --locked --bin meshkv --target "$CARGO_TARGET" \
    && cp "target/$CARGO_TARGET/release/meshkv" /meshkv \
    && strip /meshkv

FROM scratch AS meshkv
COPY --from=build /meshkv /meshkv
# Nobody in particular: the image has no user database.
USER 65532:65532
# Reachable from other containers; a second of notice for the balancer before a node stops serving.
ENV MESHKV_HOST=0.0.0.0 MESHKV_LEAVE_NOTICE=1
EXPOSE 8080 7373
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s --retries=3 CMD ["/meshkv", "healthcheck"]
ENTRYPOINT ["/meshkv"]

FROM build AS stress-build
RUN touch stress/src/main.rs stress/src/lib.rs \
    && cargo build --release --locked -p meshkv-stress --target "$CARGO_TARGET" \
    && cp "target/$CARGO_TARGET/release/meshkv-stress" /meshkv-stress \
    && strip /meshkv-stress

FROM scratch AS stress
COPY --from=stress-build /meshkv-stress /meshkv-stress
USER 65532:65532
ENTRYPOINT ["/meshkv-stress"]

# The contract of the HTTP API, put to any server: SERVICE_URL names it.
FROM build AS tests
# Linked as usual: a static flag without --target would be the compiler plugins' as well. Not optimised: they wait for
# answers.
ENV RUSTFLAGS= CARGO_PROFILE_DEV_OPT_LEVEL=0
RUN cargo test --locked --no-run --test http --test edges --test whole_store
CMD ["cargo", "test", "--locked", "--test", "http", "--test", "edges", "--test", "whole_store"]

# What a build without a target makes.
FROM meshkv

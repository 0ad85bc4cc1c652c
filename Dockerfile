# A static binary on an empty image. RUST_IMAGE: any image with cargo, gcc and glibc's static libraries.
ARG RUST_IMAGE=rust:1-slim-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /build
ENV RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET=x86_64-unknown-linux-gnu
# Dependencies first: this layer stays as long as they do.
COPY Cargo.toml Cargo.lock ./
COPY stress/Cargo.toml stress/
RUN mkdir -p src stress/src stress/tests stress/benches benches/node tests \
    && echo 'fn main() {}' | tee src/main.rs stress/src/main.rs benches/store_micro.rs benches/node/main.rs \
        tests/bench_smoke.rs stress/tests/truth.rs stress/benches/proof.rs > /dev/null \
    && touch src/lib.rs stress/src/lib.rs \
    && cargo build --release --locked --bin meshkv --target "$CARGO_TARGET"
COPY . .
ARG MESHKV_COMMIT=unknown
RUN touch src/main.rs src/lib.rs build.rs \
    && MESHKV_COMMIT="$MESHKV_COMMIT" cargo build --release --locked --bin meshkv --target "$CARGO_TARGET" \
    && cp "target/$CARGO_TARGET/release/meshkv" /meshkv \
    && strip /meshkv

FROM scratch
COPY --from=build /meshkv /meshkv
# Nobody in particular: the image has no user database.
USER 65532:65532
ENV MESHKV_HOST=0.0.0.0
EXPOSE 8080 7373
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s --retries=3 CMD ["/meshkv", "healthcheck"]
ENTRYPOINT ["/meshkv"]

#!/bin/sh
# Ours, the peer, ours: JSON objects one below the other.
set -e
cd "$(dirname "$0")"
tokens=${1:-1,4,8,64,512}
samples=${2:-5}
cargo build --release
(cd ../.. && cargo build --release --no-default-features --features wgpu --bench wgpu)
ours() {
    (cd ../.. && cargo bench --no-default-features --features wgpu --bench wgpu -- --tokens "$tokens" --samples "$samples")
}
ours
"${CARGO_TARGET_DIR:-target}/release/wgpu-peers" "$tokens" "$samples"
ours

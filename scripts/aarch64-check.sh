#!/bin/sh
# aarch64-check.sh [CACHE [CARGO-TEST-ARGUMENT...]] : compiles tests for aarch64 Linux and runs them on
# an x86-64 Debian machine, under qemu's user-mode emulator. Compiler, standard library, linker, C library
# and emulator are Debian packages, unpacked into CACHE (3 GB with the build; first run: about
# 350 MB to fetch). Needs root, or user namespaces. Default: the kernels' unit tests.
#
# CPUS="max cortex-a76 cortex-a53" names the emulated processors, one run each: those three have
# dotprod and i8mm, dotprod alone, and neither.
set -eu
cache=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/drafthorse-aarch64}
mkdir -p "$cache/target"
cache=$(cd "$cache" && pwd)
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- -p drafthorse-runtime --lib kernels::
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu

# Debian's stable compiler is older than this workspace's rust-version: hence its testing suite.
sh scripts/debian-root.sh "$cache/root" "${SUITE:-testing}" rustc cargo gcc gcc-aarch64-linux-gnu \
    libc6-dev-arm64-cross qemu-user dash coreutils +libstd-rust-dev:arm64
cargo fetch --quiet --locked --target $target # here, so that the root below needs no network

root=$cache/root
mkdir -p "$root/src" "$root/cargo" "$root/target"
ln -sf gcc "$root/usr/bin/cc"
[ "$(id -u)" = 0 ] && user= || user=-r
for cpu in ${CPUS:-max cortex-a76 cortex-a53}; do
    echo "== $cpu"
    # shellcheck disable=SC2016,SC2086
    unshare $user -m sh -euc '
        root=$1 cache=$2 cargo=$3 target=$4 cpu=$5
        shift 5
        mount --rbind /dev "$root/dev"
        mount --rbind /proc "$root/proc"
        mount --bind "$PWD" "$root/src"
        mount --bind "$cargo" "$root/cargo"
        mount --bind "$cache/target" "$root/target"
        exec env -i HOME=/root PATH=/usr/bin:/usr/sbin CARGO_HOME=/cargo CARGO_TARGET_DIR=/target RUST_BACKTRACE=1 \
            CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
            CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu" \
            chroot "$root" /bin/sh -c "cd /src && exec cargo test --offline --locked --release --target $target \"\$@\"" sh "$@"
    ' sh "$root" "$cache" "${CARGO_HOME:-$HOME/.cargo}" $target "$cpu" "$@"
done

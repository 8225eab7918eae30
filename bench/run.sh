#!/bin/sh
# Every comparison of this folder, one after the other. AMBIT_BENCH_ROUNDS sets how many rounds each takes.
set -eu
cd "$(dirname "$0")/.."
node bench/launch.mjs
node bench/build.mjs
AMBIT_BENCH_MIB=${AMBIT_BENCH_MIB:-256} node bench/relay.mjs

#!/bin/sh
# What npm runs once it has put ambit in its place: makes sure that there is a native part that loads on this machine.
# A checkout that was set up has one; a tarball may bring one along; otherwise it is built here. Without this script npm
# would run `node-gyp rebuild`, which begins by removing build/.
set -eu
cd "$(dirname "$0")/.."

usable() {
  for program in ambit-client ambit-spawner ambit-init; do [ -x "build/Release/$program" ] || return 1; done
  node -e 'require("./build/Release/ambit.node")' >/dev/null 2>&1
}
# A tarball has it; in a checkout TypeScript is there to make it.
[ -f dist/cli/main.js ] || npm run --silent build:ts
usable && exit 0

packages='g++ make cmake clang libbpf-dev libelf-dev zlib1g-dev libseccomp-dev'
for tool in g++ make cmake clang; do
  command -v "$tool" >/dev/null 2>&1 && continue
  printf 'ambit: could not build the native part: "%s" is missing\n  Debian, Ubuntu: apt-get install %s\n' "$tool" "$packages" >&2
  exit 1
done
npm run --silent build:native || { printf 'ambit: could not build the native part: see above\n  it needs (Debian, Ubuntu): apt-get install %s\n' "$packages" >&2; exit 1; }
usable || { printf 'ambit: the native part was built, but does not load:\n' >&2; exec node -e 'require("./build/Release/ambit.node")'; }

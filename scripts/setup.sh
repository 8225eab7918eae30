#!/bin/sh
# Makes a fresh clone ready: Debian packages, npm packages, the native build, TypeScript. What is done is skipped.
#   sh scripts/setup.sh [--tests | --vm]     --tests: also what only tests and benches need; --vm: and emulated machines
set -eu
cd "$(dirname "$0")/.."

BUILD_PACKAGES="g++ make cmake clang libbpf-dev libelf-dev zlib1g-dev libseccomp-dev"
# What the example job uses, as a runner host would have it.
JOB_PACKAGES="git tar gzip gcc libc6-dev curl openssl ca-certificates diffutils dash"
TEST_PACKAGES="bubblewrap runc golang-github-containers-common bpftool iproute2 python3 util-linux strace procps wget perl-base gh"

VM_PACKAGES="qemu-system-x86 busybox-static cpio xz-utils e2fsprogs"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$1"; shift; for line in "$@"; do printf '  %s\n' "$line" >&2; done; exit 2; }

case ${1:-} in
  '') wanted="$BUILD_PACKAGES $JOB_PACKAGES" ;;
  --tests) wanted="$BUILD_PACKAGES $JOB_PACKAGES $TEST_PACKAGES" ;;
  --vm)
    wanted="$BUILD_PACKAGES $JOB_PACKAGES $TEST_PACKAGES $VM_PACKAGES"
    # Debian 12's QEMU brings its own.
    if ! grep -qs '^VERSION_ID="12"' /etc/os-release; then wanted="$wanted virtiofsd"; fi
    ;;
  *) die "\"$1\" is not an option" 'usage: sh scripts/setup.sh [--tests | --vm]' ;;
esac

[ "$(uname -s)" = Linux ] || die 'ambit runs on Linux only'
command -v node >/dev/null 2>&1 || die 'Node.js 20 or later is needed' 'Debian 13: apt-get install nodejs npm' 'Debian 12 and Ubuntu 24.04 have older ones: https://nodejs.org/en/download'
version=$(node --version)
major=${version#v}
major=${major%%.*}
[ "$major" -ge 20 ] || die "Node.js 20 or later is needed, this is $version" 'https://nodejs.org/en/download'
command -v npm >/dev/null 2>&1 || die 'npm is needed' 'Debian: apt-get install npm'

mkdir -p build 2>/dev/null && [ -w build ] || die "$PWD/build cannot be written to" 'an earlier set-up ran as another user: run this as the same one, or remove build, dist and node_modules'
log=$PWD/build/setup.log
: >"$log"

# step TEXT COMMAND...: one line for what is done, a sign of life every ten seconds, the log's end if it fails.
work=
step() {
  text=$1; shift
  say "$text"
  began=$(date +%s)
  before=$(wc -c <"$log")
  "$@" >>"$log" 2>&1 </dev/null &
  work=$!
  ticks=0
  while kill -0 "$work" 2>/dev/null; do
    sleep 0.2
    ticks=$((ticks + 1))
    if [ $((ticks % 50)) -eq 0 ]; then say "  … $(( $(date +%s) - began )) s: $(tail -c "+$((before + 1))" "$log" | tail -n 1 | tr -d '\r' | cut -c1-90)"; fi
  done
  if wait "$work"; then
    work=
    say "  done in $(( $(date +%s) - began )) s"
  else
    work=
    tail -c "+$((before + 1))" "$log" | tail -n 25 >&2
    die "failed: $text" "the whole log: $log"
  fi
}
# A shell without job control starts background work deaf to the terminal's interrupt: it is passed on here.
trap 'if [ -n "$work" ]; then kill "$work" 2>/dev/null; fi; say interrupted; exit 130' INT TERM HUP

# newer MARK PATH...: whether anything below the paths is newer than the mark, or the mark is missing.
newer() {
  mark=$1; shift
  [ -e "$mark" ] || return 0
  [ -n "$(find "$@" -newer "$mark" -print 2>/dev/null | head -n 1)" ]
}

if command -v dpkg-query >/dev/null 2>&1; then
  # Ubuntu's bpftool before 25.04 comes with the kernel's tools.
  if grep -qs '^ID=ubuntu' /etc/os-release && ! command -v bpftool >/dev/null 2>&1; then
    wanted=$(printf '%s' "$wanted" | sed 's/ bpftool / linux-tools-common linux-tools-generic /')
  elif command -v bpftool >/dev/null 2>&1; then
    wanted=$(printf '%s' "$wanted" | sed 's/ bpftool / /')
  fi
  have=" $(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' 2>/dev/null | sed -n 's/^.i *//p' | tr '\n' ' ') "
  missing=
  for package in $wanted; do
    case $have in *" $package "*) ;; *) missing="$missing $package" ;; esac
  done
  if [ -n "$missing" ]; then
    [ "$(id -u)" -eq 0 ] || die 'Debian packages are missing, and installing them needs root' "apt-get install$missing"
    export DEBIAN_FRONTEND=noninteractive
    # A fresh machine often updates itself just then, and holds the lock.
    apt='apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3'
    # A broken list of somebody else's must not stop us: the installation tells whether what we need is there.
    step 'reading the package lists' sh -c "$apt update || echo 'not all lists could be read'"
    # shellcheck disable=SC2086
    step "installing Debian packages:$missing" $apt -y --no-install-recommends install $missing
  fi
else
  for tool in g++ make cmake clang git tar curl openssl; do
    command -v "$tool" >/dev/null 2>&1 || die "\"$tool\" is missing, and this is not Debian or Ubuntu: please install it" \
      "needed: g++, make, cmake, clang, git, tar, curl, openssl, and the development files of libbpf, libelf, zlib, libseccomp, with static libc and libstdc++"
  done
fi

# Dependencies' install scripts are not run: none of ours needs one, and they would run as root.
if [ ! -e node_modules/.bin/tsc ] || newer node_modules/.ambit-installed package-lock.json; then
  step 'installing npm packages' npm ci --ignore-scripts --no-audit --no-fund
  touch node_modules/.ambit-installed
fi

# A mark takes the time of the start, so that what is changed during the build is built again.
if [ ! -e build/Release/ambit.node ] || [ ! -e build/Release/ambit-client ] || newer build/.native CMakeLists.txt package-lock.json native bpf; then
  touch build/.native-begun
  step 'building the addon, the cell programs and the eBPF objects' npm run --silent build:native
  mv build/.native-begun build/.native
fi

if [ ! -e dist/cli/main.js ] || newer build/.typescript src tsconfig.json; then
  touch build/.typescript-begun
  step 'compiling TypeScript' sh -c 'rm -rf dist && npm run --silent build:ts'
  mv build/.typescript-begun build/.typescript
fi

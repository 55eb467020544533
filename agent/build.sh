#!/bin/sh
# Builds the guest agent for both machines, and for this one the probe and the test harness.
# usage: [GO=<go>] build.sh <directory>
set -eu
[ $# -eq 1 ] || { echo "usage: build.sh <directory>" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"
go=${GO:-go}
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS= GOWORK=off GOOS=linux GOAMD64=v1 GOARM64=v8.0
host=$("$go" env GOHOSTARCH)

# disablethp: with transparent huge pages, which are on in most guests, a heap of 2 MiB is resident with 4 and more, and what was
# given back is taken again. prctl(2) could switch them off, too, but for every command as well. It is said to the linker in the
# way of the go command's own defaults, which it adds to: a //go:debug line takes no setting of the runtime.
# Same source and same Go give the same bytes: no paths, no build id, no state of the work tree. A reader of the file
# (an image build, a running VM's start) never sees half of it.
build() { # file, command, GOARCH
  debug=$("$go" list -f '{{.DefaultGODEBUG}}' "./cmd/$2")
  GOARCH=$3 "$go" build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X runtime.godebugDefault=${debug:+$debug,}disablethp=1" \
    -o "$out/.$1.new" "./cmd/$2"
  mv "$out/.$1.new" "$out/$1"
  echo "$out/$1 $(wc -c <"$out/$1") bytes"
}

build nexus-agent-x86_64 nexus-agent amd64
build nexus-agent-aarch64 nexus-agent arm64
build nexus-probe nexus-probe "$host"
build agent-harness agent-harness "$host"

#!/bin/bash
# Proves the two commands on a bare Debian 12 without Node or Go: ./nexus demo and ./nexus test, each twice,
#   root   as root, in a fresh root file system
#   sudo   as uid 1000 with passwordless sudo, in a fresh root file system
#   user   as uid 1000 without sudo, in a fresh root file system; what ./nexus prints for the administrator is run first
#
# Usage, as root: test/bare-root.sh WORKDIR [root|sudo|user|all] [setup|demo|test|all]
#
# Each run has a mount and a pid namespace of its own and is entered with pivot_root (in a chroot no user namespace can
# be made). When its first process ends, the kernel ends all others and drops all mounts: nothing can stay behind on the
# machine, not even after SIGKILL. What a run left *inside* is looked for before that, and is a failure.
#
# KEEP_ROOT=1 in the environment keeps the root file systems to look at.
#
# The root gets this machine's package-client settings: Debian's part of the apt sources, apt's Acquire tree, npmrc,
# `go env`, CA certificates, name resolution, proxies.
set -u -o pipefail

PROJECT=$(cd -- "$(dirname -- "$0")/.." && pwd -P)
DEMO_LIMIT_S=20 # for a demo that finds its assets

say() { printf 'bare-root: %s\n' "$*" >&2; }
die() {
  say "$@"
  exit 1
}

[ $# -ge 1 ] || die "Usage: test/bare-root.sh WORKDIR [root|sudo|user|all] [setup|demo|test|all]"
[ "$(id -u)" = 0 ] || die "Cannot run: mounts and pivot_root need root."
mkdir -p -- "$1/logs" || exit 1
WORK=$(cd -- "$1" && pwd -P)
case ${2:-all} in all) SETTINGS='root sudo user' ;; root | sudo | user) SETTINGS=$2 ;; *) die "no such setting: $2" ;; esac
case ${3:-all} in all) COMMANDS="demo test" ;; setup | demo | test) COMMANDS=$3 ;; *) die "no such command: $3" ;; esac
for program in mmdebstrap unshare pivot_root setpriv git tar; do
  command -v "$program" >/dev/null || die "$program is missing"
done

RUN= # the process that unshare made; its end is the end of everything below it
# shellcheck disable=SC2317 # called by the trap
finish() {
  trap '' INT TERM HUP
  [ -z "$RUN" ] || kill -KILL "$RUN" 2>/dev/null
  [ -n "${KEEP_ROOT:-}" ] || rm -rf -- "$WORK"/root-*
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# --- the base -------------------------------------------------------------------------------------------------------

# Debian's own entries of this machine's apt sources, as one-line entries.
sources() {
  # shellcheck disable=SC2016 # apt's own variables
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    sort -u | awk '$2 ~ /^bookworm(-updates|-security)?$/ { print "deb " $1 " " $2 " " $3 }'
}

make_base() {
  [ -s "$WORK/base.tar" ] && return 0
  say "making the base system (mmdebstrap)"
  sources >"$WORK/sources.list"
  [ -s "$WORK/sources.list" ] || die "this machine's apt sources have no Debian 12"
  apt-config dump Acquire | grep -v -e '::cdrom' -e 'IndexTargets' -e ' "";$' >"$WORK/apt.conf"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,sudo --aptopt="$WORK/apt.conf" \
    bookworm "$WORK/base.part.tar" "$WORK/sources.list" || die "mmdebstrap failed"
  mv -- "$WORK/base.part.tar" "$WORK/base.tar"
}

# The npm and Go settings of the calling user become those of a user in the root. $1: home directory, in the root.
client_settings() {
  for which in globalconfig userconfig; do
    file=$(npm config get "$which" 2>/dev/null) && [ -f "$file" ] && cat -- "$file"
  done >"$1/.npmrc"
  goenv=$(cd / && go env GOENV 2>/dev/null)
  if [ -f "$goenv" ]; then
    mkdir -p -- "$1/.config/go"
    cp -- "$goenv" "$1/.config/go/env"
  fi
}

# A fresh root for one setting, with a clone of HEAD. Sets PLACE and HOME_IN.
make_root() {
  PLACE=$WORK/root-$1
  rm -rf -- "$PLACE"
  mkdir -- "$PLACE"
  tar -C "$PLACE" --numeric-owner --xattrs --xattrs-include='*' -xf "$WORK/base.tar" || die "cannot unpack the base"
  cp -L -- /etc/resolv.conf /etc/hosts "$PLACE/etc/"
  hostname >"$PLACE/etc/hostname"
  if ls /usr/local/share/ca-certificates/*.crt >/dev/null 2>&1; then
    cp -- /usr/local/share/ca-certificates/*.crt "$PLACE/usr/local/share/ca-certificates/"
    chroot "$PLACE" update-ca-certificates >/dev/null 2>&1
  fi
  [ "$1" = sudo ] && echo 'tester ALL=(ALL) NOPASSWD: ALL' >"$PLACE/etc/sudoers.d/tester"
  chroot "$PLACE" useradd --uid 1000 --create-home --shell /bin/bash tester || die "useradd failed"
  client_settings "$PLACE/root"
  client_settings "$PLACE/home/tester"
  HOME_IN=/root
  [ "$1" = root ] || HOME_IN=/home/tester
  git clone --quiet --no-local -- "$PROJECT" "$PLACE$HOME_IN/nexus" || die "git clone failed"
  chroot "$PLACE" chown -R tester: /home/tester
}

# --- one run --------------------------------------------------------------------------------------------------------

# Runs inside the namespaces, as their first process; the rest of it, after the pivot, is a file in the root.
# shellcheck disable=SC2016 # expanded in there
ENTER='
set -e
place=$1
mount --bind "$place" "$place"
mount -t proc -o nosuid,nodev,noexec proc "$place/proc"
mount --rbind /sys "$place/sys"
mount --rbind /dev "$place/dev"
mount -t tmpfs -o mode=1777,size=8g tmpfs "$place/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$place/run"
mkdir -p "$place/.machine"
cd "$place"
pivot_root . .machine
umount -l /.machine
rmdir /.machine
shift
exec /bin/bash /.inside "$@"
'

# shellcheck disable=SC2016 # expanded in there
INSIDE='
user=$1 home=$2
shift 2
what_is() { tr "\0" " " <"/proc/$1/cmdline"; }
processes() {
  for directory in /proc/[0-9]*; do
    pid=${directory#/proc/}
    grep -q "^State:.[ZX]" "$directory/status" 2>/dev/null && continue
    case " $1 " in *" $pid "*) continue ;; esac
    parent=$(sed -n "s/^PPid:\t//p" "$directory/status" 2>/dev/null)
    [ "$parent" = 1 ] || [ "$parent" = 0 ] || continue
    echo "process: $pid $(what_is "$pid" 2>/dev/null)"
  done
}
mounts() { cut -d " " -f 4,5 /proc/self/mountinfo | sed "s/^/mount: /"; }
sockets() { find / -xdev \( -path /proc -o -path /sys -o -path /dev \) -prune -o \( -type s -o -type p \) -print | sed "s/^/socket or pipe: /"; }
loops() { for l in /sys/block/loop*/loop/backing_file; do [ -e "$l" ] && echo "loop device: $(cat "$l")"; done; }
links() { ls /sys/class/net | sed "s/^/network device: /"; }
files() { find /tmp /run /dev/shm -mindepth 1 -maxdepth 1 ! -path /run/adduser ! -path /run/sudo ! -path /run/lock | sed "s/^/file: /"; }
state() { { mounts; sockets; loops; links; files; } | LC_ALL=C sort; }
before=$(state)
cd "$home/nexus"
if [ "$user" = root ]; then "$@" </dev/null
else setpriv --reuid 1000 --regid 1000 --init-groups "$@" </dev/null
fi
status=$?
sleep 0.5 # a process that was told to end may be about to
echo "$status" >/.status
{
  processes "1 $BASHPID" | grep -v "bash /.inside"
  LC_ALL=C comm -13 <(echo "$before") <(state)
} >/.left
cat /.left
sed -n "s/^file: //p" /.left | while read -r path; do find "$path" | head -n 20; done
exit "$status"
'

# The environment in there: nothing of the caller but what package clients need.
environment() {
  printf '%s\n' "HOME=$1" "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" LANG=C.UTF-8
  env | grep -i -E '^(https?|no|ftp|all)_proxy='
  for name in SSL_CERT_FILE NODE_EXTRA_CA_CERTS REQUESTS_CA_BUNDLE CURL_CA_BUNDLE; do
    [ -z "${!name:-}" ] || echo "$name=/etc/ssl/certs/ca-certificates.crt"
  done
}

# in_root USER COMMAND…: runs it in $PLACE. Its output goes to stdout.
in_root() {
  user=$1
  shift
  home=/root
  [ "$user" = root ] || home=/home/tester
  printf '%s' "$INSIDE" >"$PLACE/.inside"
  mapfile -t vars < <(environment "$home")
  env -i "${vars[@]}" unshare --mount --pid --fork --kill-child=KILL \
    bash -c "$ENTER" enter "$PLACE" "$user" "$HOME_IN" "$@" </dev/null &
  RUN=$!
  wait "$RUN"
  status=$?
  RUN=
  return "$status"
}

# record SETTING COMMAND RUN WANTED_STATUS USER COMMAND…: one row of the table.
record() {
  setting=$1 name=$2 number=$3 wanted=$4
  shift 4
  log=$WORK/logs/$setting-$name-$number.log
  say "$setting: $name, run $number (log: $log)"
  rm -f -- "$PLACE/.left" "$PLACE/.status"
  began=$(date +%s%N)
  in_root "$@" >"$log" 2>&1
  got=$?
  tenths=$((($(date +%s%N) - began) / 100000000))
  left=$(grep -c . "$PLACE/.left" 2>/dev/null)
  verdict=passed
  [ "$got" = "$wanted" ] || verdict="FAILED: exit $got, not $wanted"
  [ -e "$PLACE/.left" ] || verdict="$verdict; NO AUDIT"
  [ "${left:-0}" = 0 ] || verdict="$verdict; LEFT BEHIND: $left (end of the log)"
  if [ "$name" = demo ] && [ "$number" != 1 ] && [ "$tenths" -gt $((DEMO_LIMIT_S * 10)) ]; then
    verdict="$verdict; SLOWER THAN $DEMO_LIMIT_S s"
  fi
  [ "$verdict" = passed ] || RESULT=1
  printf '%-8s %-8s %-4s %6s.%s s  %s\n' \
    "$setting" "$name" "$number" $((tenths / 10)) $((tenths % 10)) "$verdict" | tee -a "$WORK/table.txt"
}

# The user without sudo gets a command to hand on; it is run as root, exactly as printed.
administrate() {
  record user "$1-ask" 1 8 tester ./nexus "$1" --yes
  line=$(sed -n 's/^    \(apt-get .*\)$/\1/p' "$WORK/logs/user-$1-ask-1.log" | tail -n 1)
  if [ -z "$line" ]; then
    say "user: $1 printed no command for the administrator"
    RESULT=1
    return
  fi
  record user "$1-admin" 1 0 root sh -c "$line"
}

RESULT=0
: >"$WORK/table.txt"
make_base
for setting in $SETTINGS; do
  make_root "$setting"
  who=tester
  [ "$setting" = root ] && who=root
  for command in $COMMANDS; do
    yes=--yes
    [ "$setting" = root ] && yes=
    [ "$setting" = user ] && administrate "$command"
    [ "$setting" = sudo ] && [ "$command" = demo ] && record sudo demo-ask 1 8 tester ./nexus demo
    for number in 1 2; do
      # shellcheck disable=SC2086 # --yes or nothing
      record "$setting" "$command" "$number" 0 "$who" ./nexus "$command" $yes
    done
  done
  [ -n "${KEEP_ROOT:-}" ] || rm -rf -- "$PLACE"
done
echo
cat -- "$WORK/table.txt"
exit "$RESULT"
